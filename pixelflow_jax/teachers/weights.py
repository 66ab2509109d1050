"""Official weight files: finding them, reading them, and fitting them strictly."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import safe_open

from pixelflow_jax.nn.precision import Precision, is_matrix

INSTALL = "pip install 'pixelflow_jax[teachers]'"


class TeacherError(ValueError):
    """Weights of a frozen network are absent, unreadable or another network's."""


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


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, read each time that numpy asks for its values."""

    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        """The values, of the file's own type unless `dtype` is given."""
        return np.asarray(self.values(), dtype)


def read(weights: str, origin: Origin) -> dict[str, Tensor]:
    """All tensors of a weight file, by their official names; none is read yet.

    `weights` is a `.safetensors` file, a file of PyTorch's (`.pth`, `.pt`, `.bin`), a
    folder that transformers saved (shards with an index, too), or
    `hf://organisation/name[/file or folder]`, which is downloaded. Raises TeacherError.
    """
    path = find(weights, origin, ("*.safetensors", "*.safetensors.index.json"))
    tensors: dict[str, Tensor] = {}
    for file in _files(path) if path.is_dir() else [path]:
        tensors |= _read_file(file)
    return tensors


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
    try:
        import huggingface_hub
    except ImportError as error:
        raise TeacherError(
            f"Downloading {weights} needs the package huggingface_hub: {INSTALL}, or "
            f"download the file yourself. {origin.remedy}"
        ) from error
    repository, inside = named.groups()
    wanted = [inside] if inside else list(patterns)
    if inside and pathlib.PurePath(inside).suffix not in READERS:
        wanted = [f"{inside}/{pattern}" for pattern in patterns]
    try:
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=wanted)
    except Exception as error:  # no common base: the network, the name, the disk
        raise TeacherError(
            f"{weights} cannot be downloaded ({first_line(error)}). Where there is no "
            f"network, bring the file. {origin.remedy}"
        ) from error
    return pathlib.Path(folder, *filter(None, [inside]))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The weight files of a folder: one, or the shards that an index names."""
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    found = sorted(path for path in folder.iterdir() if path.suffix in READERS)
    if len(found) == 1:
        return found
    listed = ", ".join(path.name for path in found) or "no weight file"
    raise TeacherError(
        f"{folder} holds neither model.safetensors nor its index, but {listed}: name "
        "one file, or bring the index where these are shards."
    )


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names; all of them must be there."""
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError) as error:
        raise TeacherError(
            f"{index} cannot be read ({first_line(error)}): is it whole? Download it "
            "again."
        ) from error
    absent = sorted(name for name in names if not (index.parent / name).is_file())
    if absent:
        raise TeacherError(f"{index.parent} lacks shards: {', '.join(absent)}")
    return [index.parent / name for name in sorted(names)]


def _read_file(path: pathlib.Path) -> dict[str, Tensor]:
    if path.suffix not in READERS:
        raise TeacherError(
            f"{path} is of no known kind of weight file: {', '.join(READERS)}"
        )
    try:
        return READERS[path.suffix](path)
    except TeacherError:
        raise
    except Exception as error:  # each format and damage has an exception of its own
        raise TeacherError(
            f"{path} cannot be read ({first_line(error)}): is it whole? Download it "
            "again."
        ) from error


def _read_safetensors(path: pathlib.Path) -> dict[str, Tensor]:
    file = safe_open(path, "np")

    def tensor(key: str) -> Tensor:
        shape = tuple(file.get_slice(key).get_shape())
        return Tensor(shape, lambda: file.get_tensor(key))

    return {key: tensor(key) for key in file.keys()}


def _read_torch(path: pathlib.Path) -> dict[str, Tensor]:
    """A state dict; nothing but tensors is unpickled."""
    try:
        import torch
    except ImportError as error:
        raise TeacherError(
            f"Reading {path} needs the package torch: {INSTALL}, or convert the file "
            "to .safetensors elsewhere."
        ) from error
    # Files older than PyTorch 1.6, such as torchvision's VGG16, cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(tensors, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in tensors.values()
    ):
        raise TeacherError(f"{path} holds something else than a dict of tensors.")

    def lazy(tensor: torch.Tensor) -> Tensor:
        values = lambda: tensor.detach().float().numpy()  # numpy knows no bfloat16
        return Tensor(tuple(tensor.shape), values)

    return {key: lazy(tensor) for key, tensor in tensors.items()}


READERS: dict[str, Callable[[pathlib.Path], dict[str, Tensor]]] = {
    ".safetensors": _read_safetensors,
    ".pth": _read_torch,
    ".pt": _read_torch,
    ".bin": _read_torch,
}


def first_line(error: Exception) -> str:
    """What an error is and says, in one line."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


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
        self, tensors: Mapping[str, Tensor | np.ndarray], dtype: object = np.float32
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
    tensors: Mapping[str, Tensor | np.ndarray],
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
