"""Pickles of weight files, read without running anything that they ask for.

A pickle is a program: it may call whatever it names. Here every name stands for
something harmless of this file, so that nothing is imported, no storage is allocated
before its tensor is read, and the memory that is used is bounded by the file's size.
Names that no weights need are collected, and stand for `Inert` meanwhile.
"""

import argparse
import collections
import pickle
import re
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from pixelflow_jax.tensors.lazy import LazyTensor

# Types of tensors by torch's names for them, of which some are older ones.
TYPES = {
    name: np.dtype(getattr(np, name, None) or getattr(ml_dtypes, name))
    for name in (
        "float64 float32 float16 bfloat16 complex64 complex128 "
        "int64 int32 int16 int8 uint64 uint32 uint16 uint8 "
        "float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz"
    ).split()
}
TYPES |= {"bool": np.dtype(np.bool_), "half": TYPES["float16"]}
TYPES |= {"float": TYPES["float32"], "double": TYPES["float64"]}
TYPES |= {"short": TYPES["int16"], "int": TYPES["int32"], "long": TYPES["int64"]}
# What a storage's class is called, and the type of its numbers.
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
MOST = 2**28  # bytes that a pickle may have at once; tensors lie outside of it
# The most numbers that a tensor may show of a storage of fewer, by strides of 0.
EXPANDED = 2**20
# The most tuples that one may hold, counted wherever they stand: hashing goes through
# all of them, which a few bytes can make 2**60.
NESTED = 10_000

# Settings and state that training programs keep beside the tensors.
SETTINGS = re.compile(
    r"(omegaconf|torch\.optim|torch\.amp|torch\.cuda\.amp|lightning|lightning_fabric"
    r"|pytorch_lightning|datetime|pathlib|enum|typing|numpy\.random|deepspeed|accelerate"
    r"|transformers\.(training_args|trainer_\w+|integrations))\..*"
    r"|builtins\.(dict|int|long|list|str|unicode|float|bool|complex|slice|range|object)"
    r"|copy_?reg\._reconstructor"
    r"|torch\.(device|Tensor|Generator|nn\.parameter\.Buffer)|numpy\.ndarray"
    r"|torch\._utils\._rebuild_(sparse|nested|meta|qtensor|device)\w*"
    r"|torch\.serialization\._get_layout|collections\.Counter"
)


class Storage(NamedTuple):
    """Numbers of one type in a file: where they begin, and how many there are.

    `read(first, count)` returns a part of them.
    """

    dtype: np.dtype
    count: int
    read: Callable[[int, int], np.ndarray]


class Inert:
    """Stands for an object of settings in a checkpoint; does nothing, holds nothing."""

    def __init__(self, *arguments: object, **named: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, item: object) -> None:
        """Take what a list or a set would."""

    extend = add = append


class Unsafe(Exception):
    """A pickle names what no weights need; holds those names."""

    def __init__(self, names: list[str]):
        super().__init__(", ".join(names))
        self.names = names


class Kind(str):
    """The name of a storage's or of a tensor's type; it cannot be called."""


class Dtype:
    """A type of numpy's, None for those that are no numbers."""

    dtype: np.dtype | None = None

    def __init__(self, name: object, *flags: object):
        if re.fullmatch(r"[biufc]\d+", str(name)):
            self.dtype = np.dtype(str(name))

    def __setstate__(self, state: Any) -> None:
        if self.dtype is not None and state[1] in ("<", ">", "="):
            self.dtype = self.dtype.newbyteorder(state[1])


class Array:
    """An array of numpy's."""

    value: np.ndarray | None = None

    def __init__(self, *arguments: object):
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, content = state
        if isinstance(kind, Dtype) and kind.dtype is not None:
            flat = np.frombuffer(_bytes(content), kind.dtype)
            self.value = flat.reshape(shape, order="F" if is_fortran else "C")


class _Bounded:
    """A file of which no more is read at once than a pickle of weights needs."""

    def __init__(self, file: IO[bytes]):
        self.file = file

    def read(self, count: int) -> bytes:
        if count > MOST:
            raise ValueError("its pickle holds more than names and numbers")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(MOST)


def load(file: IO[bytes], storage: Callable[[tuple], Any]) -> Any:
    """The object of the pickle at a file's place; `storage` finds those it names.

    Raises Unsafe for pickles that name more than tensors and settings, any other
    exception for those that are damaged.
    """
    reader = _Unpickler(_Bounded(file), encoding="utf-8")
    reader.storage = storage
    try:
        content = reader.load()
    except Exception:
        if reader.unknown:  # what stands for it cannot do what was asked of it
            raise Unsafe(sorted(reader.unknown)) from None
        raise
    if reader.unknown:
        raise Unsafe(sorted(reader.unknown))
    return content


_Base: Any = pickle._Unpickler
_OPCODES: dict[int, Any] = _Base.dispatch


TUPLES = (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)


def _counting(load: Callable) -> Callable:
    """An opcode that makes a tuple, which is counted then."""

    def load_and_count(reader: "_Unpickler") -> None:
        load(reader)
        reader.count_tuples()

    return load_and_count


class _Unpickler(_Base):
    """Python's own: that in C reserves as much memory as a pickle says it needs."""

    storage: Callable[[tuple], Any]

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self.unknown: set[str] = set()
        self.nested: dict[int, tuple[tuple, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if full in KNOWN:
            return KNOWN[full]
        kind = STORAGES.get(name, name)
        if module in ("torch", "torch.storage", "torch.cuda") and kind in TYPES:
            return Kind(kind)
        if not SETTINGS.fullmatch(full):
            self.unknown.add(full)
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        return self.storage(pid)

    def load_build(self) -> None:
        """Give an object its state: only those of this file, and none of a class."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Inert | Dtype | Array):
            made.__setstate__(state)
        elif isinstance(made, argparse.Namespace) and isinstance(state, dict):
            vars(made).update(state)
        elif not isinstance(made, collections.OrderedDict | LazyTensor):
            raise ValueError("it gives a state to what has none")

    def load_bytearray8(self) -> None:
        raise ValueError("it holds a bytearray, which no weights need")

    def count_tuples(self) -> None:
        """Refuse a tuple, just made, that unfolds to too many."""
        made = self.stack[-1]
        inside = [item for item in made if type(item) is tuple]
        if not inside:
            return
        count = sum(1 + self.nested.get(id(item), (item, 0))[1] for item in inside)
        if count > NESTED:
            raise ValueError("its tuples are nested too deeply")
        self.nested[id(made)] = made, count  # held, so that its id stays its own

    dispatch: dict[int, Any] = {
        **_OPCODES,
        **{code[0]: _counting(_OPCODES[code[0]]) for code in TUPLES},
        pickle.BUILD[0]: load_build,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }


def dtype_of(kind: object) -> np.dtype:
    """The type of a storage's class or of a tensor, by its name."""
    if isinstance(kind, Kind):
        return TYPES[kind]
    raise ValueError(f"it holds a storage of {str(kind)[:100]}")


def _tensor(
    storage: Storage, offset: int, size: Any, stride: Any, *_: Any
) -> LazyTensor:
    """What `torch._utils._rebuild_tensor_v2` makes, read when it is asked for."""
    shape, steps = tuple(map(int, size)), tuple(map(int, stride))
    if min((0, offset, *shape, *steps)) < 0 or len(shape) != len(steps):
        raise ValueError("a tensor's shape makes no sense")
    numbers = int(np.prod(shape, dtype=object))
    spans = [(n - 1) * step for n, step in zip(shape, steps, strict=True)]
    end = offset + (sum(spans) + 1 if numbers else 0)
    if end > storage.count or numbers > max(storage.count, EXPANDED):
        raise ValueError("a tensor is larger than its storage")

    def fetch(i: int | None) -> np.ndarray:
        first, some, strides = offset, shape, steps
        if i is not None:
            first, some, strides = offset + i * steps[0], shape[1:], steps[1:]
        if 0 in some:
            return np.zeros(some, storage.dtype)
        span = sum((n - 1) * s for n, s in zip(some, strides, strict=True)) + 1
        flat = storage.read(first, span)
        byte_steps = [s * flat.itemsize for s in strides]
        view = np.lib.stride_tricks.as_strided(flat, some, byte_steps, writeable=False)
        return np.ascontiguousarray(view)

    return LazyTensor(shape, storage.dtype, fetch)


def _tensor_v3(
    storage: Storage, offset: int, size: Any, stride: Any, *more: Any
) -> LazyTensor:
    """The same of a storage without a type, which comes behind two other arguments."""
    dtype = dtype_of(more[2])
    width = dtype.itemsize

    def read(first: int, count: int) -> np.ndarray:
        return storage.read(first * width, count * width).view(dtype)

    return _tensor(Storage(dtype, storage.count // width, read), offset, size, stride)


def _parameter(data: object, *_: object) -> object:
    return data


def _typed(build: Any, kind: object, arguments: Any, state: object) -> object:
    """What a tensor with attributes of its own is made by."""
    if build not in BUILDERS:
        raise ValueError("a tensor is made by none of torch's functions")
    return build(*arguments)


def _scalar(kind: Any, content: Any) -> object:
    """A number of numpy's, as Python's own."""
    if not isinstance(kind, Dtype) or kind.dtype is None:
        return Inert()
    return np.frombuffer(_bytes(content), kind.dtype, 1)[0].item()


def _bytes(content: Any) -> bytes:
    if isinstance(content, str):
        return content.encode("latin1")
    if isinstance(content, bytes):
        return content
    raise ValueError("numbers of numpy's are no bytes")


def _encoded(text: str, encoding: str) -> bytes:
    """How pickles of the second protocol hold bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("a text is encoded as no weights need")
    return text.encode("latin1")


def _plain(*arguments: object) -> dict:
    """Stands for a defaultdict, whose factory is not wanted."""
    return {}


def _size(numbers: Any = ()) -> tuple[int, ...]:
    return tuple(map(int, _items(numbers)))


def _items(items: Any = ()) -> list:
    return list(items) if isinstance(items, list | tuple) else []


BUILDERS: tuple[Callable, ...] = (_tensor, _tensor_v3, _parameter)
_UTILS, _NUMPY = "torch._utils", ("numpy.core.multiarray", "numpy._core.multiarray")
KNOWN: Mapping[str, Any] = {
    f"{_UTILS}._rebuild_tensor": _tensor,
    f"{_UTILS}._rebuild_tensor_v2": _tensor,
    f"{_UTILS}._rebuild_tensor_v3": _tensor_v3,
    f"{_UTILS}._rebuild_parameter": _parameter,
    f"{_UTILS}._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _size,
    "collections.OrderedDict": collections.OrderedDict,
    "collections.defaultdict": _plain,
    "argparse.Namespace": argparse.Namespace,
    "builtins.set": _items,
    "builtins.frozenset": _items,
    "_codecs.encode": _encoded,
    "numpy.dtype": Dtype,
    **{f"{module}.scalar": _scalar for module in _NUMPY},
    **{f"{module}._reconstruct": Array for module in _NUMPY},
}
