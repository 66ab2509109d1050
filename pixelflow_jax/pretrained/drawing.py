"""What a model draws with: its programs, each built once, and the arrays they share."""

import json
import logging

from jax.sharding import Mesh

from pixelflow_jax import build, sharding
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import Guidance
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.models.interface import DenoiserConfig, load_frozen
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.requests import refuse
from pixelflow_jax.pretrained.subjects import Subjects
from pixelflow_jax.sampling.batches import Generator, Weights
from pixelflow_jax.validate import size_problems

LOG = logging.getLogger(__name__)
LARGEST = 2  # how many times the training size an image may be without a warning


class Drawing:
    """Draws with a denoiser's `params` and the `constants` of its prediction.

    `generators` holds what was built, by settings and size.
    """

    def __init__(self, config: Experiment, params: dict, constants: dict):
        self.config, self.params, self.constants = config, params, constants
        self.generators: dict[str, Generator] = {}
        self._first: dict[str, Generator] = {}
        self._guides: dict[tuple[str, str], Drawing] = {}
        self._frozen_params: dict[str, dict] = {}
        self._warned = False

    def generator(self, config: Experiment, height: int, width: int) -> Generator:
        """What draws by the settings of `config`, images of that size (0: as trained).

        Raises PipelineError for settings that do not fit the model.
        """
        height = height or config.data.image_size
        width = width or config.data.image_size
        refuse(size_problems(config, height, width))
        self._warn_of_size(height, width)
        guide = self._guide(config.sampling.guidance)
        written = config.to_dict()
        sampling = written.pop("sampling")
        weaker = config.sampling.guidance.guide_weights()
        base = json.dumps([written, height, width, weaker])
        key = json.dumps([base, sampling])
        if key not in self.generators and base in self._first:
            # Settings that differ in steps, times or scale share programs.
            sampler = build.sampler(config)
            refuse(sampler.problems())
            first, batch_size = self._first[base], config.sampling.batch_size
            self.generators[key] = first.with_sampler(sampler, batch_size)
        elif key not in self.generators:
            network = guide and build.network(guide.config)
            generator = build.generator(config, height, width, network)
            try:
                generator.check()
            except ValueError as error:
                raise PipelineError(str(error)) from error
            self._first[base] = self.generators[key] = generator
        return self.generators[key]

    def weights(
        self, params: dict, config: Experiment, subjects: Subjects, mesh: Mesh
    ) -> Weights:
        """The arrays of a program that draws `subjects` with `params` and its guide.

        A pipeline may be given other parameters of the same model: they are its own.
        """
        guide = self._guide(config.sampling.guidance)
        frozen_params = subjects.load(mesh) | self._own_frozen_params(
            config.model, mesh
        )
        weaker = guide and Weights(
            guide.params, guide._own_frozen_params(guide.config.model, mesh)
        )
        return Weights(params, frozen_params, weaker)

    def _own_frozen_params(self, model: DenoiserConfig, mesh: Mesh) -> dict:
        """Parameters of what the denoiser looks through, and constants; read once."""
        key = json.dumps(to_dict(model))
        if key not in self._frozen_params:
            loaded = load_frozen(model)
            constants = {CONSTANTS: self.constants} if self.constants else {}
            self._frozen_params[key] = sharding.place(loaded | constants, mesh)
        return self._frozen_params[key]

    def _warn_of_size(self, height: int, width: int) -> None:
        """Once, where images are wanted that are too large to be good."""
        trained = self.config.data.image_size
        if max(height, width) <= LARGEST * trained or self._warned:
            return
        self._warned = True
        LOG.warning(
            "Images of %d x %d are more than %d times as large as those trained on, "
            "%d x %d: expect repeated or blurred content.",
            *(height, width, LARGEST, trained, trained),
        )

    def _guide(self, guidance: Guidance) -> "Drawing | None":
        """The weaker model that guidance needs, if any; read once."""
        name = guidance.guide_weights()
        if name is None:
            return None
        path, ema = name
        if not path:
            raise PipelineError(
                f"{type(guidance).__name__} needs a second model: name its run or "
                "weights file in sampling.guidance.weights."
            )
        if name not in self._guides:
            source = published.find(path)
            chosen, config = source.choose(ema), source.description.config
            self._guides[name] = Drawing(
                config, source.read(chosen), source.constants()
            )
        guide = self._guides[name]
        _check_guide(path, self.config, guide.config)
        return guide


def _check_guide(path: str, ours: Experiment, theirs: Experiment) -> None:
    """PipelineError for a model that cannot guide ours."""
    if (ours.path, ours.prediction) != (theirs.path, theirs.prediction):
        raise PipelineError(
            f"{path} cannot guide this model: its path or prediction "
            f"differs ({theirs.path}, {theirs.prediction})."
        )
    classes = ours.model.num_classes, theirs.model.num_classes
    if classes[0] != classes[1]:
        raise PipelineError(
            f"{path} cannot guide this model: it knows {classes[1]} "
            f"classes, not {classes[0]}."
        )
