"""Opens weight files of any kind by their path: one file, or a folder of shards."""

import pathlib
from collections.abc import Callable
from typing import Any

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors import json_files, split_folders
from pixelflow_jax.tensors import safetensors_files as safe
from pixelflow_jax.tensors import torch_files as pytorch
from pixelflow_jax.tensors.lazy import LazyTensor

# What transformers and diffusers call the weights in a folder.
WHOLE = (
    "model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
    "diffusion_pytorch_model.bin",
)

MESSAGE = 300  # characters of another library's message

READERS: dict[str, Callable[[pathlib.Path], object]] = {
    ".safetensors": safe.opened,
    ".pth": pytorch.opened,
    ".pt": pytorch.opened,
    ".bin": pytorch.opened,
    ".ckpt": pytorch.opened,
}


def files(path: pathlib.Path) -> list[pathlib.Path]:
    """The weight files of a folder: one, or the shards that an index names.

    A path that is no folder stands for itself. Raises WeightsError.
    """
    if not path.is_dir():
        return [path]
    for name in WHOLE:
        if (path / name).is_file():
            return [path / name]
        index = path / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    if meaning := split_folders.meaning(path):
        raise WeightsError(meaning)
    candidates = sorted(file for file in path.iterdir() if file.suffix in READERS)
    if len(candidates) == 1:
        return candidates
    listed = ", ".join(file.name for file in candidates) or "no weight file"
    raise WeightsError(
        f"{path} holds neither {WHOLE[0]} nor its index, but {listed}: name one file, "
        "or bring the index where these are shards."
    )


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    """The files that an index names; none may be missing."""
    try:
        where: Any = json_files.read(index)
        where = where["weight_map"]
        names = sorted({str(name) for name in where.values()})
    except (LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} cannot be read ({first_line(error)}): is it whole? Download it "
            "again."
        ) from error
    # A name with folders in it would lead out of this one.
    absent = [n for n in names if "/" in n or not (index.parent / n).is_file()]
    if absent:
        raise WeightsError(f"{index.parent} lacks shards: {', '.join(absent)}")
    return [index.parent / name for name in names]


def opened(path: pathlib.Path) -> object:
    """What a file holds, without its tensors' values: they are `LazyTensor`.

    That is a dict of tensors for safetensors; a PyTorch file may nest dicts and lists
    and hold other things. Raises WeightsError.
    """
    if path.suffix not in READERS:
        raise WeightsError(
            f"{path} is of no known kind of weight file: {', '.join(READERS)}"
        )
    json_files.refuse_pipes(path)
    try:
        return READERS[path.suffix](path)
    except WeightsError:
        raise
    except Exception as error:  # each format and damage has an exception of its own
        raise WeightsError(
            f"{path} cannot be read ({first_line(error)}): is it whole? Download it "
            "again."
        ) from error


def tensors(path: pathlib.Path) -> dict[str, LazyTensor]:
    """The tensors of a file or of a folder's files, which hold nothing else.

    Raises WeightsError.
    """
    merged: dict[str, LazyTensor] = {}
    for file in files(path):
        content = opened(file)
        if not isinstance(content, dict) or not all(
            isinstance(value, LazyTensor) for value in content.values()
        ):
            raise WeightsError(f"{file} holds something else than a dict of tensors.")
        merged |= content
    return merged


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    line = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
    return line if len(line) <= MESSAGE else f"{line[:MESSAGE]} ..."
