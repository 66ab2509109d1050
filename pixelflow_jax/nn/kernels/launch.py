"""How Pallas kernels are launched, and cut into programs and into powers of two."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import (
    Backend,
    is_interpreted,
    pl,
    pltpu,
    triton,
)

EPS = 1e-6  # of all norms
SHORTEST = 1e-24  # a column's squared length is at least this
# Tokens a program: the backward pass sums over them, the forward pass need not.
FORWARD_TILES, BACKWARD_TILE = (8, 4, 2, 1), 16
PROGRAMS = 528  # fewer leave parts of a large GPU without work


def block(
    shape: tuple[int | None, ...], *axes: int | None, start: tuple[int, ...] = ()
) -> "pl.BlockSpec":
    """The part of an array that one program sees.

    Its dimension i is cut along axis `axes[i]` of the grid, or not where that is None
    or left out; a size of None is one that the program does not see. `start`: so many
    blocks further on, for each dimension.
    """
    along = (*axes, *[None] * (len(shape) - len(axes)))
    first = start or (0,) * len(shape)

    def place(*program: Any) -> tuple:
        pairs = zip(along, first, strict=True)
        return tuple(i if axis is None else program[axis] + i for axis, i in pairs)

    return pl.BlockSpec(shape, place)


class Launch(NamedTuple):
    """How a kernel is launched: its name, who runs it, and with what.

    `warps` of a program are Triton's; `flops`, of all programs, are what the compiler
    for TPUs plans with.
    """

    name: str
    backend: Backend = "triton"
    warps: int = 4
    flops: int = 0


def launch(
    kernel: Callable[..., None],
    grid: tuple[int, ...],
    inputs: Iterable[tuple],
    outputs: Iterable[tuple],
    how: Launch,
) -> list[Array]:
    """What `kernel(*references)` writes, run once for every place of the grid.

    `inputs` are pairs of an array and its block, `outputs` of a shape and its block.
    """
    arrays, in_specs = zip(*inputs, strict=True)
    shapes, out_specs = zip(*outputs, strict=True)
    moved = sum(math.prod(a.shape) * a.dtype.itemsize for a in (*arrays, *shapes))
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=list(in_specs),
        out_specs=list(out_specs),
        out_shape=list(shapes),
        interpret=is_interpreted(),
        name=how.name,
        **_compiler_params(how, len(grid), moved),
    )(*arrays)


def _compiler_params(how: Launch, axes: int, moved: int) -> dict[str, Any]:
    if is_interpreted():
        return {}
    if how.backend == "triton":
        params = triton.CompilerParams(num_warps=how.warps, num_stages=1)
        return {"compiler_params": params}
    cost = pl.CostEstimate(flops=how.flops, transcendentals=0, bytes_accessed=moved)
    params = pltpu.CompilerParams(dimension_semantics=("parallel",) * axes)
    return {"compiler_params": params, "cost_estimate": cost}


def take_references(structure: Any, references: tuple) -> tuple[Any, list]:
    """References of a tree of arrays (`jax.tree.structure`), and all behind them."""
    count = structure.num_leaves
    return jax.tree.unflatten(structure, references[:count]), list(references[count:])


def cuts(width: int) -> list[tuple[int, int]]:
    """(start, size) of powers of two that make up a row; Triton knows no others."""
    parts, start = [], 0
    while start < width:
        size = 1 << (width - start).bit_length() - 1
        parts.append((start, size))
        start += size
    return parts


def each(function: Callable, *rows: list) -> list:
    """`function` of the parts of one or more rows that are cut alike."""
    return [function(*parts) for parts in zip(*rows, strict=True)]


def total(parts: list[Array]) -> Array:
    """The sum of arrays."""
    return functools.reduce(jnp.add, parts)


def group_of(token: Array, lengths: tuple[int, ...]) -> tuple[Array, Array]:
    """The number of the group that a token of a packed image belongs to; its start."""
    number = start = jnp.int32(0)
    for i in range(1, len(lengths)):
        begin = sum(lengths[:i])
        inside = token >= begin
        number = jnp.where(inside, i, number)
        start = jnp.where(inside, begin, start)
    return number, start


def forward_tile(tokens: int, batch: int) -> int:
    """As many tokens a program as leave enough programs; divides multiples of 8."""
    enough = (t for t in FORWARD_TILES if tokens // t * batch >= PROGRAMS)
    return next(enough, 1)
