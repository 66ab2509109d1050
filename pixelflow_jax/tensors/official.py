"""Official weight files: finding them, reading them, and fitting them strictly."""

import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pixelflow_jax.errors import TeacherError, WeightFileError
from pixelflow_jax.nn.precision import Precision, is_matrix
from pixelflow_jax.tensors import hub, reader
from pixelflow_jax.tensors.lazy import LazyTensor


class Origin(NamedTuple):
    """What error messages say of files: whose they are, where to get and put them."""

    network: str  # "DINOv2 vitb14"
    source: str  # an official file or where it is found
    field: str  # the config field that names the file: "teachers.dino.weights"
    what: str = "weights"

    @property
    def remedy(self) -> str:
        """What to do."""
        return (
            f"The {self.what} of {self.network} are {self.source}; name the file with "
            f"--config.{self.field}=PATH."
        )

    def described(self, file: str) -> str:
        """A file and what it should hold, as the subject of a sentence."""
        return f"{file}, read as {self.network},"


def read(weights: str, origin: Origin) -> dict[str, LazyTensor]:
    """All tensors of a weight file, by their official names; none is read yet.

    `weights` is a `.safetensors` file, a file of PyTorch's (`.pth`, `.pt`, `.bin`), a
    folder that transformers saved (shards with an index, too), or
    `hf://organisation/name[/file or folder]`, which is downloaded. Raises TeacherError.
    """
    path = find(weights, origin, ("*.safetensors", "*.safetensors.index.json"))
    try:
        return reader.tensors(path)
    except WeightFileError as error:
        raise TeacherError(str(error)) from error


def find(named: str, origin: Origin, patterns: tuple[str, ...]) -> pathlib.Path:
    """The local path of a file or folder, which `hf://` downloads first.

    Of a folder on the Hugging Face Hub come the files that `patterns` match. Raises
    TeacherError where there is nothing of that name.
    """
    if not named:
        raise TeacherError(f"config.{origin.field} is empty. {origin.remedy}")
    if named.startswith("hf://"):
        path = _download(named, origin, patterns)
    else:
        path = pathlib.Path(named).expanduser()
    if not path.exists():
        raise TeacherError(f"There is no file {path}. {origin.remedy}")
    return path


def packaged(package: str, inside: str) -> str:
    """A file or folder inside a package, which is not imported; "" without it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return ""
    path = pathlib.Path(spec.origin).parent / inside
    return str(path) if path.exists() else ""


def _download(weights: str, origin: Origin, patterns: tuple[str, ...]) -> pathlib.Path:
    """The local copy of a file or a model's folder on the Hugging Face Hub."""
    named = re.fullmatch(r"hf://([^/]+/[^/]+)(?:/(.+))?", weights)
    if named is None:
        raise TeacherError(
            f"{weights} must look like hf://organisation/name or "
            f"hf://organisation/name/file. {origin.remedy}"
        )
    repository, inside = named.groups()
    wanted = [inside] if inside else list(patterns)
    if inside and pathlib.PurePath(inside).suffix not in reader.READERS:
        wanted = [f"{inside}/{pattern}" for pattern in patterns]
    try:
        folder = hub.fetch(repository, wanted)
    except hub.HubError as error:
        raise TeacherError(f"{error} {origin.remedy}") from error
    return pathlib.Path(folder, *filter(None, [inside]))


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our parameters and the official tensors it is made of.

    `ours` is a path ("/" between names), `theirs` the official name. Each tensor has
    the given `shape` before `layout` changes it. A name that holds `{part}` stands for
    `parts`, which go side by side in the last axis, one that holds `{i}` for `layers`,
    which are stacked in a new first axis.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    layout: Callable[[np.ndarray], np.ndarray] = np.asarray
    parts: tuple[str, ...] = ("",)
    layers: int | None = None

    def keys(self) -> list[list[str]]:
        """The official names, those of one layer together."""
        numbers = range(1 if self.layers is None else self.layers)
        return [
            [self.theirs.format(i=i, part=part) for part in self.parts] for i in numbers
        ]

    def gather(
        self, tensors: Mapping[str, LazyTensor | np.ndarray], dtype: object = np.float32
    ) -> np.ndarray:
        """Our parameter as `dtype`; one layer's tensors are alive at a time."""

        def one(keys: list[str]) -> np.ndarray:
            parts = [self.layout(np.asarray(tensors[key])) for key in keys]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)

        keys = self.keys()
        if self.layers is None:
            return np.asarray(one(keys[0]), dtype)
        found = np.empty(self.result().shape, dtype)
        for i, layer in enumerate(keys):
            found[i] = one(layer)
        return found

    def result(self) -> jax.ShapeDtypeStruct:
        """What `gather` returns in float32, as a shape."""
        part = self.layout(np.empty(self.shape, np.bool_)).shape
        layers = () if self.layers is None else (self.layers,)
        shape = (*layers, *part[:-1], part[-1] * len(self.parts))
        return jax.ShapeDtypeStruct(shape, jnp.float32)


def load(
    rows: Iterable[Row],
    tensors: Mapping[str, LazyTensor | np.ndarray],
    name: str,
    ignored: str = r"(?!)",
    precision: Precision | None = None,
) -> dict:
    """A nested dict of our parameters, float32, from official tensors.

    Names that match the regular expression `ignored` are known and not used.
    `precision` has matrices cast to its type as they are read. Raises TeacherError with
    every missing, unexpected and misshapen tensor, which begins with `name`.
    """
    rows = list(rows)
    wanted = {key: row.shape for row in rows for key in sum(row.keys(), [])}
    given = {key for key in tensors if not re.fullmatch(ignored, key)}
    problems = [f"missing: {key}" for key in sorted(set(wanted) - given)]
    problems += [f"unexpected: {key}" for key in sorted(given - set(wanted))]
    problems += [
        f"misshapen: {key}: {tuple(tensors[key].shape)}, not {wanted[key]}"
        for key in sorted(given & set(wanted))
        if tuple(tensors[key].shape) != wanted[key]
    ]
    if problems:
        listed = "\n  ".join(problems)
        raise TeacherError(f"{name} holds other weights than expected:\n  {listed}")
    found = {}
    for row in rows:
        cast = precision and is_matrix(row.ours.split("/")[-1])
        found[row.ours] = row.gather(tensors, precision.dtype if cast else np.float32)
    return traverse_util.unflatten_dict(found, sep="/")


def shapes(rows: Iterable[Row]) -> dict:
    """What `load` returns, as shapes."""
    found = {row.ours: row.result() for row in rows}
    return traverse_util.unflatten_dict(found, sep="/")
