"""Trained weights with everything around them: load, and draw from labels or text."""

import dataclasses
import html
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import jax
import numpy as np

from pixelflow_jax import backend
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.data.images import grid as image_grid
from pixelflow_jax.errors import PipelineError, PromptError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models import interface as models
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained import words
from pixelflow_jax.pretrained.card import Description
from pixelflow_jax.pretrained.drawing import Drawing
from pixelflow_jax.pretrained.options import (
    Calling,
    DrawOptions,
    Loading,
    Publishing,
    SamplingOptions,
)
from pixelflow_jax.pretrained.requests import Wanted, checked, listed, path_of
from pixelflow_jax.pretrained.results import Facts, Images, picture_of
from pixelflow_jax.pretrained.subjects import Classes, decisive_settings, subjects
from pixelflow_jax.pretrained.words import choices, seeds, settled
from pixelflow_jax.sampling.batches import (
    Generated,
    Generator,
    Request,
    Weights,
    gathered,
)
from pixelflow_jax.sampling.stream import Draw, Stream, weights_digest
from pixelflow_jax.sampling.watching import watched
from pixelflow_jax.tensors import hub


@dataclasses.dataclass(kw_only=True, repr=False)
class Pipeline:
    """A denoiser and its config.

        pipeline = Pipeline.from_pretrained("emoji")
        images = pipeline(["flags", "smileys-emotion"], seed=1)   # uint8 [2, 64, 64, 3]
        images.grid().save("grid.png")

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
        self._drawing = Drawing(self.config, self.params, self.constants)
        self._subjects = subjects(self.config, self.class_names)
        self._last: np.ndarray | None = None

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

    def __call__(
        self,
        wanted: Wanted,
        *,
        record: bool = False,
        **options: Unpack[DrawOptions],
    ) -> Images:
        """Images of `wanted`: an array, uint8 [n, height, width, 3], and more.

        `wanted` holds prompts, or the names and numbers of classes; one alone need not
        be in a list. The keyword arguments are those of `DrawOptions`:

        - `seed`, `first`, `images_per_prompt`, `negative_prompt`;
        - `preset`, `solver`, `steps`, `guidance`, `guidance_interval`, `shift`, or the
          parts themselves: `sampling`, `grid`;
        - `height`, `width`; `progress`, `callback`.

        `record` keeps the way out of the noise, `.trajectory` of the result
        (`results.Images`). Image i depends on (seed, first + i), its prompt and
        negative prompt, or its class, alone. Raises PipelineError for a request that
        the model cannot serve, WeightsError without a text encoder.
        """
        given = settled(options, DrawOptions)
        drawn, request = self._draw(wanted, given, record)
        count = given.get("images_per_prompt", 1)
        facts = Facts(
            names=self._names(listed(wanted), count),
            seeds=request.each_seed(),
            numbers=request.numbers(),
            settings=to_dict(self._settings(given).sampling),
        )
        images = Images.of(drawn, facts)
        self._last = images.images
        return images

    def generate(
        self, wanted: Wanted, *, record: bool = False, **options: Unpack[DrawOptions]
    ) -> Generated:
        """Like a call, but float32 images, and with `record` the way there as well."""
        return self._draw(wanted, settled(options, DrawOptions), record)[0]

    def _draw(
        self, wanted: Wanted, options: dict, record: bool
    ) -> tuple[Generated, Request]:
        """The images of settled options, and the request that they come from."""
        checked({"record": record}, Calling)
        settings = self._settings(options)
        generator = self._generator(settings, options)
        request = self._request(wanted, options, record)
        # Last, as encoders are large: nothing can be wrong with the request any more.
        weights = self._weights(settings, generator)
        progress = options.get("progress", False)
        if callback := options.get("callback"):
            batches = watched(generator, weights, request, callback)
            return gathered(batches, request.count, progress), request
        return generator.draw(weights, request, progress=progress), request

    def stream(
        self, wanted: Wanted, *, record: bool = False, **options: Unpack[DrawOptions]
    ) -> Stream:
        """The images of a call as one set with a digest, to be drawn batch by batch.

        The arguments are those of a call, and so are the images; nothing is drawn yet.
        Raises what a call raises.
        """
        given = settled(options, DrawOptions)
        settings = self._settings(given)
        generator = self._generator(settings, given)
        request = self._request(wanted, given, record)
        weights = self._weights(settings, generator)
        draw = Draw(
            weights=weights_digest(weights),
            request=request,
            names=self._names(listed(wanted), given.get("images_per_prompt", 1)),
            settings=decisive_settings(settings, generator.size),
            per_device=generator.per_device(request.count),
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
        checked({"record": record, "batch_size": batch_size}, Calling)
        given = settled(options, SamplingOptions)
        settings = self._settings(given)
        generator = self._generator(settings, given)
        example = {**given, "images_per_prompt": batch_size}
        request = self._request(self._subjects.example, example, record)
        weights = self._weights(settings, generator)
        generator.compile(weights, request.given, record=record)

    def _settings(self, options: Mapping[str, Any]) -> Experiment:
        """The config with what settled options change of its sampling."""
        sampling = options.get("sampling") or self.config.sampling
        return dataclasses.replace(
            self.config,
            sampling=choices(options).apply(sampling),
            conditioner=self._subjects.conditioner,
        )

    def _generator(self, settings: Experiment, options: Mapping[str, Any]) -> Generator:
        """What draws by these settings, images of the size that is asked for."""
        height, width = options.get("height", 0), options.get("width", 0)
        return self._drawing.generator(settings, height, width)

    def _weights(self, settings: Experiment, generator: Generator) -> Weights:
        """The arrays that its programs share."""
        mesh = generator.mesh
        return self._drawing.weights(self.params, settings, self._subjects, mesh)

    def _request(
        self, wanted: Wanted, options: Mapping[str, Any], record: bool
    ) -> Request:
        """Which images are wanted: so many of each, from which noise."""
        asked, count = listed(wanted), options.get("images_per_prompt", 1)
        if not asked:
            raise PipelineError("There is nothing to draw: 0 prompts or classes.")
        seed, each = seeds(options.get("seed", 0), len(asked) * count)
        try:
            given = self._subjects.read(asked, options.get("negative_prompt", ""))
        except PromptError as error:
            raise PipelineError(str(error)) from error
        rows = {name: np.repeat(array, count, axis=0) for name, array in given.items()}
        return Request(rows, seed, options.get("first", 0), record, each)

    if not TYPE_CHECKING:  # which knows all that there is

        def __getattr__(self, name: str) -> NoReturn:
            # Habits from other tools get an answer.
            raise AttributeError(f"A Pipeline has no {name!r}.{words.attribute(name)}")

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        """Facts for a notebook, below what was drawn last."""
        shown = "" if self._last is None else picture_of(self._last)
        lines = "<br>".join(html.escape(fact) for fact in self._facts())
        return f"{shown}<p>{lines}</p>"

    def _facts(self) -> list[str]:
        """What it is, in a few words each."""
        config, size = self.config, self.config.data.image_size
        names, more = self.class_names[:3], len(self.class_names) > 3
        classes = f"{config.model.num_classes} classes"
        if names:
            classes += f" ({', '.join(names)}{', ...' * more})"
        parameters = models.count(self.params) / 1e6
        facts = [
            repr(config.name),
            f"{type(config.model).__name__} of {parameters:.3g}M parameters",
            f"{size} x {size} pixels",
            "prompts" if self.reads_text else classes,
            f"{self.step:,} steps of training" if self.step else "",
        ]
        return [fact for fact in facts if fact]
