"""Bytes that attention moves on a TPU, by length: the plain formula beside the kernel.

pip install libtpu
python -m benchmarks.tpu_attention --json benchmarks/results/tpu_attention.jsonl

Forward and backward of 16 heads of width 72 are compiled for one v5e, with no TPU at
hand. Counted is what each operation reads from the chip's memory and writes there, as
the compiler places arrays, whole tiles each; what it keeps in the vector memory beside
the cores is free. An array that the kernel reads block by block counts once.
"""

import argparse
import math
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from benchmarks import tpu  # first: it sets the environment

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
from jax import Array  # isort: skip

from benchmarks import harness  # isort: skip
from pixelflow_jax import sharding  # isort: skip
from pixelflow_jax.nn.attention import attend  # isort: skip
from pixelflow_jax.nn.kernels.choice import Attention  # isort: skip

HEADS, HEAD_WIDTH = 16, 72  # of the XL models
# Tokens and images.
PLACES = ("256x8", "256x16", "256x20", "256x24", "256x32", "1024x4", "4096x1")
ARRAY = re.compile(r"\b(bf16|f32|s32|u32|s8|pred)\[([\d,]*)\]\{([\d,]*)([^}]*)\}")
BYTES = {"bf16": 2, "f32": 4, "s32": 4, "u32": 4, "s8": 1, "pred": 1}
OPERATION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.+?) ([a-z][\w-]*)\((.*)")
NAME = re.compile(r"%([\w.\-]+)")
ELSEWHERE = "S("  # in a layout: not in the chip's memory
# What moves nothing: names for arrays that are there.
NAMES = ("parameter", "constant", "bitcast", "tuple", "get-tuple-element", "copy-done")


class Operation(NamedTuple):
    """One of a compiled program's, with the names of what it reads."""

    name: str
    result: str
    kind: str
    operands: list[str]


def moved(program: str) -> int:
    """Bytes from and to the chip's memory in a compiled program without loops."""
    found = list(operations(program))
    results = {operation.name: operation.result for operation in found}
    total = 0
    for operation in found:
        if operation.kind in NAMES:
            continue
        written = sizes(operation.result)
        if operation.kind == "copy-start":  # beside the copy: its source, and a flag
            written = written[:1]
        total += sum(written)
        total += sum(sum(sizes(results.get(name, ""))) for name in operation.operands)
    return total


def operations(program: str) -> Iterator[Operation]:
    """The operations of the entry computation, in turn."""
    for line in program[program.index("\nENTRY") :].splitlines():
        if match := OPERATION.match(line):
            name, result, kind, rest = match.groups()
            yield Operation(name, result, kind, NAME.findall(rest.split(")")[0]))


def sizes(text: str) -> list[int]:
    """Bytes in the chip's memory of each array in a piece of HLO."""
    return [_size(*match) for match in ARRAY.findall(text)]


def _size(kind: str, shape: str, order: str, rest: str) -> int:
    """Bytes of an array whose last two axes, in its layout, fill whole tiles."""
    if ELSEWHERE in rest:
        return 0
    lengths = [int(length) for length in shape.split(",") if length]
    axes = [int(axis) for axis in order.split(",") if axis]
    tile = re.search(r"T\(([\d,]+)\)", rest)
    tiles = reversed(tile[1].split(",")) if tile else ()
    for axis, multiple in zip(axes, map(int, tiles), strict=False):
        lengths[axis] = math.ceil(lengths[axis] / multiple) * multiple
    return BYTES[kind] * math.prod(lengths)


def compiled(tokens: int, images: int, implementation: Attention) -> object:
    """Attention and its gradients as a program for one chip."""

    def both(q: Array, k: Array, v: Array, gradient: Array) -> tuple:
        run = lambda q, k, v: attend(q, k, v, implementation=implementation)
        out, backward = jax.vjp(run, q, k, v)
        return out, backward(gradient)

    mesh = sharding.MeshShape().build(tpu.tpu_devices("v5e:2x2")[:1])
    shape = (images, tokens, HEADS, HEAD_WIDTH)
    one = tpu.on(sharding.replicated(mesh), jax.ShapeDtypeStruct(shape, jnp.bfloat16))
    return tpu.compiled(both, mesh, *[one] * 4)


def measure(place: str, implementation: Attention) -> dict:
    """A row of the table: bytes, and memory beside inputs and results."""
    tokens, images = map(int, place.split("x"))
    program = compiled(tokens, images, implementation)
    memory = program.memory_analysis()
    return {
        "tokens": tokens,
        "images": images,
        "attention": implementation,
        "gbytes": moved(program.as_text()) / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
    }


def main() -> None:
    """Compile every length, and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--places", nargs="+", default=PLACES, help="TOKENSxIMAGES")
    parser.add_argument("--json", type=pathlib.Path, help="append the record here")
    args = parser.parse_args()
    ways: tuple[Attention, ...] = ("xla", "splash")
    rows = [measure(place, way) for place in args.places for way in ways]
    harness.report(rows, args.json)


if __name__ == "__main__":
    main()
