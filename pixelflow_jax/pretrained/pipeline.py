"""Trained weights with everything around them: load, and draw from labels or text."""

import dataclasses
import json
import logging
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Unpack, cast

import jax
import numpy as np
from jax.sharding import Mesh

from pixelflow_jax import backend, build, sharding
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.data.images import grid as image_grid
from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.errors import PipelineError, PromptError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import Guidance
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.models.interface import load_frozen
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.card import Description
from pixelflow_jax.pretrained.options import (
    Calling,
    DrawOptions,
    Loading,
    Publishing,
    SamplingOptions,
)
from pixelflow_jax.pretrained.requests import (
    Wanted,
    checked,
    listed,
    path_of,
    refuse,
)
from pixelflow_jax.pretrained.subjects import Classes, decisive_settings, subjects
from pixelflow_jax.sampling.batches import Generated, Generator, Request, Weights
from pixelflow_jax.sampling.stream import Draw, Stream, weights_digest
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
    `origin` says where they come from; `constants` are those of the prediction.
    """

    config: Experiment
    params: dict
    class_names: tuple[str, ...]
    step: int
    origin: str = ""
    constants: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        backend.keep_programs()
        self._generators: dict[str, Generator] = {}
        self._guides: dict[tuple[str, str], Pipeline] = {}
        self._frozen_params: dict[str, dict] = {}
        self._subjects = subjects(self.config, self.class_names)
        self._warned = False

    @classmethod
    def from_pretrained(
        cls,
        path: str | pathlib.Path,
        ema: str | float = "",
        *,
        revision: str | None = None,
        text_encoder: str | pathlib.Path = "",
        tokenizer: str | pathlib.Path = "",
        allow_nonfinite: bool = False,
    ) -> "Pipeline":
        """Weights from a folder, a file, a run's workdir, or the Hugging Face Hub.

        `path` is what `published.find` takes: a published folder, a `.safetensors` file
        of ours, a workdir, or "organisation/name" on the Hub, at `revision`. From a
        workdir the newest checkpoint is taken: the average with decay `ema` (such as
        "0.9999"; "" the first one, "raw" the weights themselves). For models of text,
        `text_encoder` and `tokenizer` name other files than their config. Weights that
        hold NaN or infinities are refused, unless `allow_nonfinite`. Raises
        PipelineError, or CheckpointError for a damaged checkpoint.
        """
        files = {"text_encoder": text_encoder, "tokenizer": tokenizer}
        loading = {"ema": ema, "revision": revision, **files}
        checked({**loading, "allow_nonfinite": allow_nonfinite}, Loading)
        path_of("path", path)
        source = published.find(path, revision)
        chosen, about = source.choose(str(ema)), source.description
        pipeline = cls(
            config=about.config,
            params=source.read(chosen, allow_nonfinite),
            class_names=about.class_names,
            step=about.step,
            origin=source.origin(chosen),
            constants=source.constants(),
        )
        pipeline.use_text_encoder(text_encoder, tokenizer)
        return pipeline

    def use_text_encoder(
        self, weights: str | pathlib.Path = "", tokenizer: str | pathlib.Path = ""
    ) -> None:
        """Take the text encoder's weights and its tokenizer from there ("": as it is).

        Raises PipelineError for a model of classes.
        """
        checked({"text_encoder": weights, "tokenizer": tokenizer}, Loading)
        if not (weights or tokenizer):
            return
        conditioner = self.config.conditioner
        try:
            conditioner = conditioner.with_encoder_files(str(weights), str(tokenizer))
        except PromptError as error:
            raise PipelineError(str(error)) from error
        self.config = dataclasses.replace(self.config, conditioner=conditioner)
        self._subjects = subjects(self.config, self.class_names)

    @property
    def reads_text(self) -> bool:
        """Whether it draws from prompts, not classes."""
        return self.config.model.condition.reads_text

    def save(self, path: str | pathlib.Path, dtype: str = "bfloat16") -> None:
        """Write weights, config and class names as one .safetensors file.

        Raises PipelineError.
        """
        file = path_of("path", path, ".safetensors")
        tensors = published.cast(self.params, self.constants, dtype)
        published.write_file(file, tensors, self._description())

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
        path = path_of("folder", folder)
        checked({"dtype": dtype, "name": name}, Publishing)
        asked = listed(samples)
        picture = self._rows(asked) if asked else None
        published.write_folder(
            path,
            published.cast(self.params, self.constants, dtype),
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
        repository's address. Raises PipelineError and HubError.
        """
        about = {"private": private, "revision": revision, "token": token}
        checked({"name": name, "commit_message": commit_message, **about}, Publishing)
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
        if not isinstance(self._subjects, Classes):
            raise PipelineError("This model draws from prompts and knows no classes.")
        return self._subjects.labels(listed(classes))

    def __call__(self, wanted: Wanted, **options: Unpack[DrawOptions]) -> np.ndarray:
        """Images of `wanted`, uint8 [n, height, width, 3].

        `wanted` holds prompts, or the names and numbers of classes; one alone need not
        be in a list. The keyword arguments are those of `DrawOptions`:

        - `negative_prompt`, `images_per_prompt`, `seed`, `first`, `progress`;
        - `height`, `width`, `sampling`, `solver`, `grid`, `guidance`.

        Image i depends on (seed, first + i), its prompt and negative prompt, or its
        class, alone. Raises PipelineError for a request that the model cannot serve,
        WeightsError without a text encoder.
        """
        return to_uint8(self.generate(wanted, **options).images)

    def generate(
        self, wanted: Wanted, *, record: bool = False, **options: Unpack[DrawOptions]
    ) -> Generated:
        """Like a call, but float32 images, and with `record` the way there as well."""
        _refuse_unknown(options, DrawOptions)
        checked({"record": record}, Calling)
        options = cast(DrawOptions, checked(options, DrawOptions))
        generator, guide = self._generator(options)
        given = self._given(
            wanted,
            options.get("negative_prompt", ""),
            options.get("images_per_prompt", 1),
        )
        # Last, as encoders are large: nothing can be wrong with the request any more.
        return generator(
            self._weights(generator.mesh, guide),
            given,
            seed=options.get("seed", 0),
            first=options.get("first", 0),
            record=record,
            progress=options.get("progress", False),
        )

    def stream(
        self, wanted: Wanted, *, record: bool = False, **options: Unpack[DrawOptions]
    ) -> Stream:
        """The images of a call as one set with a digest, to be drawn batch by batch.

        The arguments are those of a call, and so are the images; nothing is drawn yet.
        Raises what a call raises.
        """
        _refuse_unknown(options, DrawOptions)
        generator, guide = self._generator(options)
        count = options.get("images_per_prompt", 1)
        given = self._given(wanted, options.get("negative_prompt", ""), count)
        weights = self._weights(generator.mesh, guide)
        seed, first = options.get("seed", 0), options.get("first", 0)
        draw = Draw(
            weights=weights_digest(weights),
            request=Request(given, seed, first, record),
            names=self._names(listed(wanted), count),
            settings=decisive_settings(self._settings(options), generator.size),
            per_device=generator.per_device(len(next(iter(given.values())))),
            platform=jax.default_backend(),
        )
        return Stream(draw=draw, generator=generator, weights=weights)

    def _names(self, listed: list, count: int) -> tuple[str, ...]:
        """What each image is of: its prompt, or its class by name."""
        if not self.reads_text:
            names = self.class_names
            listed = [names[k] if names else k for k in self.labels(listed)]
        return tuple(str(one) for one in listed for _ in range(count))

    def compile(
        self,
        batch_size: int = 1,
        *,
        record: bool = False,
        **options: Unpack[SamplingOptions],
    ) -> None:
        """Compile ahead what calls of these settings for `batch_size` images run.

        They start at once then, whatever their classes, prompts and seeds. The keyword
        arguments are those of `SamplingOptions`. Loads the encoder of a model of text.
        Raises what a call raises.
        """
        _refuse_unknown(options, SamplingOptions)
        checked({"record": record, "batch_size": batch_size}, Calling)
        options = cast(SamplingOptions, checked(options, SamplingOptions))
        generator, guide = self._generator(options)
        given = self._given(self._subjects.example, "", batch_size)
        weights = self._weights(generator.mesh, guide)
        generator.compile(weights, given, record=record)

    def _weights(self, mesh: Mesh, guide: "Pipeline | None") -> Weights:
        """The arrays of a program that draws with this model and its guide."""
        frozen_params = self._subjects.load(mesh) | self._own_frozen_params(mesh)
        weaker = guide and Weights(guide.params, guide._own_frozen_params(mesh))
        return Weights(self.params, frozen_params, weaker)

    def _own_frozen_params(self, mesh: Mesh) -> dict:
        """Parameters of what the denoiser looks through, and constants; read once."""
        key = json.dumps(to_dict(self.config.model))
        if key not in self._frozen_params:
            loaded = load_frozen(self.config.model)
            constants = {CONSTANTS: self.constants} if self.constants else {}
            self._frozen_params[key] = sharding.place(loaded | constants, mesh)
        return self._frozen_params[key]

    def _settings(self, options: SamplingOptions) -> Experiment:
        """The config with what the options change of its sampling."""
        sampling = options.get("sampling") or self.config.sampling
        sampling = dataclasses.replace(
            sampling,
            solver=options.get("solver") or sampling.solver,
            grid=options.get("grid") or sampling.grid,
            guidance=options.get("guidance") or sampling.guidance,
        )
        conditioner = self._subjects.conditioner
        return dataclasses.replace(
            self.config, sampling=sampling, conditioner=conditioner
        )

    def _generator(
        self, options: SamplingOptions
    ) -> tuple[Generator, "Pipeline | None"]:
        """What draws as the options say, and the weaker model that guides it."""
        config = self._settings(options)
        height = options.get("height") or config.data.image_size
        width = options.get("width") or config.data.image_size
        refuse(size_problems(config, height, width))
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
        wanted: Wanted,
        negative: str | Sequence[str],
        count: int,
    ) -> dict[str, np.ndarray]:
        """What the conditioner reads for `count` images of each that is wanted."""
        asked = listed(wanted)
        if not asked:
            raise PipelineError("There is nothing to draw: 0 prompts or classes.")
        try:
            given = self._subjects.read(asked, negative)
        except PromptError as error:
            raise PipelineError(str(error)) from error
        return {name: np.repeat(array, count, axis=0) for name, array in given.items()}

    def _guide(self, guidance: Guidance) -> "Pipeline | None":
        """The weaker model that guidance needs, if any."""
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
            self._guides[name] = Pipeline.from_pretrained(path, ema)
        guide = self._guides[name]
        ours, theirs = self.config, guide.config
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
        return guide


def _refuse_unknown(options: Mapping[str, object], known: type) -> None:
    """TypeError for keyword arguments that are none."""
    names = sorted(known.__optional_keys__)  # pyright: ignore[reportAttributeAccessIssue]
    if unknown := sorted(set(options) - set(names)):
        raise TypeError(
            f"unexpected keyword arguments {', '.join(unknown)}; there are "
            f"{', '.join(names)}"
        )
