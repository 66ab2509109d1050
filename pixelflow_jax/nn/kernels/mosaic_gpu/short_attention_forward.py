"""Attention of short sequences on Hopper GPUs by Mosaic: the forward pass.

As many programs as there are multiprocessors, each with one head of one image after the
other. Each warpgroup lays tiles of keys and values into shared memory, and computes
tiles of queries, which stay in its registers; what it lays and computes next is on its
way meanwhile.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import multiprocessors, pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import (
    KEYS,
    QUERIES,
    VALUES,
    Bias,
    Courier,
    Heads,
    for_products,
    last_heads,
    launch,
    meet,
    written,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention import (
    ACROSS,
    FORWARD_SLOTS,
    forward_shares,
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
from pixelflow_jax.nn.kernels.mosaic_gpu.turn import ANGLES, Turn

# A warpgroup's slots; results leave by a fourth one, or by that of queries.
KEY_SLOT, VALUE_SLOT, QUERY_SLOT = range(FORWARD_SLOTS)


@functools.partial(jax.jit, static_argnums=3)  # made once for all layers
def forward(
    q: Array, k: Array, v: Array, length: int, bias: Array | None = None
) -> tuple[Array, Array]:
    """What queries find in the first `length` keys, of arrays [b, n, heads, width].

    And log2 of the sums of exponentials [b, heads, n], which `backward` needs. Of `v`
    as many heads as there are queries' are looked at, the last ones, and of `bias`
    [some, width], which they lack.
    """
    heads = q.shape[2]

    def arrays(q, k, v, *bias) -> tuple:
        biases = Bias(bias[0], heads) if bias else None
        return Heads(q), Heads(k), last_heads(v, heads), None, biases

    inputs = [q, k, v] if bias is None else [q, k, v, bias]
    return _launch(inputs, arrays, heads, length)


@functools.partial(jax.jit, static_argnums=0)  # made once for all layers
def forward_projected(
    heads: int,
    qkv: Array,
    gains: tuple[Array, Array],
    angles: Array,
    bias: Array | None = None,
) -> Array:
    """The same of a projection [b, n, 3 * heads, width], with all that lies between.

    Its `bias` [3 * heads, width] is added, queries and keys are RMS-normalised, times
    their gains [width], and turned by `angles` [n, width], cosine and sine of each
    pair: all of it on their way.
    """
    inputs = [qkv, *gains, angles.astype(ANGLES)]
    inputs += [] if bias is None else [bias]

    def arrays(qkv, q_gain, k_gain, angles, *others) -> tuple:
        *bias, near, arrived = others
        biases = Bias(bias[0], heads) if bias else None
        parts = (Heads(qkv, part * heads) for part in (QUERIES, KEYS, VALUES))
        return *parts, Turn((q_gain, k_gain), angles, biases, near, arrived), biases

    return _launch(inputs, arrays, heads, qkv.shape[1], turned=True)[0]


def _launch(
    inputs: list[Array],
    arrays: Callable[..., tuple],
    heads: int,
    length: int,
    turned: bool = False,
) -> Any:
    """The results for what `arrays` makes of the references of inputs."""
    b, n, _, width = inputs[0].shape
    sizes = Sizes(n, length, width)
    warpgroups, slots = forward_shares(sizes, turned)
    dtype, count = inputs[0].dtype, min(multiprocessors(), b * heads)
    near = Turn.scratch(n, width) if turned else []

    def kernel(*references) -> None:
        given, others = references[: len(inputs)], references[len(inputs) :]
        rest = len(others) - len(near)
        looked_at = arrays(*given, *others[rest:])
        _Forward(sizes, heads, count, warpgroups, looked_at, others[:rest]).run()

    return launch(
        kernel,
        "short_attention_forward",
        inputs,
        outs=[
            jax.ShapeDtypeStruct((b, n, heads, width), dtype),
            jax.ShapeDtypeStruct((b, heads, n), jnp.float32),
        ],
        scratch=[
            *[for_products((n, sizes.wide), dtype)] * 2,
            plgpu.SMEM((warpgroups, slots, ROWS, width), dtype),
            plgpu.SMEM((warpgroups, ROWS), jnp.float32),
            plgpu.Barrier(num_barriers=warpgroups * slots),
            *[plgpu.Barrier(num_arrivals=warpgroups)] * 2,
            *near,
        ],
        programs=count,
        warpgroups=warpgroups,
    )


class _Forward(Courier):
    """What a warpgroup of a program does, with the arrays that it reads and writes."""

    def __init__(self, sizes, heads, count, warpgroups, looked_at: tuple, references):
        self.q, self.k, self.v, self.turn, self.bias = looked_at
        out, self.sums_of_all = references[:2]
        total = out.shape[0] * heads
        self.keys, self.values, slots, sums, arrived, *barriers = references[2:]
        super().__init__(sizes, heads, total, count, slots, arrived)
        self.out, self.warpgroups = Heads(out), warpgroups
        self.sums = sums.at[self.warpgroup]
        self.ready, self.free = barriers
        self.result = self.slot_count - 1
        self.roomy = self.result != QUERY_SLOT

    def run(self) -> None:
        """What all queries of the program's heads find."""
        if self.turn is not None:
            pl.when(self.warpgroup == 0)(self.turn.fetch)
        for slot, ref in (
            (KEY_SLOT, self.k),
            (VALUE_SLOT, self.v),
            (QUERY_SLOT, self.q),
        ):
            self.fetch(slot, ref, 0, self.warpgroup)
        if self.turn is not None:
            self.turn.fetched()
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
        self.order(self.keys, tile, self._turned(KEY_SLOT, step, tile))
        self._later(KEY_SLOT, self.k, step, tile)
        self.order(self.values, tile, self.fetched(VALUE_SLOT))
        self._later(VALUE_SLOT, self.v, step, tile)

    def _turned(self, slot: int, step, tile) -> Array:
        """A tile of queries or keys, normalised and turned where that is to be done."""
        rows = self.fetched(slot)
        if self.turn is None:
            return rows
        part = QUERIES if slot == QUERY_SLOT else KEYS
        _, head = self.number(step)
        return self.turn.apply(rows, part, head, self.rows(tile))

    def _find(self, step, tile) -> None:
        q = padded(self._turned(QUERY_SLOT, step, tile), self.sizes)
        if self.roomy:
            self._later(QUERY_SLOT, self.q, step, tile)
        found, tops = _attend(self.sizes, q, self.keys, self.values)
        found = self.with_bias(step, found, self.bias)
        self.write(self.result, self.out, step, tile, found)
        self.sums[...] = tops
        plgpu.commit_smem()
        image, head = self.number(step)
        rows = self.rows(tile)
        plgpu.copy_smem_to_gmem(self.sums, self.sums_of_all.at[image, head, rows])
        if not self.roomy:
            written()
            self._later(QUERY_SLOT, self.q, step, tile)

    def _later(self, slot: int, array: Heads, step, tile) -> None:
        """Send for the warpgroup's next tile, of this head or the next one."""
        another = tile + self.warpgroups < self.sizes.tiles
        if self.sizes.tiles > self.warpgroups:
            pl.when(another)(
                lambda: self.fetch(slot, array, step, tile + self.warpgroups)
            )
        pl.when(~another & (step + 1 < self.steps))(
            lambda: self.fetch(slot, array, step + 1, self.warpgroup)
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
