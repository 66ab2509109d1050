"""Attention of short sequences on Hopper GPUs by Mosaic: the forward pass.

As many programs as there are multiprocessors, each with one head of one image after the
other. Each warpgroup lays tiles of keys and values into shared memory, and computes
tiles of queries, which stay in its registers; what it lays and computes next is on its
way meanwhile.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import multiprocessors, pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import (
    Program,
    for_products,
    launch,
    like,
    meet,
    written,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention import (
    ACROSS,
    FORWARD_SLOTS,
    forward_slots,
    forward_warpgroups,
    over_blocks,
    seen_of,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    ROWS,
    Sizes,
    full,
    look,
    padded,
    result,
)

# A warpgroup's slots; results leave by a fourth one, or by that of queries.
KEY, VALUE, QUERY = range(FORWARD_SLOTS)


@functools.partial(jax.jit, static_argnums=3)  # made once for all layers
def forward(q: Array, k: Array, v: Array, length: int) -> tuple[Array, Array]:
    """What queries find in the first `length` keys, of arrays [b, n, heads, width].

    And log2 of the sums of exponentials [b, heads, n], which `backward` needs.
    """
    b, n, heads, width = q.shape
    sizes = Sizes(n, length, width)
    warpgroups, slots = forward_warpgroups(sizes), forward_slots(sizes)
    total = b * heads
    count = min(multiprocessors(), total)
    return launch(
        lambda *given: _Forward(sizes, heads, total, count, warpgroups, given).run(),
        "short_attention_forward",
        [q, k, v],
        outs=[like(q), jax.ShapeDtypeStruct((b, heads, n), jnp.float32)],
        scratch=[
            *[for_products((n, sizes.wide), q.dtype)] * 2,
            plgpu.SMEM((warpgroups, slots, ROWS, width), q.dtype),
            plgpu.SMEM((warpgroups, ROWS), jnp.float32),
            plgpu.Barrier(num_barriers=warpgroups * slots),
            *[plgpu.Barrier(num_arrivals=warpgroups)] * 2,
        ],
        programs=count,
        warpgroups=warpgroups,
    )


class _Forward(Program):
    """What a warpgroup of a program does, with the arrays that it reads and writes."""

    def __init__(self, sizes, heads, total, count, warpgroups, references):
        self.q, self.k, self.v, self.out, self.sums_of_all = references[:5]
        self.keys, self.values, slots, sums, arrived, *barriers = references[5:]
        super().__init__(sizes, heads, total, count, slots, arrived)
        self.warpgroups = warpgroups
        self.sums = sums.at[self.warpgroup]
        self.ready, self.free = barriers
        self.result = self.slot_count - 1
        self.roomy = self.result != QUERY

    def run(self) -> None:
        """What all queries of the program's heads find."""
        for slot, ref in ((KEY, self.k), (VALUE, self.v), (QUERY, self.q)):
            self.fetch(slot, ref, 0, self.warpgroup)
        jax.lax.fori_loop(0, self.steps, self._head, None)
        plgpu.wait_smem_to_gmem(0)

    def _head(self, step, nothing):
        meet(self.free)  # all have done with the keys and values of the head before
        self._turns(functools.partial(self._lay, step))
        plgpu.commit_smem()
        meet(self.ready)
        self._turns(functools.partial(self._find, step))
        return nothing

    def _turns(self, one) -> None:
        """`one(tile)` for each tile that is the warpgroup's."""
        for number in range(-(-self.sizes.tiles // self.warpgroups)):
            tile = number * self.warpgroups + self.warpgroup
            if (number + 1) * self.warpgroups <= self.sizes.tiles:
                one(tile)
            else:
                pl.when(tile < self.sizes.tiles)(functools.partial(one, tile))

    def _lay(self, step, tile) -> None:
        for slot, ref, to in (
            (KEY, self.k, self.keys),
            (VALUE, self.v, self.values),
        ):
            self.order(to, tile, self.fetched(slot))
            self._later(slot, ref, step, tile)

    def _find(self, step, tile) -> None:
        q = padded(self.fetched(QUERY), self.sizes)
        if self.roomy:
            self._later(QUERY, self.q, step, tile)
        found, tops = _attend(self.sizes, q, self.keys, self.values)
        self.write(self.result, self.out, step, tile, found)
        self.sums[...] = tops
        plgpu.commit_smem()
        image, head = self.number(step)
        rows = self.rows(tile)
        plgpu.copy_smem_to_gmem(self.sums, self.sums_of_all.at[image, head, rows])
        if not self.roomy:
            written()
            self._later(QUERY, self.q, step, tile)

    def _later(self, slot: int, ref, step, tile) -> None:
        """Send for the warpgroup's next tile, of this head or the next one."""
        another = tile + self.warpgroups < self.sizes.tiles
        if self.sizes.tiles > self.warpgroups:
            pl.when(another)(
                lambda: self.fetch(slot, ref, step, tile + self.warpgroups)
            )
        pl.when(~another & (step + 1 < self.steps))(
            lambda: self.fetch(slot, ref, step + 1, self.warpgroup)
        )


def _attend(sizes: Sizes, q: Array, keys, values) -> tuple[Array, Array]:
    """What a tile of queries finds, and log2 of the sums of its exponentials."""

    def block(start, size: int, carry: tuple, masked: bool = False) -> tuple:
        place = pl.ds(start, size)
        seen = seen_of(sizes, start) if masked else None
        return look(sizes, q, keys.at[place], values.at[place], carry, seen)

    column = full((ROWS,), 0.0)
    nothing = full((ROWS,), -jnp.inf), column, full((ROWS, sizes.wide), 0.0)
    return result(*over_blocks(sizes, ACROSS, block, nothing))
