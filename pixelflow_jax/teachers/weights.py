"""Official weight files: finding them, reading them, and fitting them strictly."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from pixelflow_jax.weightfiles import reader
from pixelflow_jax.weightfiles.pytorch import INSTALL
from pixelflow_jax.weightfiles.stored import Stored, WeightFileError


class TeacherError(ValueError):
    """Weights of a frozen network are absent, unreadable or another network's."""


class Origin(NamedTuple):
    """What error messages say of weights: whose they are, where to get and put them."""

    network: str  # "DINOv2 vitb14"
    source: str  # an official file or where it is found
    field: str  # the config field that names the file: "teachers.dino.weights"

    @property
    def remedy(self) -> str:
        """What to do."""
        return (
            f"The weights of {self.network} are {self.source}; name the file with "
            f"--config.{self.field}=PATH."
        )

    def described(self, file: str) -> str:
        """A file and what it should hold, as the subject of a sentence."""
        return f"{file}, read as {self.network},"


def read(weights: str, origin: Origin) -> dict[str, Stored]:
    """All tensors of a weight file, by their official names; none is read yet.

    `weights` is a `.safetensors` file, a file of PyTorch's (`.pth`, `.pt`, `.bin`), a
    folder that transformers saved (shards with an index, too), or
    `hf://organisation/name[/file]`, which is downloaded. Raises TeacherError.
    """
    if not weights:
        raise TeacherError(f"config.{origin.field} is empty. {origin.remedy}")
    if weights.startswith("hf://"):
        path = _download(weights, origin)
    else:
        path = pathlib.Path(weights).expanduser()
    if not path.exists():
        raise TeacherError(f"There is no file {path}. {origin.remedy}")
    try:
        return reader.tensors(path)
    except WeightFileError as error:
        raise TeacherError(str(error)) from error


def _download(weights: str, origin: Origin) -> pathlib.Path:
    """The local copy of a file or a model's folder on the Hugging Face Hub."""
    named = re.fullmatch(r"hf://([^/]+/[^/]+)(?:/(.+))?", weights)
    if named is None:
        raise TeacherError(
            f"{weights} must look like hf://organisation/name or "
            f"hf://organisation/name/file. {origin.remedy}"
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise TeacherError(
            f"Downloading {weights} needs the package huggingface_hub: {INSTALL}, or "
            f"download the file yourself. {origin.remedy}"
        ) from error
    repository, file = named.groups()
    wanted = [file] if file else ["*.safetensors", "*.safetensors.index.json"]
    try:
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=wanted)
    except Exception as error:  # no common base: the network, the name, the disk
        raise TeacherError(
            f"{weights} cannot be downloaded ({reader.first_line(error)}). Where there "
            f"is no network, bring the file. {origin.remedy}"
        ) from error
    return pathlib.Path(folder, *filter(None, [file]))


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

    def gather(self, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Our parameter, float32."""

        def one(keys: list[str]) -> np.ndarray:
            parts = [self.layout(np.asarray(tensors[k], np.float32)) for k in keys]
            return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)

        found = [one(keys) for keys in self.keys()]
        return found[0] if self.layers is None else np.stack(found)

    def result(self) -> jax.ShapeDtypeStruct:
        """What `gather` returns, as a shape."""
        part = self.layout(np.empty(self.shape, np.bool_)).shape
        layers = () if self.layers is None else (self.layers,)
        shape = (*layers, *part[:-1], part[-1] * len(self.parts))
        return jax.ShapeDtypeStruct(shape, jnp.float32)


def load(
    rows: Iterable[Row],
    tensors: Mapping[str, np.ndarray],
    name: str,
    ignored: str = r"(?!)",
) -> dict:
    """A nested dict of our parameters, float32, from official tensors.

    Names that match the regular expression `ignored` are known and not used. Raises
    TeacherError with every missing, unexpected and misshapen tensor, which begins with
    `name`.
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
    found = {row.ours: row.gather(tensors) for row in rows}
    return traverse_util.unflatten_dict(found, sep="/")


def shapes(rows: Iterable[Row]) -> dict:
    """What `load` returns, as shapes."""
    found = {row.ours: row.result() for row in rows}
    return traverse_util.unflatten_dict(found, sep="/")
