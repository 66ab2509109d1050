"""An MLP's first products and activation on Hopper GPUs by Mosaic, in one kernel.

What lies between the two is never written to memory. A program has one tile of the
result after the other. Two warpgroups multiply half of its rows each, and a third one
brings the pieces of tokens and matrices, some ahead. Neighbouring multiprocessors, a
cluster, have tiles of the same columns: each fetches half of the matrices' pieces, and
the copy engine hands them to both.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.activate_and_project import WITH_SLOPES, Kind
from pixelflow_jax.nn.kernels.backends import busy, multiprocessors, pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import Index, for_products
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import ROWS, Ref, across, by_column

WARPGROUPS = 2  # that multiply, besides the one that brings pieces
COLUMNS = 256  # of a tile's products, which gate and up share
DEPTH = 64  # of a piece, along what is summed up
STAGES = 4  # pieces that are there or on their way
CLUSTER = 2  # multiprocessors
TILE = WARPGROUPS * ROWS  # rows of a multiprocessor
SIDE = 8  # clusters' tiles that lie below each other, of those computed at a time
WRITTEN = 64  # columns that are activated and written at a time
SLOTS = 2  # of these, on their way to memory
MANY_REGISTERS, FEW_REGISTERS = 232, 40
STRIPE = 64  # lanes of half precision that products read as one


class Sizes(NamedTuple):
    """Of tokens [rows, depth] and a result [rows, hidden]."""

    kind: Kind
    rows: int
    depth: int
    hidden: int

    @property
    def known(self) -> bool:
        """Whether the kernel takes these sizes, of half precision.

        Whole tiles, and as many pieces along what is summed up as there are stages.
        """
        whole = not self.rows % (CLUSTER * TILE) and not self.depth % DEPTH
        return whole and self.depth >= DEPTH * STAGES and not self.hidden % self.wide

    @property
    def wide(self) -> int:
        """Columns of a tile of the result: of SwiGLU half of its products'."""
        return COLUMNS // 2 if self.kind == "swiglu" else COLUMNS

    @property
    def high(self) -> int:
        """Tiles of a cluster below each other."""
        return self.rows // (CLUSTER * TILE)

    @property
    def tiles(self) -> int:
        """Of a cluster, in all."""
        return self.high * (self.hidden // self.wide)

    @property
    def side(self) -> int:
        """How many of them lie below each other among those computed at a time.

        So memory's cache has the rows and columns that they share.
        """
        return math.gcd(self.high, SIDE)

    @property
    def clusters(self) -> int:
        """How many work at a time."""
        return min(_clusters(), self.tiles)

    @property
    def busy(self) -> float:
        """The share of the GPU's clusters that have work, over all rounds of tiles."""
        return busy(self.tiles, _clusters())


def _clusters() -> int:
    """Of all multiprocessors."""
    return max(multiprocessors() // CLUSTER, 1)


@functools.partial(jax.jit, static_argnums=0)  # made once for all layers
def activated_product(
    kind: Kind, x: Array, matrices: tuple[Array, ...], biases: tuple[Array, ...]
) -> Array:
    """activation(x @ matrices + biases), of tokens [rows, depth], [rows, hidden].

    `matrices` [depth, hidden] and `biases` [hidden] as of `activate_and_project`: gate
    and up may lie side by side in one matrix; of biases there may be none.
    """
    parts = 2 if kind == "swiglu" else 1
    hidden = sum(matrix.shape[1] for matrix in matrices) // parts
    rows, depth = x.shape
    sizes = Sizes(kind, rows, depth, hidden)
    piece = functools.partial(for_products, dtype=x.dtype, stripe=STRIPE)
    barrier = functools.partial(plgpu.Barrier, num_barriers=STAGES)
    run = plgpu.kernel(
        lambda *references: _Program(sizes, len(matrices), references).run(),
        out_type=jax.ShapeDtypeStruct((rows, hidden), x.dtype),
        scratch_types=[
            piece((STAGES, TILE, DEPTH)),
            [piece((STAGES, DEPTH, COLUMNS // parts))] * parts,
            piece((WARPGROUPS, SLOTS, ROWS, WRITTEN)),
            barrier(num_arrivals=1 + parts),
            plgpu.ClusterBarrier(
                collective_axes=("cluster",),
                num_barriers=STAGES,
                num_arrivals=WARPGROUPS,
            ),
        ],
        grid=(sizes.clusters,),
        grid_names=("program",),
        cluster=(CLUSTER,),
        cluster_names=("cluster",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            approx_math=True, reduction_scratch_bytes=0
        ),
        kernel_name=f"activated_product_{kind}",
    )
    return run(x, *matrices, *biases)


class _Program:
    """What warpgroups do: step after step a tile of the result."""

    def __init__(self, sizes: Sizes, count: int, references: tuple):
        self.sizes = sizes
        *given, self.x_pieces, self.pieces, self.slots = references[:-2]
        self.arrived, self.free = references[-2:]
        self.x, *rest, self.out = given
        self.matrices, self.biases = rest[:count], rest[count:]
        self.program = jax.lax.axis_index("program")
        self.warpgroup = jax.lax.axis_index("warpgroup")
        ahead = sizes.tiles - self.program + (sizes.clusters - 1)
        self.steps = jax.lax.div(ahead, jnp.int32(sizes.clusters))
        self.depths = sizes.depth // DEPTH

    def run(self) -> None:
        """All steps, each warpgroup its own part."""

        @pl.when(self.warpgroup == WARPGROUPS)
        def _():
            plgpu.set_max_registers(FEW_REGISTERS, action="decrease")
            total = self.steps * self.depths
            jax.lax.fori_loop(0, total, self._bring, None)
            # The other multiprocessor of the cluster has to be done with this one.
            last = lambda number, _: self._wait_until_free(number)
            jax.lax.fori_loop(total, total + STAGES, last, None)

        @pl.when(self.warpgroup < WARPGROUPS)
        def _():
            plgpu.set_max_registers(MANY_REGISTERS, action="increase")
            jax.lax.fori_loop(0, self.steps, self._compute, None)
            plgpu.wait_smem_to_gmem(0)

    def _tile(self, step: Index) -> tuple[Array, Array]:
        """The first row and the column of a step's tile, the latter in tiles.

        `sizes.side` tiles below each other, then those to their right, in turn.
        """
        number = self.program + step * self.sizes.clusters
        side = jnp.int32(self.sizes.side)
        block = side * (self.sizes.tiles // self.sizes.high)
        inside = jax.lax.rem(number, block)
        high = jax.lax.div(number, block) * side + jax.lax.rem(inside, side)
        row = (high * CLUSTER + jax.lax.axis_index("cluster")) * TILE
        return row, jax.lax.div(inside, side)

    def _bring(self, number: Array, nothing: None) -> None:
        """Send for the pieces of a step's tokens and matrices."""
        depths, stage = jnp.int32(self.depths), self._stage(number)
        row, column = self._tile(jax.lax.div(number, depths))
        deep = _span(jax.lax.rem(number, depths) * DEPTH, DEPTH)
        pl.when(number >= STAGES)(lambda: self._wait_until_free(number))
        arrived = self.arrived.at[stage]
        tokens = self.x.at[_span(row, TILE), deep]
        plgpu.copy_gmem_to_smem(tokens, self.x_pieces.at[stage], arrived)
        for part, to in enumerate(self.pieces):
            matrix, start = self._matrix(part)
            columns = _span(start + column * self.sizes.wide, self.sizes.wide)
            plgpu.copy_gmem_to_smem(
                matrix.at[deep, columns],
                to.at[stage],
                arrived,
                collective_axes="cluster",
            )
        return nothing

    def _matrix(self, part: int) -> tuple[Ref, int]:
        """A part's matrix, and the column in which it begins."""
        if part < len(self.matrices):
            return self.matrices[part], 0
        return self.matrices[0], part * self.sizes.hidden

    def _compute(self, step: Array, nothing: None) -> None:
        """A warpgroup's rows of a tile."""
        row, column = self._tile(step)
        column = column * self.sizes.wide
        columns = _span(column, self.sizes.wide)
        biases = [by_column(bias.at[columns]) for bias in self.biases]
        shape = ROWS, COLUMNS // len(self.pieces)
        accumulators = [plgpu.ACC(shape, jnp.float32)] * len(self.pieces)
        multiply = functools.partial(self._multiply, step)
        products = pl.run_scoped(multiply, *accumulators)
        rows = _span(row + self.warpgroup * ROWS, ROWS)
        for number, start in enumerate(range(0, self.sizes.wide, WRITTEN)):
            values = [_columns(product, start) for product in products]
            if biases:
                pairs = zip(values, biases, strict=True)
                values = [
                    a + across(jax.lax.slice(bias, (start,), (start + WRITTEN,)), a)
                    for a, bias in pairs
                ]
            value, _ = WITH_SLOPES[self.sizes.kind](*values, tanh=jnp.tanh)
            slot = self.slots.at[self.warpgroup, number % SLOTS]
            plgpu.wait_smem_to_gmem(SLOTS - 1, wait_read_only=True)
            slot[...] = value.astype(self.out.dtype)
            plgpu.commit_smem()
            to = self.out.at[rows, _span(column + start, WRITTEN)]
            plgpu.copy_smem_to_gmem(slot, to)
        return nothing

    def _multiply(self, step: Array, *sums: Ref) -> list[Array]:
        """The products of a warpgroup's rows with a step's columns."""
        first, rows = step * self.depths, _span(self.warpgroup * ROWS, ROWS)

        def add(deep, nothing):
            stage = self._stage(first + deep)
            plgpu.barrier_wait(self.arrived.at[stage])
            tokens = self.x_pieces.at[stage, rows]
            for one, piece in zip(sums, self.pieces, strict=True):
                plgpu.wgmma(one, tokens, piece.at[stage])
            plgpu.wgmma_wait(len(sums))  # not yet for these
            pl.when(deep > 0)(lambda: self._done(first + deep - 1))
            return nothing

        jax.lax.fori_loop(0, self.depths, add, None)
        plgpu.wgmma_wait(0)
        self._done(first + self.depths - 1)
        return [one[...] for one in sums]

    def _done(self, number: Array) -> None:
        """This warpgroup does not need a piece any more."""
        plgpu.barrier_arrive(self.free.at[self._stage(number)])

    def _wait_until_free(self, number: Array) -> None:
        """Until no warpgroup of the cluster needs what lies where a piece shall go."""
        plgpu.barrier_wait(self.free.at[self._stage(number)])

    def _stage(self, number: Array) -> Array:
        return jax.lax.rem(number, jnp.int32(STAGES))


def _span(start: Array, length: int) -> Any:
    """So many rows or columns, from a multiple of as many on."""
    return pl.ds(pl.multiple_of(start, length), length)


def _columns(product: Array, start: int) -> Array:
    """Some of a product's columns, activated and written at a time."""
    return jax.lax.slice(product, (0, start), (ROWS, start + WRITTEN))
