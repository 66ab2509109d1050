"""Safetensors files: opened without reading them, written without holding them.

A file is the length of its header in 8 bytes, the header in JSON, and the tensors' raw
little-endian bytes.
"""

import errno
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping

import numpy as np
from safetensors import safe_open

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors import json_files
from pixelflow_jax.tensors.lazy import DTYPES, LazyTensor

LENGTH = 8  # bytes, of the header's length
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def opened(path: pathlib.Path) -> dict[str, LazyTensor]:
    """The tensors of a file, by name; raises WeightsError for unknown types.

    Any exception of safetensors' is let through: the header is wrong, or the file cut.
    """
    with safe_open(path, "np"):
        pass  # checks the header against the file, byte by byte
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    unknown = {about["dtype"] for about in header.values()} - set(DTYPES)
    if unknown:
        raise WeightsError(
            f"{path} holds tensors of type {', '.join(sorted(unknown))}; "
            f"{', '.join(DTYPES)} can be read."
        )
    start = LENGTH + length
    return {name: _stored(path, start, about) for name, about in header.items()}


def metadata(path: pathlib.Path) -> dict[str, str]:
    """The texts that come with a file's tensors."""
    json_files.refuse_pipes(path)
    with safe_open(path, "np") as file:
        return file.metadata() or {}


def _stored(path: pathlib.Path, start: int, about: dict) -> LazyTensor:
    shape, dtype = tuple(about["shape"]), DTYPES[about["dtype"]]
    start += about["data_offsets"][0]

    # Read, not mapped: mapped pages would count as this process's memory.
    def fetch(i: int | None) -> np.ndarray:
        part = shape if i is None else shape[1:]
        count = int(np.prod(part, dtype=np.int64))
        offset = start + (i or 0) * count * dtype.itemsize
        return np.fromfile(path, dtype, count, offset=offset).reshape(part)

    return LazyTensor(shape, dtype, fetch)


def write(
    path: pathlib.Path,
    tensors: Mapping[str, LazyTensor],
    about: Mapping[str, str],
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Write tensors, and `about` as metadata, part by part.

    `advance` is told the number of bytes after each part. The file appears whole or not
    at all. Raises OSError, before anything is written where the disk has no room.
    """
    # The largest items first, so that every tensor is aligned to its items.
    order = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict = {"__metadata__": dict(about)}
    end = 0
    for name, tensor in order:
        offsets, end = [end, end + tensor.nbytes], end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % LENGTH)
    if LENGTH + len(text) + end > shutil.disk_usage(path.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    with atomic_write(path) as partial, open(partial, "wb") as file:
        file.write(len(text).to_bytes(LENGTH, "little") + text)
        for _, tensor in order:
            for part in tensor.parts():
                file.write(_bytes(part, tensor.dtype).data)
                advance(part.nbytes)


def _bytes(part: np.ndarray, dtype: np.dtype) -> np.ndarray:
    assert part.dtype == dtype, f"{part.dtype}, not {dtype}"
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8)
