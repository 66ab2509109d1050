"""Attention of short sequences on Hopper GPUs by Mosaic: what both passes share.

A head of an image lies in shared memory as a whole, in the order in which the matrix
units read it, and is computed in tiles of rows. The copy engine reads and writes rows
as they are in memory, since it is slow at pieces as narrow as the matrix units want
them; warpgroups bring them into order.
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
WARPGROUPS = 2  # of the backward pass
MOST_WARPGROUPS = 4  # of the forward pass
FORWARD_SLOTS = 3  # keys, values and queries
LEAST = WARPGROUPS * ROWS  # tokens: a tile for each
VECTOR = 32  # float32 numbers of 128 bytes, where a copy into shared memory may begin
ACROSS = 64  # tokens that a tile looks at at a time
# Of shared memory a program, of which barriers and sums across warps, of which there
# are none, take a little.
MOST_BYTES, SCRATCH_BYTES, BARRIER_BYTES = 227 * 1024, 512, 512
LOG2E = math.log2(math.e)
Index = Array | int
Ref = Any  # a reference of Pallas, or one of barriers
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

    def slots(self, arrays: int, vectors: int, warpgroups: int) -> int:
        """How many tiles of a warpgroup have room beside arrays and vectors of tokens.

        Arrays in half precision, as products take them; vectors in float32.
        """
        taken = 2 * arrays * self.n * self.wide + 4 * vectors * self.numbers
        tiles = 2 * warpgroups * ROWS * self.width
        return max(MOST_BYTES - SCRATCH_BYTES - BARRIER_BYTES - taken, 0) // tiles


def supports(n: int, width: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    known = n >= LEAST and not n % NARROWEST and not width % 8 and 8 <= width <= 128
    sizes = Sizes(n, n, width)
    fits = forward_slots(sizes) >= FORWARD_SLOTS and backward_slots(sizes) >= 2
    return known and dtype.itemsize == 2 and fits


def forward_warpgroups(sizes: Sizes) -> int:
    """One for each tile, up to as many as have registers enough."""
    return min(sizes.tiles, MOST_WARPGROUPS)


def forward_slots(sizes: Sizes) -> int:
    """A warpgroup's tiles in the forward pass, beside all keys and values."""
    room = sizes.slots(arrays=2, vectors=1, warpgroups=forward_warpgroups(sizes))
    return min(room, FORWARD_SLOTS + 1)


def backward_slots(sizes: Sizes) -> int:
    """A warpgroup's tiles in the backward pass, beside four whole arrays."""
    return min(sizes.slots(arrays=4, vectors=4, warpgroups=WARPGROUPS), 3)


def launch(
    kernel: Callable,
    name: str,
    inputs: list[Array],
    outs: list[jax.ShapeDtypeStruct],
    scratch: list[Any],
    programs: int,
    warpgroups: int,
) -> Any:
    """The results of a kernel's programs, each of so many warpgroups."""
    run = plgpu.kernel(
        kernel,
        out_type=outs,
        scratch_types=scratch,
        grid=(programs,),
        grid_names=("program",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, reduction_scratch_bytes=SCRATCH_BYTES
        ),
        kernel_name=name,
    )
    return run(*inputs)


def like(a: Array) -> jax.ShapeDtypeStruct:
    """The shape and type of an array, for a result."""
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def for_products(shape: tuple[int, ...], dtype: jnp.dtype) -> Any:
    """Shared memory in the order in which products read it: stripes of 32 bytes."""
    tiling = plgpu.TilingTransform((8, NARROWEST))
    return plgpu.SMEM(
        shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(2 * NARROWEST))
    )


class Program:
    """What warpgroups of programs have in common: heads, tiles and their slots.

    A program has one head of an image after the other: the `step`-th is the `program +
    step * count`-th of all. A warpgroup brings tiles of rows by its own slots from and
    to memory.
    """

    def __init__(
        self, sizes: Sizes, heads: int, total: int, count: int, slots, arrived
    ):
        self.sizes, self.heads, self.count = sizes, heads, count
        self.program = jax.lax.axis_index("program")
        self.warpgroup = jax.lax.axis_index("warpgroup")
        self.steps = jax.lax.div(total - self.program + (count - 1), jnp.int32(count))
        self.slots, self.slot_count = slots.at[self.warpgroup], slots.shape[1]
        self.arrived = arrived

    def fetch(self, slot: int, ref: Ref, step: Index, tile: Index) -> None:
        """Send for a tile of a step's array; `fetched` waits for it."""
        rows = ref.at[self.place(step, tile)]
        plgpu.copy_gmem_to_smem(rows, self.slots.at[slot], self._barrier(slot))

    def fetched(self, slot: int) -> Array:
        """The tile that was sent for, in registers."""
        plgpu.barrier_wait(self._barrier(slot))
        layout = plgpu.Layout.WGMMA
        return plgpu.load(self.slots.at[slot], layout=layout, optimized=False)

    def write(self, slot: int, ref: Ref, step: Index, tile: Index, rows: Array) -> None:
        """Send a tile of a step's result out, by a slot; `written` waits for it."""
        written()
        place = self.slots.at[slot]
        place[...] = jax.lax.slice(
            rows.astype(ref.dtype), (0, 0), (ROWS, self.sizes.width)
        )
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(place, ref.at[self.place(step, tile)])

    def order(self, to: Ref, tile: Index, rows: Array) -> None:
        """Lay rows into shared memory as products read them."""
        to.at[self.rows(tile)][...] = padded(rows, self.sizes)

    def number(self, step: Index) -> tuple[Array, Array]:
        """The image and the head of a step."""
        number, heads = self.program + step * self.count, jnp.int32(self.heads)
        return jax.lax.div(number, heads), jax.lax.rem(number, heads)

    def rows(self, tile: Index) -> Any:
        """The rows of a tile; those of the last one end with the last token."""
        start = jnp.minimum(tile * ROWS, self.sizes.n - ROWS)
        return pl.ds(pl.multiple_of(start, 8), ROWS)

    def place(self, step: Index, tile: Index) -> tuple:
        """Where the tile of a step is in an array of all."""
        image, head = self.number(step)
        return image, self.rows(tile), head

    def _barrier(self, slot: int):
        return self.arrived.at[self.warpgroup * self.slot_count + slot]


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


def full(shape: tuple[int, ...], value: float, dtype: Any = jnp.float32) -> Array:
    """A constant in a warpgroup's registers: of each row, or of rows and columns."""
    layout = plgpu.Layout.WGMMA
    layout = layout if len(shape) == 2 else layout.reduce(1)
    return plgpu.layout_cast(jnp.full(shape, value, dtype), layout)


def padded(rows: Array, sizes: Sizes) -> Array:
    """Rows with zeros behind them, as wide as products want them."""
    missing = sizes.wide - sizes.width
    if not missing:
        return rows
    return jnp.concatenate([rows, full((ROWS, missing), 0.0, rows.dtype)], axis=1)


def down(column: Array, like: Array) -> Array:
    """A number for each row, in every column."""
    return jax.lax.broadcast_in_dim(column, like.shape, [0])


def across(row: Array, like: Array) -> Array:
    """A number for each column, in every row."""
    return jax.lax.broadcast_in_dim(row, like.shape, [1])


def hide(x: Array, start: Index, length: int, value: float, axis: int) -> Array:
    """x, whose rows or columns begin with token `start`, `value` from `length` on."""
    layout = plgpu.Layout.WGMMA
    tokens = plgpu.broadcasted_iota(jnp.int32, x.shape, axis, layout=layout)
    return jnp.where(tokens + start < length, x, jnp.asarray(value, x.dtype))


def meet(barrier: Ref) -> None:
    """Wait for all warpgroups; what each has written the others see."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


def written() -> None:
    """Wait until shared memory that is being written out may be used again."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
