"""PyTorch's weight files: mapped, not read, and never more unpickled than tensors.

The only file that imports torch, and only to write one: reading needs none.
"""

import argparse
import importlib
import io
import pathlib
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors import pickles
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.pickles import Storage

INSTALL = "pip install 'pixelflow_jax[teachers]'"
LOCAL = 30  # bytes of a zip entry's own header, without its name
MAGIC = 0x1950A86A20F9469CFC6C  # how files begin that are older than PyTorch 1.6
# Where a pickle names these, the file is no whole set of weights.
PARTS = {
    "torch.distributed.": "one process's part of tensors that were split (FSDP or "
    "tensor parallel): merge the parts with the program that wrote them, such as "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER OUT.pt`",
    "__torch__.": "a program of TorchScript: save the state dict that it was made of",
    "torch.nn.modules.": "a whole module: save its state dict instead",
}


def opened(path: pathlib.Path) -> object:
    """What a file holds: nested dicts, lists and scalars, with tensors as `LazyTensor`.

    Raises WeightsError where the file's pickle asks for more than tensors and settings:
    nothing of it is executed. Other exceptions mean that the file is damaged.
    """
    try:
        # Files older than PyTorch 1.6, such as torchvision's VGG16, are no archives.
        read = _archive if zipfile.is_zipfile(path) else _legacy
        return _tree(read(path), {})
    except pickles.Unsafe as error:
        raise WeightsError(_refusal(path, error.names)) from error


def _refusal(path: pathlib.Path, names: list[str]) -> str:
    for prefix, meaning in PARTS.items():
        if any(name.startswith(prefix) for name in names):
            return f"{path} holds {meaning}. Nothing of it was executed."
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (
        f"{path} is refused, and nothing of it was executed: its pickle asks for "
        f"{', '.join(names[:5])}{more}, which no weights need. If you trust where it "
        "comes from, save its tensors alone (torch.save of the state dict, or "
        "safetensors) with the program that wrote it."
    )


def _archive(path: pathlib.Path) -> Any:
    """The object of a file of PyTorch 1.6 or later: a zip without compression."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        entries = {entry.filename: entry for entry in archive.infolist()}
        main = [name for name in entries if name.endswith("/data.pkl")]
        if len(main) != 1:
            raise ValueError("it is an archive without a pickle of tensors")
        folder = main[0].removesuffix("data.pkl")
        if entries.get(f"{folder}byteorder"):
            with archive.open(f"{folder}byteorder") as said:
                order = said.read(len(b"little") + 1)  # it may unpack to gigabytes
            if order != b"little":
                raise ValueError(f"its numbers are in the order {order!r}")

        def storage(pid: tuple) -> Storage:
            _, kind, key, _, count = pid[:5]
            entry = entries[f"{folder}data/{key}"]
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("its tensors are compressed")
            start = entry.header_offset + LOCAL + _names_length(file, entry)
            dtype = pickles.dtype_of(kind)
            return _storage(path, dtype, int(count), start, entry.file_size)

        content = entries[main[0]]
        is_stored = content.compress_type == zipfile.ZIP_STORED
        if not is_stored or content.file_size > pickles.MOST:
            raise ValueError("its pickle is compressed, or larger than any of weights")
        return pickles.load(io.BytesIO(archive.read(content)), storage)


def _names_length(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """How many bytes of names lie between an entry's header and its content."""
    file.seek(entry.header_offset + LOCAL - 4)
    return sum(struct.unpack("<HH", file.read(4)))


def _storage(
    path: pathlib.Path, dtype: np.dtype, count: int, start: int, most: int
) -> Storage:
    """`count` numbers from byte `start` on, of `most` bytes that are there."""
    if not 0 <= count * dtype.itemsize <= most:
        raise ValueError("a storage is larger than its part of the file")

    # Read, not mapped: mapped pages would count as this process's memory.
    def read(first: int, some: int) -> np.ndarray:
        numbers = np.fromfile(path, dtype, some, offset=start + first * dtype.itemsize)
        if len(numbers) < some:
            raise WeightsError(f"{path} ends before its tensors do: download it again.")
        return numbers

    return Storage(dtype, count, read)


def _legacy(path: pathlib.Path) -> Any:
    """The object of an older file: pickles one after the other, then the numbers."""
    size, starts, wanted = path.stat().st_size, {}, {}
    with open(path, "rb") as file:

        def head() -> Any:
            return pickles.load(file, lambda pid: pid)

        if head() != MAGIC:
            raise ValueError("it is no file of PyTorch's")
        for _ in ("the version", "what the machine was like"):
            head()

        def storage(pid: tuple) -> Storage:
            _, kind, key, _, count, *view = pid
            first = view[0][1] if view and view[0] else 0
            count = view[0][2] if view and view[0] else int(count)
            dtype = pickles.dtype_of(kind)
            if not 0 <= count * dtype.itemsize <= size:
                raise ValueError("a storage is larger than the file")
            wanted.setdefault(key, dtype)

            def read(begin: int, some: int) -> np.ndarray:
                return starts[key].read(first + begin, some)

            return Storage(dtype, count, read)

        content = pickles.load(file, storage)
        for key in head():
            (count,) = struct.unpack("<q", file.read(8))
            start, dtype = file.tell(), wanted[key]
            starts[key] = _storage(path, dtype, count, start, size - start)
            file.seek(count * dtype.itemsize, 1)
    return content


def _tree(content: Any, seen: dict[int, object]) -> object:
    """The same, with plain dicts and lists; what stands in several places, once."""
    if id(content) in seen:
        return seen[id(content)]
    if isinstance(content, pickles.Array):
        return content if content.value is None else LazyTensor.of(content.value)
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if isinstance(content, Mapping):
        made: Any = {}
        seen[id(content)] = made
        made |= {key: _tree(value, seen) for key, value in content.items()}
        return made
    if isinstance(content, list | tuple) and not isinstance(content, Storage):
        made = []
        seen[id(content)] = made
        made += [_tree(value, seen) for value in content]
        return made
    return content


def _torch(task: str):
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise WeightsError(
            f"{task} needs the package torch: {INSTALL}, or convert the file to "
            ".safetensors elsewhere."
        ) from error


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
