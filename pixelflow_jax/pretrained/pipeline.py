"""Trained weights with everything around them: load, and draw from labels or text."""

import dataclasses
import json
import logging
import numbers
import pathlib
import re
import tempfile
from collections.abc import Sequence

import numpy as np

from pixelflow_jax import backend, build
from pixelflow_jax.conditioning.labels import label_problems
from pixelflow_jax.conditioning.prompts import Prompts
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.images import grid as image_grid
from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.errors import PipelineError, PromptError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import AutoGuidance, Guidance
from pixelflow_jax.flow.solver import Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.card import Description
from pixelflow_jax.sampling.batches import Generated, Generator, Weights
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.tensors import hub
from pixelflow_jax.validate import size_problems

LOG = logging.getLogger(__name__)
LARGEST = 2  # how many times the training size an image may be without a warning


@dataclasses.dataclass(kw_only=True)
class Pipeline:
    """A denoiser and its config.

        pipeline = Pipeline.from_pretrained("assets/emoji.safetensors")
        images = pipeline(["flags", "smileys-emotion"], seed=1)   # uint8 [2, 64, 64, 3]

    Models of text take prompts instead, with the encoder and the tokenizer that the
    config names, read when they are first used:

        pipeline = Pipeline.from_pretrained("runs/text", text_encoder="/data/MiniLM")
        images = pipeline("a red apple", images_per_prompt=4, height=96)

    `class_names` gives labels names; `step` is how long the weights were trained;
    `origin` says where they come from.
    """

    config: Experiment
    params: dict
    class_names: tuple[str, ...]
    step: int
    origin: str = ""

    def __post_init__(self) -> None:
        backend.keep_programs()
        self._generators: dict[str, Generator] = {}
        self._guides: dict[tuple[str, str], Pipeline] = {}
        self._prompts = Prompts(self.config.conditioner) if self.reads_text else None
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        path: str | pathlib.Path,
        ema: str = "",
        *,
        revision: str | None = None,
        text_encoder: str = "",
        tokenizer: str = "",
    ) -> "Pipeline":
        """Weights from a folder, a file, a run's workdir, or the Hugging Face Hub.

        `path` is what `published.find` takes: a published folder, a `.safetensors` file
        of ours, a workdir, or "organisation/name" on the Hub, at `revision`. From a
        workdir the newest checkpoint is taken: the average with decay `ema` (such as
        "0.9999"; "" the first one, "raw" the weights themselves). For models of text,
        `text_encoder` and `tokenizer` name other files than their config. Raises
        PipelineError, or CheckpointError for a damaged checkpoint.
        """
        found = published.find(path, revision)
        chosen, about = found.choose(ema), found.description
        pipeline = cls(
            config=about.config,
            params=found.read(chosen),
            class_names=about.class_names,
            step=about.step,
            origin=found.origin(chosen),
        )
        pipeline.use_text_encoder(text_encoder, tokenizer)
        return pipeline

    def use_text_encoder(self, weights: str = "", tokenizer: str = "") -> None:
        """Take the text encoder's weights and its tokenizer from there ("": as it is).

        Raises PipelineError for a model of classes.
        """
        given = {"weights": str(weights), "tokenizer": str(tokenizer)}
        given = {name: path for name, path in given.items() if path}
        if not given:
            return
        if not self.reads_text:
            raise PipelineError(
                "This model draws classes and has no text encoder: leave "
                "text_encoder and tokenizer away."
            )
        conditioner = self.config.conditioner
        conditioner.encoder = dataclasses.replace(conditioner.encoder, **given)
        self._prompts = Prompts(conditioner)

    @property
    def reads_text(self) -> bool:
        """Whether it draws from prompts, not classes."""
        return isinstance(self.config.conditioner, Text)

    def save(self, path: str | pathlib.Path, dtype: str = "bfloat16") -> None:
        """Write weights, config and class names as one safetensors file."""
        tensors = published.cast(self.params, dtype)
        published.write_file(pathlib.Path(path), tensors, self._description())

    def save_pretrained(
        self,
        folder: str | pathlib.Path,
        *,
        dtype: str = "float32",
        samples: Sequence[int | str] = (),
        name: str = "",
    ) -> None:
        """Write a published folder: config.json, model.safetensors, README.md.

        float32 weights draw the same images, bit for bit; "bfloat16" halves the file.
        The card shows a row of images for each of `samples`, drawn here and now as by a
        call, and tells to load the weights by `name` ("": the folder). What lies in
        the folder under these names is replaced. Raises PipelineError.
        """
        picture = self._rows(samples) if samples else None
        published.write_folder(
            pathlib.Path(folder),
            published.cast(self.params, dtype),
            self._description(),
            picture=picture,
            name=name,
        )

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload weights",
        token: str | None = None,
        dtype: str = "float32",
        samples: Sequence[int | str] = (),
    ) -> str:
        """Upload what `save_pretrained` writes to "organisation/name" on the Hub.

        The repository is made where absent (`private`: for few eyes), and so is the
        branch `revision`. `token` defaults to that of `hf auth login`. Returns the
        repository's address. Raises HubError.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype, samples=samples, name=name)
            return hub.upload(
                name,
                pathlib.Path(folder),
                private=private,
                revision=revision,
                message=commit_message,
                token=token,
            )

    def _description(self) -> Description:
        return Description(
            config=self.config,
            class_names=self.class_names,
            step=self.step,
            origin=self.origin,
        )

    def _rows(self, samples: Sequence[int | str], columns: int = 4) -> np.ndarray:
        """A row of images for each of `samples`, uint8 [h, w, 3]."""
        images = self([one for one in samples for _ in range(columns)], progress=True)
        labels = [str(one) for one in samples]
        return image_grid(images, columns, row_labels=labels)

    def labels(self, classes: Sequence[int | str]) -> np.ndarray:
        """Labels int32 [n] from class numbers or names; PipelineError for unknown ones.

        A name may be written as on disk: "smileys-emotion" for "Smileys & Emotion".
        """
        if self.reads_text:
            raise PipelineError("This model draws from prompts and knows no classes.")
        numbers = [self._label(c) for c in classes]
        problems = label_problems(sorted(set(numbers)), self.config.model.num_classes)
        if problems:
            raise PipelineError(f"{problems[0]}: {', '.join(self.class_names)}.")
        return np.asarray(numbers, np.int32)

    def _label(self, c: int | str) -> int:
        if not isinstance(c, str):
            return int(c)
        if c in self.class_names:
            return self.class_names.index(c)
        if re.fullmatch(r"-?\d+", c.strip()):
            return int(c)
        alike = [i for i, n in enumerate(self.class_names) if _slug(n) == _slug(c)]
        if len(alike) != 1:
            problem = "several classes like" if alike else "no class"
            raise PipelineError(
                f"There is {problem} {c!r}; the classes are "
                f"{', '.join(self.class_names)}."
            )
        return alike[0]

    def __call__(
        self,
        wanted: int | str | Sequence[int | str],
        *,
        negative_prompt: str | Sequence[str] = "",
        images_per_prompt: int = 1,
        seed: int = 0,
        first: int = 0,
        height: int = 0,
        width: int = 0,
        sampling: Sampling | None = None,
        solver: Solver | None = None,
        grid: Grid | None = None,
        guidance: Guidance | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Images of `wanted`, uint8 [n, height, width, 3].

        `wanted` holds prompts, or the names and numbers of classes; one alone need not
        be in a list. Each is drawn `images_per_prompt` times, one after the other.
        Guidance leads away from `negative_prompt`, one for all or one for each prompt.

        Sizes default to the training size; `sampling` to the config's, and `solver`,
        `grid` and `guidance` to those of `sampling`. Image i depends on (seed, first +
        i), its prompt and negative prompt, or its class, alone. Raises PipelineError
        for a request that the model cannot serve, WeightsError without a text encoder.
        """
        generated = self.generate(
            wanted,
            negative_prompt=negative_prompt,
            images_per_prompt=images_per_prompt,
            seed=seed,
            first=first,
            height=height,
            width=width,
            sampling=sampling,
            solver=solver,
            grid=grid,
            guidance=guidance,
            progress=progress,
        )
        return to_uint8(generated.images)

    def generate(
        self,
        wanted: int | str | Sequence[int | str],
        *,
        negative_prompt: str | Sequence[str] = "",
        images_per_prompt: int = 1,
        seed: int = 0,
        first: int = 0,
        height: int = 0,
        width: int = 0,
        sampling: Sampling | None = None,
        solver: Solver | None = None,
        grid: Grid | None = None,
        guidance: Guidance | None = None,
        record: bool = False,
        progress: bool = False,
    ) -> Generated:
        """Like a call, but float32 images, and with `record` the way there as well."""
        generator, guide = self._generator(
            self._settings(sampling, solver=solver, grid=grid, guidance=guidance),
            *(height, width),
        )
        given = self._given(wanted, negative_prompt, images_per_prompt)
        # Last, as encoders are large: nothing can be wrong with the request any more.
        return generator(
            self._weights(generator, guide),
            given,
            seed=seed,
            first=first,
            record=record,
            progress=progress,
        )

    def compile(
        self,
        batch_size: int = 1,
        *,
        height: int = 0,
        width: int = 0,
        sampling: Sampling | None = None,
        solver: Solver | None = None,
        grid: Grid | None = None,
        guidance: Guidance | None = None,
        record: bool = False,
    ) -> None:
        """Compile ahead what calls of these settings for `batch_size` images run.

        They start at once then, whatever their classes, prompts and seeds. Loads the
        encoder of a model of text. Raises what a call raises.
        """
        generator, guide = self._generator(
            self._settings(sampling, solver=solver, grid=grid, guidance=guidance),
            *(height, width),
        )
        given = self._given("" if self.reads_text else 0, "", batch_size)
        generator.compile(self._weights(generator, guide), given, record=record)

    def _weights(self, generator: Generator, guide: "Pipeline | None") -> Weights:
        frozen_params = self._prompts.load(generator.mesh) if self._prompts else {}
        return Weights(self.params, frozen_params, guide and Weights(guide.params))

    def _settings(self, sampling: Sampling | None, **parts: object) -> Experiment:
        """The config with that sampling, if any, and its parts that are given."""
        given = {name: value for name, value in parts.items() if value is not None}
        sampling = dataclasses.replace(sampling or self.config.sampling, **given)
        config = dataclasses.replace(self.config, sampling=sampling)
        if self._prompts:
            config.conditioner = self._prompts.conditioner
        return config

    def _generator(
        self, config: Experiment, height: int, width: int
    ) -> tuple[Generator, "Pipeline | None"]:
        """What draws images of that size, and the weaker model that guides it.

        A size of 0 stands for the training size.
        """
        height, width = (size or config.data.image_size for size in (height, width))
        problems = [f"height={height} and width={width} must be positive"]
        if min(height, width) > 0:
            problems = size_problems(config, height, width)
        if problems:
            raise PipelineError("; ".join(problems) + ".")
        self._warn_of_size(height, width)
        guide = self._guide(config.sampling.guidance)
        key = json.dumps([config.to_dict(), height, width])
        if key not in self._generators:
            network = guide and build.network(guide.config)
            generator = build.generator(config, height, width, network)
            try:
                generator.check()
            except ValueError as error:
                raise PipelineError(str(error)) from error
            self._generators[key] = generator
        return self._generators[key], guide

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

    def _given(
        self,
        wanted: int | str | Sequence[int | str],
        negative: str | Sequence[str],
        count: int,
    ) -> dict[str, np.ndarray]:
        """What the conditioner reads for `count` images of each that is wanted."""
        alone = isinstance(wanted, str | numbers.Integral)
        wanted = [wanted] if alone else list(wanted)
        if not wanted or count < 1:
            raise PipelineError(
                f"There is nothing to draw: {len(wanted)} prompts or classes, "
                f"images_per_prompt={count}."
            )
        if not self._prompts:
            if negative:
                raise PipelineError(
                    "This model draws classes, which have no negative prompts."
                )
            return {"label": np.repeat(self.labels(wanted), count)}
        try:
            given = self._prompts.read(wanted, negative)
        except PromptError as error:
            raise PipelineError(str(error)) from error
        return {name: np.repeat(array, count, axis=0) for name, array in given.items()}

    def _guide(self, guidance: Guidance) -> "Pipeline | None":
        """The weaker model that `AutoGuidance` names."""
        if not isinstance(guidance, AutoGuidance):
            return None
        if not guidance.weights:
            raise PipelineError(
                "AutoGuidance needs a second model: name its run or weights file in "
                "sampling.guidance.weights."
            )
        name = (guidance.weights, guidance.ema)
        if name not in self._guides:
            self._guides[name] = Pipeline.from_pretrained(*name)
        guide = self._guides[name]
        ours, theirs = self.config, guide.config
        if (ours.path, ours.prediction) != (theirs.path, theirs.prediction):
            raise PipelineError(
                f"{guidance.weights} cannot guide this model: its path or prediction "
                f"differs ({theirs.path}, {theirs.prediction})."
            )
        classes = ours.model.num_classes, theirs.model.num_classes
        if classes[0] != classes[1]:
            raise PipelineError(
                f"{guidance.weights} cannot guide this model: it knows {classes[1]} "
                f"classes, not {classes[0]}."
            )
        return guide


def _slug(name: str) -> str:
    """Lower-case letters and digits, everything else as single hyphens."""
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")
