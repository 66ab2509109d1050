"""Weights on disk and on the Hub: located, read, and written.

A published folder holds `config.json` (`Description`), `model.safetensors` (parameters
by their path, of any floating-point type, and a prediction's constants under
"prediction"), and `README.md`, a model card. The same in a single file: the description
lies in the metadata of a `.safetensors` file. A training run's workdir is read from its
newest checkpoint.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax import build, remote, resources, sharding
from pixelflow_jax.atomic import atomic_files
from pixelflow_jax.data.fingerprint import saved_class_names
from pixelflow_jax.data.images import save_png
from pixelflow_jax.errors import PipelineError, WeightsError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.models.interface import shape_errors
from pixelflow_jax.pretrained import class_names
from pixelflow_jax.pretrained.card import FORMAT, PICTURE, Description, on_any_devices
from pixelflow_jax.tensors import finite, hub, json_files, reader
from pixelflow_jax.tensors import safetensors_files as safe
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.paths import by_path, nested
from pixelflow_jax.training import posthoc
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.ema import in_words

CONFIG, CARD = "config.json", "README.md"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16")
RAW = "raw"
# What a folder of other people's weights holds.
FOREIGN = (".safetensors", ".ckpt", ".pth", ".pt", ".bin")
CONVERT = (
    "If these are weights of the official code, convert them: "
    "`python -m pixelflow_jax.convert from-torch FILE FOLDER`."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsRef:
    """Weights that were located, to be read.

    `averages` names the sets of weights to choose from, the first one being the usual
    one, and with `posthoc` there is "posthoc:SIGMA_REL" of every width; `tensors` opens
    those of one set, with the prediction's constants.
    """

    where: str
    description: Description
    averages: tuple[str, ...]
    tensors: Callable[[str], Mapping[str, LazyTensor]]
    posthoc: bool = False

    def open(self, ema: str) -> Mapping[str, LazyTensor]:
        """A set's parameters by path, of the type they are stored in, not read yet.

        Raises PipelineError for files that are damaged, or hold other parameters than
        the config's; CheckpointError for a damaged checkpoint.
        """
        tensors = self._checked_tensors(ema)
        return {
            name: tensor
            for name, tensor in tensors.items()
            if not name.startswith(f"{CONSTANTS}/")
        }

    def _checked_tensors(self, ema: str) -> Mapping[str, LazyTensor]:
        with _as_pipeline_error():
            tensors = self.tensors(ema)
        config = self.description.config
        shapes = build.network(config).shapes() | constant_shapes(config)
        if problems := shape_errors(dict(tensors), shapes):
            raise PipelineError(
                f"{self.where} does not hold the weights of the model its own config "
                f"describes:\n  {'; '.join(problems[:3])}"
                + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
            )
        return tensors

    def read(self, ema: str, allow_nonfinite: bool = False) -> dict:
        """A set's parameters as a nested dict, float32; raises what `open` does.

        Numbers that are NaN or infinite are refused, unless allowed.
        """
        flat, counts = {}, {}
        for name, tensor in self.open(ema).items():
            array = np.asarray(tensor.read())
            counts[name] = 0 if allow_nonfinite else finite.count_nonfinite(array)
            flat[name] = jnp.asarray(array, "float32")
        with _as_pipeline_error():
            finite.refuse(counts, self.where, "allow_nonfinite=True in Python")
        return nested(flat)

    def constants(self) -> dict:
        """The prediction's constants, empty for most; raises what `open` does."""
        if not constant_shapes(self.description.config):
            return {}
        tensors = self._checked_tensors(self.choose("")).items()
        flat = {name: tensor.read() for name, tensor in tensors}
        return nested(flat)[CONSTANTS]

    def choose(self, ema: str) -> str:
        """The set called `ema` ("": the usual one); PipelineError where there is none.

        Published weights are one set without a name.
        """
        if not ema or ema in self.averages:
            return ema or self.averages[0]
        if alike := [one for one in self.averages if _is_same_decay(one, ema)]:
            return alike[0]
        if self.posthoc and (name := posthoc.canonical(ema)):
            return name
        if self.averages == ("",):
            raise PipelineError(
                f"{self.where} holds one set of weights, so there is no average "
                f"{ema!r} to choose: leave it away, or load the run's workdir."
            )
        raise PipelineError(
            f"This run has no average {ema!r}; choose one of "
            f"{', '.join(self.averages)}{', posthoc:SIGMA_REL' * self.posthoc}."
        )

    def origin(self, ema: str) -> str:
        """Where a set of weights comes from, in words."""
        if not ema:
            return self.description.origin
        step, name = self.description.step, self.description.config.name
        which = "without averaging" if ema == RAW else in_words(ema)
        return f"step {step:,} of the run {name!r}, {which}"


def _is_same_decay(name: str, asked: str) -> bool:
    """Whether two texts are one number, such as 0.9 and 0.90."""
    try:
        return float(name) == float(asked)
    except ValueError:
        return False


def constant_shapes(config: Experiment) -> dict:
    """The prediction's constants beside the parameters, as shapes; empty for most."""
    shapes = config.prediction.constant_shapes(config.model.channels)
    return {CONSTANTS: shapes} if shapes else {}


def find(name: str | pathlib.Path, revision: str | None = None) -> WeightsRef:
    """The weights called `name`; their parameters are not read yet.

    `name` is a published folder, a `.safetensors` file of ours or a run's workdir, also
    on gs:// or s3://, or, where nothing lies at such a path, a model that comes with
    the package ("emoji"), or "organisation/name" on the Hugging Face Hub, at
    `revision`. A revision may also follow the name after an "@". A `pathlib.Path` is
    never looked for on the Hub. Raises PipelineError, or CheckpointError for a damaged
    checkpoint.
    """
    path = _locate(name, revision)
    if path.is_file() and path.suffix == ".safetensors":
        return _in_file(path)
    if (path / "checkpoints").is_dir():
        return _of_run(path)
    if path.is_dir():
        return _in_folder(path)
    raise PipelineError(
        f"No weights at {path}: give a published folder, a .safetensors file written "
        "by Pipeline.save, a training run's workdir (it holds checkpoints/), or the "
        f"name of a model that comes with the package "
        f"({', '.join(resources.assets())}). {CONVERT}"
    )


def _locate(name: str | pathlib.Path, revision: str | None) -> pathlib.Path:
    """The path that `name` is, or that files of a store or the Hub were saved to."""
    if remote.located(name):
        return remote.readable_path(name, "The name of the weights", PipelineError)
    if isinstance(name, str):
        name = name.removeprefix("hf://")
    path = pathlib.Path(name).expanduser()
    shipped = resources.asset(str(name))
    named = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([^@]+))?", str(name))
    if revision and (path.exists() or shipped is not None):
        raise PipelineError(
            f"{name} lies on this disk and has no revision {revision!r}: leave the "
            "revision away."
        )
    if shipped is not None and not path.exists():
        return shipped
    if path.suffix == ".safetensors" and not path.exists():
        raise PipelineError(f"There is no file {path}.")
    if path.exists() or isinstance(name, pathlib.Path) or not named:
        return path
    wanted = [CONFIG, WEIGHTS, INDEX, "model-*.safetensors"]
    try:
        return hub.fetch(named[1], wanted, revision or named[2])
    except hub.HubError as error:
        raise PipelineError(f"There is no {path} on this disk, and {error}") from error


def _of_run(workdir: pathlib.Path) -> WeightsRef:
    with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as saved:
        step = saved.latest()
        if step is None:
            raise PipelineError(
                f"{workdir}/checkpoints holds no complete checkpoint yet: train first."
            )
        config = on_any_devices(saved.config(step))
        own_names = saved_class_names(saved.data(step))

    def tensors(ema: str) -> dict[str, LazyTensor]:
        whole = sharding.replicated(config.mesh.build())
        shapes, constants = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=whole),
            (build.network(config).shapes(), constant_shapes(config)),
        )
        with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as saved:
            read = functools.partial(saved.restore_weights, step, shapes)
            if ema in averages:
                params = read(ema)
            else:
                own = {n: read(n) for n in averages if n.startswith(posthoc.PREFIX)}
                params = posthoc.at_checkpoint(workdir, step, ema, own)
            if constants:
                prediction = saved.restore_constants(step, constants[CONSTANTS])
                params |= {CONSTANTS: prediction}
        flat = by_path(params)
        return {name: LazyTensor.of(array) for name, array in flat.items()}

    names = class_names.of_run(config, own_names)
    description = Description(config=config, class_names=names, step=step)
    averages = (*config.average_names, RAW)
    return WeightsRef(
        where=str(workdir),
        description=description,
        averages=averages,
        tensors=tensors,
        posthoc=config.posthoc is not None,
    )


def _in_file(path: pathlib.Path) -> WeightsRef:
    with _as_pipeline_error():
        tensors = reader.tensors(path)
    with _as_pipeline_error():
        data = json_files.parsed(safe.metadata(path).get(FORMAT, "null"), path)
    if not isinstance(data, dict):
        raise PipelineError(
            f"{path} was not written by Pipeline.save: its metadata hold no "
            f"{FORMAT!r}, and so no config. {CONVERT}"
        )
    return WeightsRef(
        where=str(path),
        description=Description.from_dict(data, str(path)),
        averages=("",),
        tensors=lambda _: tensors,
    )


def _in_folder(folder: pathlib.Path) -> WeightsRef:
    data = _read_config(folder)
    return WeightsRef(
        where=str(folder),
        description=Description.from_dict(data, f"{folder}/{CONFIG}"),
        averages=("",),
        tensors=lambda _: reader.tensors(folder),
    )


@contextlib.contextmanager
def _as_pipeline_error() -> Iterator[None]:
    """What is wrong with weights is told as whoever loads a pipeline expects."""
    try:
        yield
    except WeightsError as error:
        raise PipelineError(str(error)) from error


def _read_config(folder: pathlib.Path) -> dict:
    """What config.json says; PipelineError where it is absent or not ours."""
    try:
        with _as_pipeline_error():
            data = json_files.read(folder / CONFIG)
    except FileNotFoundError:
        foreign = [p.name for p in folder.iterdir() if p.suffix in FOREIGN]
        only = f" (only {', '.join(sorted(foreign)[:5])})" if foreign else ""
        raise PipelineError(
            f"No weights at {folder} that can be loaded: it holds no {CONFIG}{only}. A"
            " published folder has one, and is written anew where writing was cut "
            f"short; a training run's workdir holds checkpoints/. {CONVERT}"
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PipelineError(
            f"{folder}/{CONFIG} is not of the format {FORMAT!r}: no published folder of"
            f" ours, nor the workdir of a run that has saved something. {CONVERT}"
        )
    return data


def is_ours(path: pathlib.Path) -> bool:
    """Whether something at a path has one of our formats, be it damaged or not."""
    if (path / "checkpoints").is_dir():
        return True
    try:
        if (path / CONFIG).is_file():
            data: Any = json_files.read(path / CONFIG)
            return data["format"] == FORMAT
        return path.suffix == ".safetensors" and FORMAT in safe.metadata(path)
    except Exception:  # whoever opens it next says what is wrong
        return False


def cast(params: dict, constants: dict, dtype: str) -> dict[str, LazyTensor]:
    """Parameters by path, as one of `DTYPES`, to be written; PipelineError else.

    The prediction's `constants` keep their types.
    """
    if dtype not in DTYPES:
        raise PipelineError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}.")
    flat = by_path(params).items()
    tensors = {name: np.asarray(a, jnp.dtype(dtype)) for name, a in flat}
    tensors |= {f"{CONSTANTS}/{name}": np.asarray(a) for name, a in constants.items()}
    return {name: LazyTensor.of(array) for name, array in tensors.items()}


def write_file(
    path: pathlib.Path, tensors: Mapping[str, LazyTensor], description: Description
) -> None:
    """Write parameters and description as one `.safetensors` file, or nothing."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        safe.write(path, tensors, {FORMAT: json.dumps(description.to_dict())})


def write_folder(
    folder: pathlib.Path,
    tensors: Mapping[str, LazyTensor],
    description: Description,
    *,
    picture: np.ndarray | None = None,
    name: str = "",
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Write a published folder, or replace the one that lies there.

    The tensors, by path, are read part by part and keep their types; `advance` is told
    the bytes after each part. `picture`, uint8 [h, w, 3], is shown in the card, which
    tells to load the weights by `name` ("": the folder's path). Where they cannot be
    read or written, all stays as it was. Raises PipelineError, for a workdir as well.
    """
    if (folder / "checkpoints").exists():
        raise PipelineError(
            f"{folder} is the workdir of a training run: export to another folder."
        )
    dtype = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
    card = description.card(name or str(folder), dtype, picture is not None)
    config = json.dumps(description.to_dict(), indent=1)
    # The config comes last: a folder that was cut short has none, and is refused.
    with (
        _writing(folder),
        atomic_files(folder, last=CONFIG, optional=(INDEX, PICTURE)) as partial,
    ):
        safe.write(partial / WEIGHTS, tensors, {"format": FORMAT}, advance)
        if picture is not None:
            save_png(partial / PICTURE, picture)
        (partial / CARD).write_text(card, "utf-8")
        (partial / CONFIG).write_text(config, "utf-8")


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Turns a failed write into a PipelineError that says what to do."""
    try:
        yield
    except OSError as error:
        raise PipelineError(
            f"{path} cannot be written ({error}): give a path that this user may write "
            "to, on a disk with room."
        ) from error
