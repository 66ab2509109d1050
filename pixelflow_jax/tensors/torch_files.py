"""PyTorch's weight files: mapped, not read, and never more unpickled than tensors.

The only file that imports torch, and only when a file of its kind is opened or written.
"""

import argparse
import importlib
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors.lazy import LazyTensor

INSTALL = "pip install 'pixelflow_jax[teachers]'"


class Inert:
    """Stands for an object of settings in a checkpoint; does nothing, holds nothing."""

    def __init__(self, *arguments: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _plain(*arguments: object) -> dict:
    """Stands for a defaultdict, whose factory is not wanted."""
    return {}


# What training scripts keep beside the tensors: settings. They become `Inert`.
NODES = ("Any", "Integer", "Float", "String", "Boolean")
SETTINGS = (
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    *(f"omegaconf.nodes.{kind}Node" for kind in NODES),
    "typing.Any",
    *(f"builtins.{name}" for name in ("dict", "int", "list", "str", "float", "bool")),
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
)


def opened(path: pathlib.Path) -> object:
    """What a file holds: nested dicts, lists and scalars, with tensors as `LazyTensor`.

    Raises WeightsError where torch is absent, or the file's pickle asks for more
    than tensors and settings: nothing of it is executed. Other exceptions mean that the
    file is damaged.
    """
    torch = _torch(f"Reading {path}")
    # Files older than PyTorch 1.6, such as torchvision's VGG16, cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    known = [(Inert, name) for name in SETTINGS]
    known += [argparse.Namespace, (_plain, "collections.defaultdict")]
    with torch.serialization.safe_globals(known):
        try:
            content = torch.load(path, "cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            wanted = _asked_for(torch, path, error)
            if not wanted:  # torch's own message tells to load the file unsafely
                raise ValueError("it is no pickle of tensors") from error
            raise WeightsError(
                f"{path} is refused, and nothing of it was executed: its pickle asks "
                f"for {', '.join(wanted)}, which no weights need. If you trust where "
                "it comes from, save its tensors alone (torch.save of the state dict, "
                "or safetensors) with the program that wrote it."
            ) from error
    return _tree(torch, content)


def _torch(task: str):
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise WeightsError(
            f"{task} needs the package torch: {INSTALL}, or convert the file to "
            ".safetensors elsewhere."
        ) from error


def _asked_for(torch, path: pathlib.Path, error: Exception) -> list[str]:
    """Functions and classes of a file's pickle that are neither torch's nor known."""
    if zipfile.is_zipfile(path):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    return re.findall(r"GLOBAL (\S+) (?:was not|whose module)", str(error))


def _tree(torch, content: object) -> object:
    if isinstance(content, torch.Tensor):
        return _stored(torch, content)
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if isinstance(content, Mapping):
        return {key: _tree(torch, value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_tree(torch, value) for value in content]
    return content


def _stored(torch, tensor) -> LazyTensor:
    tensor = tensor.detach()
    # numpy has no bfloat16 of its own: the bits travel as integers.
    half = tensor.dtype == torch.bfloat16

    def fetch(i: int | None) -> np.ndarray:
        part = tensor if i is None else tensor[i]
        if half:
            return part.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return part.numpy()

    empty = torch.empty(0, dtype=tensor.dtype)
    dtype = np.dtype(ml_dtypes.bfloat16) if half else empty.numpy().dtype
    return LazyTensor(tuple(tensor.shape), dtype, fetch)


def write(path: pathlib.Path, content: object) -> None:
    """Write nested dicts whose leaves are `LazyTensor` as torch.save does.

    A tensor that stands in several places is written once. Raises WeightsError where
    torch is absent.
    """
    torch = _torch(f"Writing {path}")
    made: dict[int, object] = {}

    def build(node: object) -> object:
        if isinstance(node, Mapping):
            return {key: build(value) for key, value in node.items()}
        if not isinstance(node, LazyTensor):
            return node
        if id(node) not in made:
            made[id(node)] = _tensor(torch, node)
        return made[id(node)]

    with atomic_write(path) as partial:
        torch.save(build(content), partial)


def _tensor(torch, stored: LazyTensor):
    array = stored.read()
    if stored.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))
