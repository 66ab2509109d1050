"""PyTorch's files, written without it, also such as it would never write."""

import io
import pathlib
import pickle
import struct
import zipfile
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

UTILS = "torch._utils"
STORAGES = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage"}


class Global(str):
    """What a pickle names: a module's function or class, "module name"."""


class Call(NamedTuple):
    """What a pickle calls, and with what."""

    function: Any
    arguments: tuple


class Pid(NamedTuple):
    """A storage: its class, key and count of numbers."""

    kind: str
    key: str
    count: int


class Pickler(pickle._Pickler):
    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj):
        if isinstance(obj, Pid):
            return "storage", Global(f"torch {obj.kind}"), obj.key, "cpu", obj.count
        return None

    def save_name(self, obj):
        self.write(b"c" + obj.replace(" ", "\n").encode() + b"\n")

    def save_call(self, obj):
        self.save(obj.function)
        self.save(obj.arguments)
        self.write(pickle.REDUCE)

    dispatch[Global] = save_name
    dispatch[Call] = save_call


def dumped(content: object) -> bytes:
    file = io.BytesIO()
    Pickler(file, 2).dump(content)
    return file.getvalue()


def save(path: pathlib.Path, content: object) -> pathlib.Path:
    """Write nested dicts and lists of arrays and of calls as torch.save does."""
    stored: list[np.ndarray] = []
    pickled = dumped(_with_tensors(content, stored))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(stored):
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def save_old(path: pathlib.Path, content: object) -> pathlib.Path:
    """The same as PyTorch 1.5 does."""
    stored: list[np.ndarray] = []
    whole = _with_tensors(content, stored)
    with open(path, "wb") as file:
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, whole):
            file.write(dumped(part))
        file.write(dumped([str(key) for key in range(len(stored))]))
        for array in stored:
            file.write(struct.pack("<q", array.size) + array.tobytes())
    return path


def tensor(array: np.ndarray, key: int) -> Call:
    """What torch calls to make a tensor of a storage."""
    steps = [step // array.itemsize for step in np.ascontiguousarray(array).strides]
    where = (0, array.shape, tuple(steps), False, Call(ORDERED, ()))
    name = array.dtype.name
    if array.dtype.str[1:] in STORAGES:
        pid = Pid(STORAGES[array.dtype.str[1:]], str(key), array.size)
        return Call(Global(f"{UTILS} _rebuild_tensor_v2"), (pid, *where))
    pid = Pid("storage UntypedStorage".split()[1], str(key), array.nbytes)
    made = Global(f"{UTILS} _rebuild_tensor_v3")
    return Call(made, (pid, *where, Global(f"torch {name}")))


ORDERED = Global("collections OrderedDict")
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


def _with_tensors(content: Any, stored: list[np.ndarray]) -> Any:
    if isinstance(content, dict):
        return {key: _with_tensors(value, stored) for key, value in content.items()}
    if isinstance(content, list):
        return [_with_tensors(value, stored) for value in content]
    if isinstance(content, np.ndarray):
        stored.append(content)
        return tensor(content, len(stored) - 1)
    return content
