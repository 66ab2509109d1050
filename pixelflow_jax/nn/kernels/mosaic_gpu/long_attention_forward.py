"""Attention of long sequences on Hopper GPUs by Mosaic: the forward pass.

A warpgroup has the products of the next block's logits and of the present one's values
under way together, and weighs the next block as soon as its logits are there.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import (
    Bias,
    Heads,
    Index,
    last_heads,
    like,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.long_attention import (
    LongProgram,
    Plan,
    Stream,
    Work,
    sums_of,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    ROWS,
    add,
    down,
    full,
    logits_of,
    padded,
    result,
    weigh,
)

PLAN = Plan(warpgroups=3, block=64, stages=4)
QUERY, RESULT = range(2)  # a warpgroup's slots


@functools.partial(jax.jit, static_argnums=3)  # made once for all layers
def forward(
    q: Array, k: Array, v: Array, plan: Plan = PLAN, bias: Array | None = None
) -> tuple[Array, Array]:
    """What queries find in keys, of arrays [b, n, heads, width].

    And log2 of the sums of exponentials [b, heads, n], which `backward` needs. Of `v`
    and of `bias` [some, width], which it lacks, the last heads are looked at.
    """
    work = Work.of(q, plan)
    b, n, heads, _ = q.shape
    return work.launch(
        _Forward,
        "long_attention_forward",
        [q, k, v] if bias is None else [q, k, v, bias],
        outs=[like(q), jax.ShapeDtypeStruct((b, heads, n), jnp.float32)],
        scratch=[
            *work.slots(q.dtype, 2),
            work.vectors(),
            work.stream(q.dtype),
        ],
    )


class _Forward(LongProgram):
    """What a warpgroup of a program does, with the arrays that it reads and writes."""

    def __init__(self, work: Work, references):
        q, k, v, *bias, out, self.sums_of_all = references[:-4]
        self.q, self.out = Heads(q), Heads(out)
        self.bias = Bias(bias[0], work.heads) if bias else None
        slots, arrived, sums, given = references[-4:]
        super().__init__(work, slots, arrived)
        self.sums = sums.at[self.warpgroup]
        self.stream = Stream(self, [Heads(k), last_heads(v, work.heads)], [], given)

    def begin(self) -> None:
        """Send for the first tile."""
        self.fetch(QUERY, self.q, 0, self.tile(0))

    def step(self, step: Index) -> None:
        """What a tile of queries finds."""
        q = padded(self.fetched(QUERY), self.sizes)
        self.fetch_next(QUERY, self.q, step)
        top, _, found = self.stream.over_pairs(
            step, functools.partial(self._first, q), functools.partial(self._look, q)
        )
        found, tops = result(top, sums_of(found, self.sizes), found)
        found, tile = self.with_bias(step, found, self.bias), self.tile(step)
        self.write(RESULT, self.out, step, tile, found)
        self.sums[...] = tops
        plgpu.commit_smem()
        image, head = self.number(step)
        place = self.sums_of_all.at[image, head, self.rows(tile)]
        plgpu.copy_smem_to_gmem(self.sums, place)

    def _first(self, q: Array, block) -> tuple[Array, Array, Array]:
        """The largest logits, a block's weights, and what is found without it."""
        nothing = full((ROWS, self.sizes.wide), 0.0)
        top, _, weights = weigh(
            self.sizes, logits_of(q, block[0]), full((ROWS,), -jnp.inf)
        )
        return top, weights.astype(q.dtype), nothing

    def _look(self, q: Array, later, block, carry):
        """The same with the next block's weights, and what is found in the present."""
        before, weights, found = carry
        values = block[1]
        if later is None:
            return before, weights, add([found], [(weights, values)])[0]
        keys = later[0]

        def products(logits, sums):
            sums[...] = found
            plgpu.wgmma(logits, q, keys.transpose((1, 0)))
            plgpu.wgmma(sums, weights, values)
            ready = plgpu.wgmma_accumulator_load(logits, wait_n=1)  # not yet for sums
            top, fewer, later_weights = weigh(self.sizes, ready, before)
            done = sums[...]
            return top, later_weights.astype(q.dtype), done * down(fewer, done)

        shapes = (ROWS, keys.shape[0]), found.shape
        accumulators = [plgpu.ACC(shape, jnp.float32) for shape in shapes]
        return pl.run_scoped(products, *accumulators)
