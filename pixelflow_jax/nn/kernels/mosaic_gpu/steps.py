"""Attention on Hopper GPUs by Mosaic: what a tile of rows does with a block of tokens.

The tile is in a warpgroup's registers, the block in shared memory, in the order in
which the matrix units read it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl, plgpu

ROWS = 64  # of a product of a warpgroup
NARROWEST = 16  # lanes and tokens of a product, in half precision
VECTOR = 32  # float32 numbers of 128 bytes, where a copy into shared memory may begin
LOG2E = math.log2(math.e)
Ref = Any  # a reference of Pallas, or one of barriers
Hide = Callable[[Array], Array]  # of logits, columns that are not looked at


class Sizes(NamedTuple):
    """Of one head: tokens, of which the first `length` are looked at, and widths.

    Rows are `width` wide in memory, and `wide` with zeros behind them in products.
    """

    n: int
    length: int
    width: int

    @property
    def wide(self) -> int:
        """The width of rows in products."""
        return -(-self.width // NARROWEST) * NARROWEST

    @property
    def ragged(self) -> bool:
        """Whether the last tile begins earlier, to end with the last token."""
        return self.n % ROWS != 0

    @property
    def tiles(self) -> int:
        """Into how many tiles of rows the tokens are divided."""
        return -(-self.n // ROWS)

    @property
    def numbers(self) -> int:
        """Tokens and some more, so that a vector of them ends where one may begin."""
        return -(-self.n // VECTOR) * VECTOR

    @property
    def scale(self) -> float:
        """Of logits."""
        return self.width**-0.5


def look(
    sizes: Sizes,
    q: Array,
    keys: Ref,
    values: Ref,
    carry: tuple[Array, Array, Array],
    seen: Hide | None = None,
) -> tuple[Array, Array, Array]:
    """What queries find with one block more (Flash attention 2, arXiv 2307.08691).

    Carried on are the largest logits, the sums of exponentials, and sums of values.
    """
    before, sums, found = carry
    logits = logits_of(q, keys)
    top, fewer, weights = weigh(sizes, seen(logits) if seen else logits, before)
    sums = sums * fewer + weights.sum(axis=1)
    found = found * down(fewer, found)
    return top, sums, add([found], [(weights.astype(q.dtype), values)])[0]


def logits_of(q: Array, keys: Ref) -> Array:
    """Of a tile of queries and a block of keys, without their scale."""

    def product(new) -> Array:
        plgpu.wgmma(new, q, keys.transpose((1, 0)))
        return new[...]

    return pl.run_scoped(product, plgpu.ACC((ROWS, keys.shape[0]), jnp.float32))


def weigh(sizes: Sizes, logits: Array, before: Array) -> tuple[Array, Array, Array]:
    """The largest logits with a block more, what sums so far shrink to, and weights."""
    scale = LOG2E * sizes.scale
    top = jnp.maximum(before, logits.max(axis=1) * scale)
    return top, jnp.exp2(before - top), jnp.exp2(logits * scale - down(top, logits))


def result(top: Array, sums: Array, found: Array) -> tuple[Array, Array]:
    """What queries have found, and log2 of the sums of their exponentials."""
    return found / down(sums, found), top + jnp.log(sums) * LOG2E


def more_of_queries(
    sizes: Sizes,
    tile: tuple[Array, Array, Array, Array],
    keys: Ref,
    values: Ref,
    found: list[Array],
    seen: Hide | None = None,
) -> list[Array]:
    """The gradient of a tile of queries, but for its scale, with one block more.

    `tile` has queries, cotangents, log2 of the sums of exponentials, and how much the
    result changes with the common scale of a query's weights.
    """
    q, d, top, along = tile
    logits, changes = _two_products((q, keys), (d, values))
    logits = seen(logits) if seen else logits
    weights = jnp.exp2(logits * (LOG2E * sizes.scale) - down(top, logits))
    dlogits = weights * (changes - down(along, logits))
    return add(found, [(dlogits.astype(q.dtype), keys)])


def more_of_keys(
    sizes: Sizes,
    tile: tuple[Array, Array],
    block: tuple[Ref, Ref, Ref, Ref],
    found: list[Array],
) -> list[Array]:
    """The gradients of a tile of keys, but for their scale, and of values.

    `tile` has both, `block` what a tile has in `more_of_queries`.
    """
    (k, v), (queries, cotangents, *vectors) = tile, block
    columns = plgpu.Layout.WGMMA.reduce(0)
    logits, changes = _two_products((k, queries), (v, cotangents))
    top, along = (plgpu.load(vector, layout=columns) for vector in vectors)
    weights = jnp.exp2(logits * (LOG2E * sizes.scale) - across(top, logits))
    dlogits = weights * (changes - across(along, logits))
    halves = (a.astype(k.dtype) for a in (dlogits, weights))
    return add(found, list(zip(halves, (queries, cotangents), strict=True)))


def _two_products(
    first: tuple[Array, Ref], second: tuple[Array, Ref]
) -> tuple[Array, Array]:
    """rows @ block^T of both pairs, at the same time."""

    def products(*found) -> tuple[Array, ...]:
        for new, (rows, block) in zip(found, (first, second), strict=True):
            plgpu.wgmma(new, rows, block.transpose((1, 0)))
        return tuple(new[...] for new in found)

    shape = (ROWS, first[1].shape[0])
    return pl.run_scoped(products, *[plgpu.ACC(shape, jnp.float32)] * 2)


def add(sums: list[Array], pairs: list[tuple[Array, Any]]) -> list[Array]:
    """Each sum with its pair's product added."""

    def products(references: Any) -> None:
        for reference, (rows, block) in zip(references, pairs, strict=True):
            plgpu.wgmma(reference, rows, block)

    run: Any = pl.run_state(products)
    return run([plgpu.ACC.init(a) for a in sums])


def full(shape: tuple[int, ...], value: float, dtype: Any = jnp.float32) -> Array:
    """A constant in a warpgroup's registers: of each row, or of rows and columns."""
    layout = plgpu.Layout.WGMMA
    layout = layout if len(shape) == 2 else layout.reduce(1)
    return plgpu.layout_cast(jnp.full(shape, value, dtype), layout)


def padded(rows: Array, sizes: Sizes, value: float = 0.0) -> Array:
    """Rows with zeros, or a value, behind them, as wide as products want them."""
    missing = sizes.wide - sizes.width
    if not missing:
        return rows
    return jnp.concatenate([rows, full((ROWS, missing), value, rows.dtype)], axis=1)


def by_column(ref: Ref) -> Array:
    """A vector in memory as a number for each column, float32."""
    columns = plgpu.Layout.WGMMA.reduce(0)
    return plgpu.load(ref, layout=columns, optimized=False).astype(jnp.float32)


def down(column: Array, like: Array) -> Array:
    """A number for each row, in every column."""
    return jax.lax.broadcast_in_dim(column, like.shape, [0])


def across(row: Array, like: Array) -> Array:
    """A number for each column, in every row."""
    return jax.lax.broadcast_in_dim(row, like.shape, [1])


def hide(x: Array, start: Array | int, length: int, value: float, axis: int) -> Array:
    """x, whose rows or columns begin with token `start`, `value` from `length` on."""
    layout = plgpu.Layout.WGMMA
    tokens = plgpu.broadcasted_iota(jnp.int32, x.shape, axis, layout=layout)
    return jnp.where(tokens + start < length, x, jnp.asarray(value, x.dtype))
