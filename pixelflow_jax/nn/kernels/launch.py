"""How Pallas kernels are launched, and cut into programs and into powers of two.

Triton runs them on GPUs, interpret mode anywhere, which needs no Triton. Pallas is
imported where the first kernel is traced: all else runs with a jax that lacks it.
"""

import functools
import importlib
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

LOG = logging.getLogger(__name__)

EPS = 1e-6  # of all norms
# Tokens a program: the backward pass sums over them, the forward pass need not.
FORWARD_TILES, BACKWARD_TILE = (8, 4, 2, 1), 16
PROGRAMS = 528  # fewer leave parts of a large GPU without work


class LazyModule:
    """A module that is imported where something of it is first asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton
else:
    pl = LazyModule("jax.experimental.pallas")
    triton = LazyModule("jax.experimental.pallas.triton")


def missing() -> str:
    """Why kernels cannot be launched; empty where they can.

    GPUs need Pallas' Triton backend, interpret mode Pallas alone.
    """
    return _unimportable("jax.experimental.pallas" + ".triton" * (not is_interpreted()))


@functools.cache
def _unimportable(module: str) -> str:
    try:
        importlib.import_module(module)
    except ImportError as error:
        what = "Pallas' Triton backend" if module.endswith("triton") else "Pallas"
        return f"jax {jax.__version__} lacks {what} ({error})"
    return ""


@functools.cache  # one line a process
def is_available() -> bool:
    """Whether kernels can be launched; says so once where they cannot."""
    if missing():
        LOG.warning("%s: the compiler does the work of all kernels.", missing())
    return not missing()


def require(asked: str) -> None:
    """Raises ValueError where kernels that were `asked` for cannot be launched."""
    if missing():
        raise ValueError(f'{asked} cannot be had: {missing()}; set it to "auto".')


def is_interpreted() -> bool:
    """Whether kernels run as plain operations, for want of a GPU."""
    return jax.default_backend() != "gpu"


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


def launch(
    kernel: Callable[..., None],
    grid: tuple[int, ...],
    inputs: Iterable[tuple],
    outputs: Iterable[tuple],
    *,
    warps: int,
    name: str,
) -> list[Array]:
    """What `kernel(*references)` writes, run once for every place of the grid.

    `inputs` are pairs of an array and its block, `outputs` of a shape and its block.
    """
    arrays, in_specs = zip(*inputs, strict=True)
    shapes, out_specs = zip(*outputs, strict=True)
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=list(in_specs),
        out_specs=list(out_specs),
        out_shape=list(shapes),
        interpret=is_interpreted(),
        name=name,
        **_compiler_params(warps),
    )(*arrays)


def _compiler_params(warps: int) -> dict[str, Any]:
    if is_interpreted():
        return {}
    return {"compiler_params": triton.CompilerParams(num_warps=warps, num_stages=1)}


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
