"""Weight files that a config names: located on disk, in packages, on the Hub."""

import importlib.util
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from pixelflow_jax import remote
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.tensors import hub, mapping, reader
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.mapping import Row


class Origin(NamedTuple):
    """What error messages say of files: whose they are, where to get and put them."""

    network: str  # "DINOv2 vitb14"
    source: str  # an official file, or where to get it
    field: str  # the config field that names the file: "teachers.dino.weights"
    what: str = "weights"
    option: str = "--config."  # what precedes the field on a command line

    @property
    def remedy(self) -> str:
        """What to do."""
        return (
            f"The {self.what} of {self.network} are {self.source}; name the file with "
            f"{self.option}{self.field}=PATH."
        )


def read(weights: str, origin: Origin) -> dict[str, LazyTensor]:
    """All tensors of a weight file, by their official names; none is read yet.

    `weights` is a `.safetensors` file, a file of PyTorch's (`.pth`, `.pt`, `.bin`), a
    folder that transformers saved (shards with an index, too), or
    `hf://organisation/name[/file or folder]`, which is downloaded. Raises WeightsError.
    """
    path = find(weights, origin, ("*.safetensors", "*.safetensors.index.json"))
    return reader.tensors(path)


def load(
    weights: str,
    origin: Origin,
    table: Callable[[dict[str, LazyTensor]], list[Row]],
    *,
    precision: Precision,
    prefix: str = "",
    ignored: str = mapping.NOTHING,
) -> dict:
    """The parameters (numpy) that a weight file holds, of the types of a precision.

    `table` gives the mapping table for the tensors of a file, whose names lose the
    `prefix` that some begin with. Raises WeightsError, for what `read` and
    `mapping.load` do.
    """
    tensors = {k.removeprefix(prefix): t for k, t in read(weights, origin).items()}
    rows = table(tensors)
    name = f"{weights}, read as {origin.network},"
    return mapping.load(rows, tensors, name=name, ignored=ignored, precision=precision)


def find(named: str, origin: Origin, patterns: tuple[str, ...]) -> pathlib.Path:
    """The local path of a file or folder, which `hf://` downloads first.

    Of a folder on the Hugging Face Hub come the files that `patterns` match. Raises
    WeightsError where there is nothing of that name.
    """
    if not named:
        name = f"{origin.option.lstrip('-')}{origin.field}"
        raise WeightsError(f"{name} is empty. {origin.remedy}")
    if named.startswith("hf://"):
        path = _download(named, origin, patterns)
    elif remote.located(named):
        path = remote.readable_path(named, origin.network, WeightsError)
    else:
        path = pathlib.Path(named).expanduser()
    if not path.exists():
        raise WeightsError(f"There is no file {path}. {origin.remedy}")
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
        raise WeightsError(
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
        raise WeightsError(f"{error} {origin.remedy}") from error
    return pathlib.Path(folder, *filter(None, [inside]))
