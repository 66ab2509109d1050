"""How Pallas kernels on tokens are cut into programs and into powers of two."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

EPS = 1e-6  # of all norms
# Tokens a program: the backward pass sums over them, the forward pass need not.
FORWARD_TILES, BACKWARD_TILE = (8, 4, 2, 1), 16
PROGRAMS = 528  # fewer leave parts of a large GPU without work


def cuts(width: int) -> list[tuple[int, int]]:
    """(start, size) of powers of two that make up a row; Triton knows no others."""
    found, start = [], 0
    while start < width:
        size = 1 << (width - start).bit_length() - 1
        found.append((start, size))
        start += size
    return found


def each(function: Callable, *rows: list) -> list:
    """`function` of the parts of one or more rows that are cut alike."""
    return [function(*parts) for parts in zip(*rows, strict=True)]


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
