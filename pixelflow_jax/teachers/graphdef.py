"""TensorFlow's frozen graphs: nodes and constants, read without TensorFlow.

A GraphDef is a protocol buffer: fields of a number and a wire type, of which these are
read (the rest is skipped): GraphDef.node 1; NodeDef.name 1, op 2, attr 5 (a map: key 1,
value 2); AttrValue.f 4, b 5, tensor 8; TensorProto.dtype 1, shape 2 (dim 2, size 1),
tensor_content 4, float_val 5, int_val 7, int64_val 10.
"""

import math
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# DataType's numbers; other types are not read.
TYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 9: np.int64}
Value = int | memoryview


class Node(NamedTuple):
    """One node: `attributes` are its numbers, truths and tensors, by name."""

    name: str
    op: str
    attributes: dict[str, float | bool | np.ndarray]


def nodes(content: bytes) -> list[Node]:
    """The nodes of a GraphDef; ValueError where the bytes are none."""
    return [
        _node(value)
        for number, value in _fields(memoryview(content))
        if number == 1 and isinstance(value, memoryview)
    ]


def constants(graph: list[Node]) -> dict[str, np.ndarray]:
    """The constants of a graph by name."""
    found = {}
    for node in graph:
        value = node.attributes.get("value")
        if node.op == "Const" and isinstance(value, np.ndarray):
            found[node.name] = value
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            length, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"a field of wire type {wire}")
        if not number or at + length > len(data):
            raise ValueError("a field that reaches beyond its message")
        yield number, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("an integer that does not end")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _bytes(value: Value) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number where bytes should be")
    return value


def _node(data: memoryview) -> Node:
    name = op = ""
    attributes = {}
    for number, value in _fields(data):
        if number == 1:
            name = _bytes(value).tobytes().decode()
        elif number == 2:
            op = _bytes(value).tobytes().decode()
        elif number == 5:
            entry = dict(_fields(_bytes(value)))
            attribute = _attribute(_bytes(entry.get(2, memoryview(b""))))
            if attribute is not None:
                attributes[_bytes(entry[1]).tobytes().decode()] = attribute
    return Node(name, op, attributes)


def _attribute(data: memoryview) -> float | bool | np.ndarray | None:
    for number, value in _fields(data):
        if number == 4:
            return struct.unpack("<f", _bytes(value))[0]
        if number == 5:
            return bool(value)
        if number == 8:
            return _tensor(_bytes(value))
    return None


def _tensor(data: memoryview) -> np.ndarray | None:
    """A TensorProto, or None for a type that is not read."""
    dtype, shape, content = 0, (), None
    floats: list[memoryview] = []
    integers: list[int] = []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 2:
            shape = _shape(_bytes(value))
        elif number == 4:
            content = _bytes(value)
        elif number == 5:
            floats.append(_bytes(value))
        elif number in (7, 10):
            integers += [value] if isinstance(value, int) else _packed(value)
    if dtype not in TYPES:
        return None
    kind = np.dtype(TYPES[dtype])
    if content:
        listed = np.frombuffer(content, kind.newbyteorder("<"))
    elif floats:
        listed = np.frombuffer(b"".join(floats), "<f4")
    else:
        signed = [i - (1 << 64) if i >> 63 else i for i in integers]
        listed = np.array(signed or [0], np.int64)
    size = math.prod(shape)
    if len(listed) > size:
        raise ValueError(f"{len(listed)} values for a tensor of shape {shape}")
    # Where values are fewer than the tensor has, the last one stands for the rest.
    filled = np.full(size, listed[-1] if len(listed) else 0, kind)
    filled[: len(listed)] = listed
    return filled.reshape(shape)


def _packed(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def _shape(data: memoryview) -> tuple[int, ...]:
    sizes = []
    for number, value in _fields(data):
        if number == 2:
            size = dict(_fields(_bytes(value))).get(1, 0)
            sizes.append(size if isinstance(size, int) else 0)
    return tuple(sizes)
