"""Attention on Hopper GPUs by Mosaic: heads, their tiles of rows, and memory.

Products read shared memory in stripes. The copy engine reads and writes rows as they
are in memory, since it is slow at pieces as narrow as these; warpgroups bring them into
order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    NARROWEST,
    ROWS,
    Ref,
    Sizes,
    across,
    by_column,
    padded,
)

# Of shared memory a program, of which each array takes whole pieces; sums across warps,
# of which there are none, and all barriers take one each.
PIECE, MOST_BYTES = 1024, 227 * 1024
SCRATCH_BYTES = BARRIER_BYTES = PIECE
LONGEST_COPY = 256  # rows or numbers
QUERIES, KEYS, VALUES = range(3)  # the parts of a projection
Index = Array | int


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


def for_products(
    shape: tuple[int, ...], dtype: jnp.dtype, stripe: int = NARROWEST
) -> Any:
    """Shared memory in the order in which products read it: stripes of so many lanes.

    Of half precision; the narrowest suit any width.
    """
    tiling = plgpu.TilingTransform((8, stripe))
    return plgpu.SMEM(
        shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(2 * stripe))
    )


def room_beside(*arrays: int) -> int:
    """Bytes of shared memory beside arrays of so many."""
    pieces = sum(-(-size // PIECE) for size in arrays)
    return max(MOST_BYTES - SCRATCH_BYTES - BARRIER_BYTES - PIECE * pieces, 0)


class Heads(NamedTuple):
    """An array [b, n, some, width], of which those from `first` on are looked at."""

    ref: Ref
    first: int = 0


def last_heads(ref: Ref, heads: int) -> Heads:
    """So many heads of an array, the last of which are looked at."""
    return Heads(ref, ref.shape[2] - heads)


class Bias(NamedTuple):
    """Vectors [some, width], of which the last `heads` are those of values."""

    ref: Ref
    heads: int

    def of(self, part: int, head: Index) -> Array:
        """That of a head of a part, a number for each column."""
        place = self.ref.shape[0] - (VALUES + 1 - part) * self.heads + head
        return by_column(self.ref.at[place])


class Program:
    """What warpgroups of programs have in common: a head of an image at a time.

    The `step`-th head of a program is the `program + step * count`-th of all.
    """

    def __init__(self, sizes: Sizes, heads: int, count: int):
        self.sizes, self.heads, self.count = sizes, heads, count
        self.program = jax.lax.axis_index("program")
        self.warpgroup = jax.lax.axis_index("warpgroup")

    def with_bias(self, step: Index, found: Array, bias: Bias | None) -> Array:
        """What queries find, where values lack their bias: weights add up to one."""
        if bias is None:
            return found
        found = jax.lax.slice(found, (0, 0), (ROWS, self.sizes.width))
        _, head = self.number(step)
        return found + across(bias.of(VALUES, head), found)

    def order(self, to: Ref, tile: Index, rows: Array) -> None:
        """Lay rows into shared memory as products read them."""
        to.at[self.rows(tile)][...] = padded(rows, self.sizes)

    def number(self, step: Index) -> tuple[Array, Array]:
        """The image and the head of a step."""
        return self.of_number(self.program + step * self.count)

    def of_number(self, number: Array) -> tuple[Array, Array]:
        """The image and the head that are the `number`-th of all."""
        heads = jnp.int32(self.heads)
        return jax.lax.div(number, heads), jax.lax.rem(number, heads)

    def rows(self, tile: Index) -> Any:
        """The rows of a tile; those of the last one end with the last token."""
        start = jnp.minimum(tile * ROWS, self.sizes.n - ROWS)
        return pl.ds(pl.multiple_of(start, 8), ROWS)

    def place(self, array: Heads, step: Index, tile: Index) -> tuple:
        """Where the tile of a step is in an array of all."""
        image, head = self.number(step)
        return image, self.rows(tile), array.first + head


class Courier(Program):
    """A program whose warpgroups bring tiles by their own slots from and to memory.

    While they compute: what they need next is on its way, head after head of `total`.
    """

    def __init__(
        self, sizes: Sizes, heads: int, total: int, count: int, slots, arrived
    ):
        super().__init__(sizes, heads, count)
        self.steps = jax.lax.div(total - self.program + (count - 1), jnp.int32(count))
        self.slots, self.slot_count = slots.at[self.warpgroup], slots.shape[1]
        self.arrived = arrived

    def fetch(self, slot: int, array: Heads, step: Index, tile: Index) -> None:
        """Send for a tile of a step's array; `fetched` waits for it."""
        rows = array.ref.at[self.place(array, step, tile)]
        plgpu.copy_gmem_to_smem(rows, self.slots.at[slot], self._barrier(slot))

    def fetched(self, slot: int) -> Array:
        """The tile that was sent for, in registers."""
        plgpu.barrier_wait(self._barrier(slot))
        return in_registers(self.slots.at[slot])

    def write(
        self, slot: int, array: Heads, step: Index, tile: Index, rows: Array
    ) -> None:
        """Send a tile of a step's result out, by a slot; `written` waits for it."""
        written()
        place = self.slots.at[slot]
        place[...] = jax.lax.slice(
            rows.astype(array.ref.dtype), (0, 0), (ROWS, self.sizes.width)
        )
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(place, array.ref.at[self.place(array, step, tile)])

    def _barrier(self, slot: int):
        return self.arrived.at[self.warpgroup * self.slot_count + slot]


def in_registers(rows: Ref) -> Array:
    """A tile of rows, that lie in memory as they are, in a warpgroup's registers."""
    return plgpu.load(rows, layout=plgpu.Layout.WGMMA, optimized=False)


def put(to: Ref, rows: Array) -> None:
    """`to[...] = rows`, also where lanes then meet in a bank of shared memory.

    Newer jax wants to be told so, or would look for an order without.
    """
    store = getattr(plgpu, "store", None)
    if store is None:
        to[...] = rows
    else:
        store(to, rows, optimized=False)


def meet(barrier: Ref) -> None:
    """Wait for all warpgroups; what each has written the others see."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


def written() -> None:
    """Wait until shared memory that is being written out may be used again."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
