"""Attention of short sequences on Hopper GPUs by Mosaic: what both passes share.

A head of an image lies in shared memory as a whole, in the order in which the matrix
units read it, and is computed in tiles of rows.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pixelflow_jax.nn.kernels.backends import pl
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import Index, room_beside
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    NARROWEST,
    ROWS,
    Hide,
    Sizes,
    hide,
)

WARPGROUPS = 2  # of the backward pass
MOST_WARPGROUPS = 4  # of the forward pass
FORWARD_SLOTS = 3  # keys, values and queries
LEAST = WARPGROUPS * ROWS  # tokens: a tile for each
ACROSS = 64  # tokens that a tile looks at at a time
SIZES = (
    f"half precision, {LEAST} tokens or more in multiples of {NARROWEST}, as many "
    "queries as keys, head widths in multiples of 8 up to 128, and heads that fit into "
    "shared memory, such as 288 tokens of width 72"
)


def supports(n: int, width: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    known = n >= LEAST and not n % NARROWEST and not width % 8 and 8 <= width <= 128
    if not known or dtype.itemsize != 2:
        return False
    sizes = Sizes(n, n, width)
    return forward_shares(sizes)[1] >= FORWARD_SLOTS and backward_slots(sizes) >= 2


def forward_shares(sizes: Sizes, turned: bool = False) -> tuple[int, int]:
    """How many warpgroups the forward pass has, and tiles of each beside the rest.

    A warpgroup for each tile, up to as many as have registers and room enough, as long
    as none of them computes more tiles for it. `turned`: angles are beside all keys and
    values, too. Without a place for everything there are too few tiles.
    """
    most = min(sizes.tiles, MOST_WARPGROUPS)
    fewest = -(-sizes.tiles // -(-sizes.tiles // most))
    ordered = 2 * sizes.n * sizes.wide
    angles = [2 * sizes.n * sizes.width] if turned else []
    for warpgroups in range(most, fewest - 1, -1):
        sums = 4 * warpgroups * ROWS
        room = room_beside(ordered, ordered, sums, *angles)
        slots = room // (2 * warpgroups * ROWS * sizes.width)
        if slots >= FORWARD_SLOTS:
            break
    return warpgroups, min(slots, FORWARD_SLOTS + 1)


def backward_slots(sizes: Sizes) -> int:
    """A warpgroup's tiles in the backward pass, beside four whole arrays."""
    arrays, vectors = [2 * sizes.n * sizes.wide] * 4, [4 * 2 * sizes.numbers] * 2
    room = room_beside(*arrays, *vectors)
    return min(room // (2 * WARPGROUPS * ROWS * sizes.width), 3)


def turns(sizes: Sizes) -> bool:
    """Whether the forward pass has room for the angles of queries and keys."""
    return forward_shares(sizes, turned=True)[1] >= FORWARD_SLOTS


def over_blocks(sizes: Sizes, size: int, block: Callable, carry: Any) -> Any:
    """`carry = block(start, size, carry, masked)` over all tokens that are looked at.

    In a loop as far as blocks are whole; behind them a shorter one, or one of which
    only a part is looked at.
    """
    whole = sizes.length // size

    def body(i, carry: Any) -> Any:
        return block(pl.multiple_of(i * size, NARROWEST), size, carry)

    if whole:
        carry = jax.lax.fori_loop(0, whole, body, carry)
    start = whole * size
    if start == sizes.length:
        return carry
    rest = -(-(sizes.length - start) // NARROWEST) * NARROWEST
    return block(start, rest, carry, masked=start + rest > sizes.length)


def seen_of(sizes: Sizes, start: Index) -> Hide:
    """Hides logits of tokens, the first of which is `start`, that are not looked at."""
    return functools.partial(
        hide, start=start, length=sizes.length, value=-jnp.inf, axis=1
    )
