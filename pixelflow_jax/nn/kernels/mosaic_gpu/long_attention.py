"""Attention of long sequences on Hopper GPUs by Mosaic: what all passes share.

A program computes some tiles of rows of one head, each by a warpgroup of its own, which
keeps what it sums up in registers. One more warpgroup brings the blocks of tokens that
they look at from memory into the order in which the matrix units read them, some blocks
ahead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import multiprocessors, pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import (
    Courier,
    Heads,
    Index,
    for_products,
    launch,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    NARROWEST,
    ROWS,
    Ref,
    Sizes,
    padded,
)

LEAST, BLOCK = 512, 128  # tokens; sequences are as many blocks
MOST_WIDTH = 88  # above it stages do not fit into shared memory
RAW = 2  # blocks on their way, as they are in memory
MOST_REGISTERS = 65536 // 128  # of each lane of a warpgroup, of a program's in all
FEW_REGISTERS = 56  # of the warpgroup that brings blocks
SIZES = (
    f"half precision, {LEAST} tokens or more in multiples of {BLOCK}, as many queries "
    f"as keys, and head widths of 8, 24, 40, 56, 72 or {MOST_WIDTH}"
)


def supports(n: int, width: int, dtype: jnp.dtype) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words.

    Heads that are as wide as products want them leave no place for ones behind values
    (`sums_of`); they are not padded by cuDNN either.
    """
    known = n >= LEAST and not n % BLOCK and width % NARROWEST == NARROWEST // 2
    return known and width <= MOST_WIDTH and dtype.itemsize == 2


class Plan(NamedTuple):
    """How a pass is divided.

    `warpgroups` compute a tile each; blocks have `block` tokens, of which `stages` are
    in order at a time.
    """

    warpgroups: int
    block: int
    stages: int

    @property
    def registers(self) -> int:
        """Of a warpgroup that computes.

        All begin with as many; the one that brings blocks leaves most of its own.
        """
        warpgroups = self.warpgroups + 1
        given = MOST_REGISTERS // warpgroups // 8 * 8 * warpgroups
        return min((given - FEW_REGISTERS) // self.warpgroups // 8 * 8, 240)


class Work(NamedTuple):
    """What is to be computed: heads of images, and how they are divided.

    Programs, one a multiprocessor, compute one group of tiles after the other, as many
    as the plan has warpgroups.
    """

    images: int
    heads: int
    sizes: Sizes
    plan: Plan

    @classmethod
    def of(cls, q: Array, plan: Plan) -> "Work":
        """For arrays [b, n, heads, width]."""
        b, n, heads, width = q.shape
        return cls(b, heads, Sizes(n, n, width), plan)

    @property
    def groups_a_head(self) -> int:
        """Of tiles; the last tiles of a head may be computed twice."""
        return -(-self.sizes.n // (ROWS * self.plan.warpgroups))

    @property
    def groups(self) -> int:
        """Of all heads."""
        return self.images * self.heads * self.groups_a_head

    @property
    def blocks(self) -> int:
        """Which every tile looks at."""
        return self.sizes.n // self.plan.block

    @property
    def programs(self) -> int:
        """One a multiprocessor, or a group."""
        return min(multiprocessors(), self.groups)

    def launch(
        self,
        program: Callable[["Work", tuple], "LongProgram"],
        name: str,
        inputs: list[Array],
        outs: list[jax.ShapeDtypeStruct],
        scratch: list[Any],
    ) -> Any:
        """The results of a pass, whose `program` is given all references."""
        return launch(
            lambda *given: program(self, given).run(),
            *(name, inputs, outs, scratch),
            programs=self.programs,
            warpgroups=self.plan.warpgroups + 1,
        )

    def slots(self, dtype: jnp.dtype, count: int) -> list[Any]:
        """Tiles of each warpgroup as they are in memory, and the barriers of each."""
        shape = (self.plan.warpgroups, count, ROWS, self.sizes.width)
        barriers = plgpu.Barrier(num_barriers=self.plan.warpgroups * count)
        return [plgpu.SMEM(shape, dtype), barriers]

    def vectors(self) -> Any:
        """A number for each row of the warpgroups' tiles."""
        return plgpu.SMEM((self.plan.warpgroups, ROWS), jnp.float32)

    def stream(self, dtype: jnp.dtype, vectors: int = 0) -> dict[str, Any]:
        """What a `Stream` of two arrays, and of vectors, needs."""
        warpgroups, block, stages = self.plan
        ordered = for_products((stages, block, self.sizes.wide), dtype)
        return {
            "raw": plgpu.SMEM((RAW, 2, block, self.sizes.width), dtype),
            "ordered": [ordered] * 2,
            "raw_vectors": [plgpu.SMEM((RAW, block), jnp.float32)] * vectors,
            "vectors": [plgpu.SMEM((stages, block), jnp.float32)] * vectors,
            "arrived": plgpu.Barrier(num_barriers=RAW, num_arrivals=2 + vectors),
            "full": plgpu.Barrier(num_barriers=stages),
            "free": plgpu.Barrier(num_barriers=stages, num_arrivals=warpgroups),
        }


class LongProgram(Courier):
    """A program of `Work`: step after step, a group of tiles.

    A pass has a `stream`, and says what a warpgroup does before and in a step.
    """

    stream: "Stream"

    def __init__(self, work: Work, slots: Ref, arrived: Ref):
        self.work, self.plan = work, work.plan
        counts = work.heads, work.groups, work.programs
        super().__init__(work.sizes, *counts, slots, arrived)

    def number(self, step: Index) -> tuple[Array, Array]:
        """The image and the head of a step."""
        head = jax.lax.div(self._group(step), jnp.int32(self.work.groups_a_head))
        heads = jnp.int32(self.heads)
        return jax.lax.div(head, heads), jax.lax.rem(head, heads)

    def tile(self, step: Index) -> Array:
        """Which rows of its head are the warpgroup's, in a step."""
        first = jax.lax.rem(self._group(step), jnp.int32(self.work.groups_a_head))
        return first * self.plan.warpgroups + self.warpgroup

    def begin(self) -> None:
        """Send for what the first step needs."""
        raise NotImplementedError

    def step(self, step: Index) -> None:
        """Compute the warpgroup's tile, and send for what the next step needs."""
        raise NotImplementedError

    def run(self) -> None:
        """All steps, each warpgroup its own part."""

        def one(step, nothing):
            self.step(step)
            return nothing

        @pl.when(self.warpgroup == self.plan.warpgroups)
        def _():
            plgpu.set_max_registers(FEW_REGISTERS, action="decrease")
            self.stream.bring()

        @pl.when(self.warpgroup < self.plan.warpgroups)
        def _():
            plgpu.set_max_registers(self.plan.registers, action="increase")
            self.begin()
            jax.lax.fori_loop(0, self.steps, one, None)
            plgpu.wait_smem_to_gmem(0)

    def fetch_next(self, slot: int, array: Heads, step: Index) -> None:
        """Send for the tile of the step behind this one, if there is one."""
        later = lambda: self.fetch(slot, array, step + 1, self.tile(step + 1))
        self.when_more(step, later)

    def when_more(self, step: Index, then: Callable[[], None]) -> None:
        """Do what is to be done unless a step is the last one."""
        pl.when(step + 1 < self.steps)(then)

    def _group(self, step: Index) -> Array:
        return self.program + step * self.count


class Stream:
    """All blocks of two arrays of each step's head, and of vectors of its tokens."""

    def __init__(
        self, program: LongProgram, arrays: list[Heads], vectors: list, given: dict
    ):
        self.program, self.arrays, self.vectors = program, arrays, vectors
        self.raw, self.raw_vectors = given["raw"], given["raw_vectors"]
        self.ordered = [*given["ordered"], *given["vectors"]]
        self.arrived, self.full, self.free = (
            given[name] for name in ("arrived", "full", "free")
        )
        self.blocks = program.work.blocks
        _, self.block, self.stages = program.plan
        self.total = program.steps * self.blocks

    def bring(self) -> None:
        """Bring all blocks of all steps; for the last warpgroup alone."""
        jax.lax.fori_loop(0, RAW, lambda number, _: self._fetch(number), None)
        jax.lax.fori_loop(0, self.total, self._order, None)

    def over_blocks(self, step: Index, look: Callable, carry: Any) -> Any:
        """`carry = look(block, carry)` over a step's blocks of arrays and vectors."""

        def one(number, carry):
            carry = look(self._wait(step, number), carry)
            self._done(step, number)
            return carry

        return jax.lax.fori_loop(0, self.blocks, one, carry)

    def over_pairs(self, step: Index, first: Callable, look: Callable) -> Any:
        """`carry = look(next, block, carry)` over a step's blocks.

        It begins with `carry = first(block)`; behind the last one `next` is None.
        """

        def one(number, carry):
            later = self._wait(step, number + 1)
            carry = look(later, self._seen(step, number), carry)
            self._done(step, number)
            return carry

        carry = first(self._wait(step, 0))
        last = self.blocks - 1
        carry = jax.lax.fori_loop(0, last, one, carry)
        carry = look(None, self._seen(step, last), carry)
        self._done(step, last)
        return carry

    def _wait(self, step: Index, number: Index) -> list[Ref]:
        """A step's block, when it is in order."""
        plgpu.barrier_wait(self.full.at[self._stage(step, number)])
        return self._seen(step, number)

    def _seen(self, step: Index, number: Index) -> list[Ref]:
        stage = self._stage(step, number)
        return [ref.at[stage] for ref in self.ordered]

    def _done(self, step: Index, number: Index) -> None:
        """The warpgroup does not need the block any more."""
        plgpu.barrier_arrive(self.free.at[self._stage(step, number)])

    def _stage(self, step: Index, number: Index) -> Array:
        return jax.lax.rem(step * self.blocks + number, jnp.int32(self.stages))

    def _fetch(self, number: Array) -> None:
        blocks = jnp.int32(self.blocks)
        image, head = self.program.number(jax.lax.div(number, blocks))
        start = jax.lax.rem(number, blocks) * self.block
        rows = pl.ds(pl.multiple_of(start, self.block), self.block)
        raw = jax.lax.rem(number, jnp.int32(RAW))
        arrived = self.arrived.at[raw]
        for which, array in enumerate(self.arrays):
            source = array.ref.at[image, rows, array.first + head]
            plgpu.copy_gmem_to_smem(source, self.raw.at[raw, which], arrived)
        for vector, to in zip(self.vectors, self.raw_vectors, strict=True):
            plgpu.copy_gmem_to_smem(vector.at[image, head, rows], to.at[raw], arrived)

    def _order(self, number: Array, nothing: None) -> None:
        raw = jax.lax.rem(number, jnp.int32(RAW))
        stage = jax.lax.rem(number, jnp.int32(self.stages))
        plgpu.barrier_wait(self.arrived.at[raw])
        free = lambda: plgpu.barrier_wait(self.free.at[stage])
        pl.when(number >= self.stages)(free)
        layout = plgpu.Layout.WGMMA
        for which, to in enumerate(self.ordered[:2]):
            for start in range(0, self.block, ROWS):
                rows = pl.ds(start, ROWS)
                place = self.raw.at[raw, which, rows]
                tile = plgpu.load(place, layout=layout, optimized=False)
                # Ones behind the second array's rows: `sums_of` finds sums of weights.
                tile = padded(tile, self.program.sizes, value=float(which))
                to.at[stage, rows][...] = tile
        columns = layout.reduce(0)
        for ref, to in zip(self.raw_vectors, self.ordered[2:], strict=True):
            to.at[stage][...] = plgpu.load(ref.at[raw], layout=columns)
        plgpu.commit_smem()
        plgpu.barrier_arrive(self.full.at[stage])
        pl.when(number + RAW < self.total)(lambda: self._fetch(number + RAW))
        return nothing


def sums_of(found: Array, sizes: Sizes) -> Array:
    """Sums of weights, which products with the ones behind values have found."""
    return jax.lax.slice(found, (0, sizes.width), (ROWS, sizes.wide)).max(axis=1)
