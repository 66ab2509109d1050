"""Attention of long sequences on Hopper GPUs by Mosaic: the backward pass.

Two kernels, over tiles of queries and over tiles of keys, each compute the weights
again: so nothing is summed up between programs.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import (
    Heads,
    Index,
    last_heads,
    like,
    written,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.long_attention import (
    LongProgram,
    Plan,
    Stream,
    Work,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    ROWS,
    full,
    more_of_keys,
    more_of_queries,
    padded,
)

OF_QUERIES = Plan(warpgroups=2, block=64, stages=4)
OF_KEYS = Plan(warpgroups=2, block=64, stages=3)


@functools.partial(jax.jit, static_argnums=(4, 5))  # made once for all layers
def backward(
    arrays: tuple[Array, Array, Array],
    out: Array,
    sums: Array,
    cotangent: Array,
    of_queries: Plan = OF_QUERIES,
    of_keys: Plan = OF_KEYS,
) -> tuple[Array, Array, Array]:
    """The gradients of queries, keys and values, which are `arrays`.

    `out` and `sums` are what `forward` gave for them.
    """
    dq, alongs = _queries(arrays, out, sums, cotangent, of_queries)
    return dq, *_keys(arrays, cotangent, sums, alongs, of_keys)


def _queries(arrays, out, sums, cotangent, plan: Plan) -> tuple[Array, Array]:
    """The gradient of queries, and `along` of each [b, heads, n]."""
    work = Work.of(out, plan)
    return work.launch(
        _OfQueries,
        "long_attention_backward_of_queries",
        [*arrays, out, cotangent, sums],
        outs=[like(out), like(sums)],
        scratch=[
            *work.slots(out.dtype, _OfQueries.SLOTS),
            *[work.vectors()] * 2,
            plgpu.Barrier(num_barriers=plan.warpgroups),
            work.stream(out.dtype),
        ],
    )


def _keys(arrays, cotangent, sums, alongs, plan: Plan) -> tuple[Array, Array]:
    """The gradients of keys and values."""
    work = Work.of(cotangent, plan)
    return work.launch(
        _OfKeys,
        "long_attention_backward_of_keys",
        [*arrays, cotangent, sums, alongs],
        outs=[like(cotangent)] * 2,
        scratch=[
            *work.slots(cotangent.dtype, _OfKeys.SLOTS),
            work.stream(cotangent.dtype, vectors=2),
        ],
    )


class _OfQueries(LongProgram):
    """What a warpgroup does in the pass over tiles of queries."""

    QUERY, COTANGENT, RESULT = range(3)
    SLOTS = 3

    def __init__(self, work: Work, references):
        q, k, v, out, d, self.sums_of_all, dq, self.alongs_of_all = references[:8]
        self.q, self.out, self.d, self.dq = (Heads(ref) for ref in (q, out, d, dq))
        slots, arrived, sums, alongs, self.sums_arrived, given = references[8:]
        super().__init__(work, slots, arrived)
        self.sums, self.alongs = (a.at[self.warpgroup] for a in (sums, alongs))
        self.stream = Stream(self, [Heads(k), last_heads(v, work.heads)], [], given)

    def begin(self) -> None:
        """Send for the first tile."""
        tile = self.tile(0)
        self.fetch(self.QUERY, self.q, 0, tile)
        self.fetch(self.COTANGENT, self.d, 0, tile)
        self.fetch(self.RESULT, self.out, 0, tile)
        self._fetch_sums(0)

    def step(self, step: Index) -> None:
        """The gradient of a tile of queries."""
        q, d = self.fetched(self.QUERY), self.fetched(self.COTANGENT)
        self.fetch_next(self.QUERY, self.q, step)
        self.fetch_next(self.COTANGENT, self.d, step)
        out = self.fetched(self.RESULT)
        along = (d.astype(jnp.float32) * out.astype(jnp.float32)).sum(axis=1)
        arrived = self.sums_arrived.at[self.warpgroup]
        plgpu.barrier_wait(arrived)
        top = plgpu.load(self.sums, layout=plgpu.Layout.WGMMA.reduce(1))
        written()
        self.alongs[...] = along
        plgpu.commit_smem()
        tile = self.tile(step)
        image, head = self.number(step)
        place = self.alongs_of_all.at[image, head, self.rows(tile)]
        plgpu.copy_smem_to_gmem(self.alongs, place)
        self.when_more(step, lambda: self._fetch_sums(step + 1))
        q, d = padded(q, self.sizes), padded(d, self.sizes)

        def block(seen, found):
            keys, values = seen
            tile = q, d, top, along
            return more_of_queries(self.sizes, tile, keys, values, found)

        zeros = [full((ROWS, self.sizes.wide), 0.0)]
        found = self.stream.over_blocks(step, block, zeros)
        dq = found[0] * self.sizes.scale
        self.write(self.RESULT, self.dq, step, tile, dq)

        def out_of_next() -> None:
            written()
            self.fetch(self.RESULT, self.out, step + 1, self.tile(step + 1))

        self.when_more(step, out_of_next)

    def _fetch_sums(self, step) -> None:
        image, head = self.number(step)
        source = self.sums_of_all.at[image, head, self.rows(self.tile(step))]
        arrived = self.sums_arrived.at[self.warpgroup]
        plgpu.copy_gmem_to_smem(source, self.sums, arrived)


class _OfKeys(LongProgram):
    """What a warpgroup does in the pass over tiles of keys."""

    KEY, VALUE, RESULT = range(3)
    SLOTS = 3

    def __init__(self, work: Work, references):
        q, k, v, d, sums, alongs, dk, dv = references[:8]
        self.k, self.v = Heads(k), last_heads(v, work.heads)
        self.dk, self.dv = Heads(dk), Heads(dv)
        slots, arrived, given = references[8:]
        super().__init__(work, slots, arrived)
        self.stream = Stream(self, [Heads(q), Heads(d)], [sums, alongs], given)

    def begin(self) -> None:
        """Send for the first tile."""
        tile = self.tile(0)
        self.fetch(self.KEY, self.k, 0, tile)
        self.fetch(self.VALUE, self.v, 0, tile)

    def step(self, step: Index) -> None:
        """The gradients of a tile of keys and of values."""
        k, v = self.fetched(self.KEY), self.fetched(self.VALUE)
        self.fetch_next(self.KEY, self.k, step)
        self.fetch_next(self.VALUE, self.v, step)
        k, v = padded(k, self.sizes), padded(v, self.sizes)

        def block(seen, found):
            return more_of_keys(self.sizes, (k, v), seen, found)

        zeros = [full((ROWS, self.sizes.wide), 0.0)] * 2
        dk, dv = self.stream.over_blocks(step, block, zeros)
        tile = self.tile(step)
        self.write(self.RESULT, self.dv, step, tile, dv)
        dk = dk * self.sizes.scale
        self.write(self.RESULT, self.dk, step, tile, dk)
