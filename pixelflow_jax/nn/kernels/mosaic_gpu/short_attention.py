"""Attention of short sequences on Hopper GPUs by Mosaic: the forward pass.

A program has one head of one image. Keys and values lie in shared memory as a whole, in
the order in which the matrix units read them; rows of queries come in tiles. All arrays
are read and written by the copy engine, row by row as they are, since it is slow at
pieces as narrow as the matrix units want them; a warpgroup brings them into order.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl, plgpu

ROWS = 64  # of a product of a warpgroup
NARROWEST = 16  # lanes and tokens of a product, in half precision
WARPGROUPS = 2
LEAST = WARPGROUPS * ROWS  # tokens: a tile for each
VECTOR = 32  # float32 numbers of 128 bytes, where a copy into shared memory may begin
ACROSS = 64  # tokens that a tile looks at at a time
MOST_BYTES = 227 * 1024  # of shared memory a program, of which barriers take a little
BARRIER_BYTES = 1024
LOG2E = math.log2(math.e)
SIZES = (
    f"half precision, {LEAST} tokens or more in multiples of {NARROWEST}, as many "
    "queries as keys, head widths in multiples of 8 up to 128, and heads that fit into "
    "shared memory, such as 288 tokens of width 72"
)


class Sizes(NamedTuple):
    """Of one head: tokens, of which the first `length` are looked at, and widths.

    Rows are `width` wide in memory, and `wide` with zeros behind them in products.
    """

    n: int
    length: int
    width: int

    @property
    def wide(self) -> int:
        return -(-self.width // NARROWEST) * NARROWEST

    @property
    def ragged(self) -> bool:
        """Whether the last tile begins earlier, to end with the last token."""
        return self.n % ROWS != 0

    @property
    def tiles(self) -> int:
        return -(-self.n // ROWS)

    @property
    def numbers(self) -> int:
        """Tokens and some more, so that a vector of them ends where one may begin."""
        return -(-self.n // VECTOR) * VECTOR

    @property
    def slots(self) -> int:
        """How many tiles of a warpgroup can be on their way; 0: a head does not fit."""
        arrays, vectors = 4 * self.n * self.wide * 2, 4 * self.numbers * 4
        slot = WARPGROUPS * ROWS * self.width * 2
        left = MOST_BYTES - BARRIER_BYTES - arrays - vectors
        return min(left // slot, 3) if left >= 2 * slot else 0


def supports(n: int, width: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    known = n >= LEAST and not n % NARROWEST and not width % 8 and 8 <= width <= 128
    return known and dtype.itemsize == 2 and Sizes(n, n, width).slots > 0


@functools.partial(jax.jit, static_argnums=3)  # made once for all layers
def forward(q: Array, k: Array, v: Array, length: int) -> tuple[Array, Array]:
    """What queries find in the first `length` keys, of arrays [b, n, heads, width].

    And log2 of the sums of exponentials [b, heads, n], which `backward` needs.
    """
    b, n, heads, width = q.shape
    sizes = Sizes(n, length, width)
    whole, rows = (n, sizes.wide), (WARPGROUPS, ROWS)
    return launch(
        functools.partial(_kernel, sizes),
        "short_attention_forward",
        [q, k, v],
        outs=[like(q), jax.ShapeDtypeStruct((b, heads, n), jnp.float32)],
        scratch=[
            *[for_products(whole, q.dtype)] * 2,
            plgpu.SMEM((*rows, width), q.dtype),
            plgpu.SMEM(rows, jnp.float32),
            plgpu.Barrier(num_barriers=WARPGROUPS),
            plgpu.Barrier(num_arrivals=WARPGROUPS),
        ],
        grid={"head": heads, "image": b},
    )


def launch(
    kernel: Callable,
    name: str,
    inputs: list[Array],
    outs: list[jax.ShapeDtypeStruct],
    scratch: list[Any],
    grid: dict[str, int],
) -> Any:
    """The results of programs of two warpgroups, which are the axis "warpgroup"."""
    run = plgpu.kernel(
        kernel,
        out_type=outs,
        scratch_types=scratch,
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=WARPGROUPS,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name=name,
    )
    return run(*inputs)


def like(a: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def for_products(shape: tuple[int, ...], dtype: jnp.dtype) -> Any:
    """Shared memory in the order in which products read it: stripes of 32 bytes."""
    tiling = plgpu.TilingTransform((8, NARROWEST))
    return plgpu.SMEM(
        shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(2 * NARROWEST))
    )


def _kernel(sizes: Sizes, q, k, v, out, sums, keys, values, slots, own_sums, *barriers):
    arrived, ready = barriers
    image, head = jax.lax.axis_index("image"), jax.lax.axis_index("head")
    warpgroup = jax.lax.axis_index("warpgroup")
    slot, arrived, own_sums = (ref.at[warpgroup] for ref in (slots, arrived, own_sums))

    def fetch(ref, tile) -> None:
        rows = rows_of(sizes, tile)
        plgpu.copy_gmem_to_smem(ref.at[image, rows, head], slot, arrived)

    def fetched() -> Array:
        plgpu.barrier_wait(arrived)
        return padded(load(slot), sizes)

    # Each warpgroup orders every second tile of keys and values; where there is no
    # such tile, the last one once more, with the same numbers.
    turns = range(-(-sizes.tiles // WARPGROUPS))
    mine = [turn * WARPGROUPS + warpgroup for turn in turns]
    order = [(k, keys, tile) for tile in mine] + [(v, values, tile) for tile in mine]
    fetch(k, warpgroup)
    for (_, to, tile), (after, _, later) in zip(
        order, [*order[1:], (q, None, warpgroup)], strict=True
    ):
        to.at[rows_of(sizes, tile)][...] = fetched()
        fetch(after, later)
    plgpu.commit_smem()
    meet(ready)

    def turn(number, nothing):
        tile = number * WARPGROUPS + warpgroup
        rows = rows_of(sizes, tile)
        found, tops = _attend(sizes, fetched(), keys, values)
        slot[...] = cut(found.astype(out.dtype), sizes)
        own_sums[...] = tops
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(slot, out.at[image, rows, head])
        plgpu.copy_smem_to_gmem(own_sums, sums.at[image, head, rows])
        written()
        pl.when(tile + WARPGROUPS < sizes.tiles)(lambda: fetch(q, tile + WARPGROUPS))
        return nothing

    number = jax.lax.div(sizes.tiles - warpgroup + 1, jnp.int32(WARPGROUPS))
    jax.lax.fori_loop(0, number, turn, None)
    plgpu.wait_smem_to_gmem(0)


def _attend(sizes: Sizes, q: Array, keys, values) -> tuple[Array, Array]:
    """What a tile of queries finds, and log2 of the sums of its exponentials."""
    scale = LOG2E * sizes.width**-0.5

    def block(start, size: int, carry: tuple, masked: bool = False) -> tuple:
        before, sums, found = carry
        place = pl.ds(start, size)

        def product(new) -> Array:
            plgpu.wgmma(new, q, keys.at[place].transpose((1, 0)))
            return new[...]

        logits = pl.run_scoped(product, plgpu.ACC((ROWS, size), jnp.float32))
        if masked:
            logits = hide(logits, start, sizes.length, -jnp.inf, axis=1)
        top = jnp.maximum(before, logits.max(axis=1) * scale)
        fewer = jnp.exp2(before - top)
        weights = jnp.exp2(logits * scale - down(top, logits))
        sums = sums * fewer + weights.sum(axis=1)
        found = found * down(fewer, found)
        found = add([found], [(weights.astype(q.dtype), values.at[place])])[0]
        return top, sums, found

    carry = full((ROWS,), -jnp.inf), full((ROWS,), 0.0), full((ROWS, sizes.wide), 0.0)
    top, sums, found = over_blocks(sizes, ACROSS, block, carry)
    return found / down(sums, found), top + jnp.log(sums) * LOG2E


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


def add(sums: list[Array], pairs: list[tuple[Array, Any]]) -> list[Array]:
    """Each sum with its pair's product added."""

    def products(references: Any) -> None:
        for reference, (rows, block) in zip(references, pairs, strict=True):
            plgpu.wgmma(reference, rows, block)

    run: Any = pl.run_state(products)
    return run([plgpu.ACC.init(a) for a in sums])


def rows_of(sizes: Sizes, tile) -> Any:
    """The rows of a tile; those of the last one end with the last token."""
    start = jnp.minimum(tile * ROWS, sizes.n - ROWS)
    return pl.ds(pl.multiple_of(start, 8), ROWS)


def full(shape: tuple[int, ...], value: float, dtype: Any = jnp.float32) -> Array:
    """A constant in a warpgroup's registers: of each row, or of rows and columns."""
    layout = plgpu.Layout.WGMMA
    layout = layout if len(shape) == 2 else layout.reduce(1)
    return plgpu.layout_cast(jnp.full(shape, value, dtype), layout)


def load(ref) -> Array:
    """A tile of rows as they are in memory, as products take them."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)


def padded(rows: Array, sizes: Sizes) -> Array:
    """Rows with zeros behind them, as wide as products want them."""
    missing = sizes.wide - sizes.width
    if not missing:
        return rows
    return jnp.concatenate([rows, full((ROWS, missing), 0.0, rows.dtype)], axis=1)


def cut(rows: Array, sizes: Sizes) -> Array:
    """Rows without what lies behind them in products."""
    return jax.lax.slice(rows, (0, 0), (ROWS, sizes.width))


def down(column: Array, like: Array) -> Array:
    """A number for each row, in every column."""
    return jax.lax.broadcast_in_dim(column, like.shape, [0])


def across(row: Array, like: Array) -> Array:
    """A number for each column, in every row."""
    return jax.lax.broadcast_in_dim(row, like.shape, [1])


def hide(x: Array, start, length: int, value: float, axis: int) -> Array:
    """x, whose rows or columns begin with token `start`, `value` from `length` on."""
    layout = plgpu.Layout.WGMMA
    tokens = plgpu.broadcasted_iota(jnp.int32, x.shape, axis, layout=layout)
    return jnp.where(tokens + start < length, x, jnp.asarray(value, x.dtype))


def meet(barrier) -> None:
    """Wait for the other warpgroup; what each has written the other one sees."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


def written() -> None:
    """Wait until shared memory that is being written out may be used again."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
