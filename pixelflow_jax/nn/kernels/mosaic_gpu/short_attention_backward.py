"""Attention of short sequences on Hopper GPUs by Mosaic: the backward pass.

As many programs as there are multiprocessors, each with one head of one image after the
other: queries, keys, values and cotangents all in shared memory. Two passes, over tiles
of keys and then over tiles of queries, each compute the weights again: so nothing is
summed up between programs or warpgroups. While a tile is computed, the next ones are on
their way, those of the next head too: keys and values are needed as a whole in the
second pass alone, queries and cotangents in the first.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import multiprocessors, pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention import (
    ACROSS,
    LOG2E,
    ROWS,
    WARPGROUPS,
    Sizes,
    across,
    add,
    cut,
    down,
    for_products,
    full,
    hide,
    launch,
    like,
    load,
    meet,
    over_blocks,
    padded,
    rows_of,
    written,
)

KEYS_ACROSS = 2 * ACROSS  # of a tile of queries, which needs fewer registers
LONGEST_COPY = 256  # numbers
FIRST, SECOND = 0, 1  # a warpgroup's slots; the last one is another, or the second


@functools.partial(jax.jit, static_argnums=4)  # made once for all layers
def backward(
    arrays: tuple[Array, Array, Array],
    out: Array,
    sums: Array,
    cotangent: Array,
    length: int,
) -> tuple[Array, Array, Array]:
    """The gradients of queries, keys and values, which are `arrays`.

    `out` and `sums` are what `forward` gave for them. Behind `length` tokens cotangents
    count for nothing, and gradients of keys and values are zero.
    """
    b, n, heads, width = out.shape
    sizes = Sizes(n, length, width)
    total = b * heads
    count = min(multiprocessors(), total)
    whole = for_products((n, sizes.wide), out.dtype)
    copies = -(-n // LONGEST_COPY)
    return tuple(
        launch(
            functools.partial(_kernel, sizes, heads, total, count),
            "short_attention_backward",
            [*arrays, out, cotangent, sums],
            outs=[like(out)] * 3,
            scratch=[
                [whole] * 4,
                plgpu.SMEM((WARPGROUPS, sizes.slots, ROWS, width), out.dtype),
                *[plgpu.SMEM((2, sizes.numbers), jnp.float32)] * 2,
                plgpu.Barrier(num_barriers=WARPGROUPS * sizes.slots),
                plgpu.Barrier(num_barriers=2, num_arrivals=copies),
                *[plgpu.Barrier(num_arrivals=WARPGROUPS)] * 2,
            ],
            grid={"program": count},
        )
    )


def shares(tiles: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many tiles of keys, and of queries, each of two warpgroups computes.

    A tile of keys is four products for each block, one of queries three.
    """
    pairs = [(a, b) for a in range(tiles + 1) for b in range(tiles + 1)]
    cost = lambda a, b: max(4 * a + 3 * b, 4 * (tiles - a) + 3 * (tiles - b))
    keys, queries = min(pairs, key=lambda pair: cost(*pair))
    return (keys, tiles - keys), (queries, tiles - queries)


class _Warpgroup:
    """A warpgroup's way to the arrays of the heads that are its program's.

    The `step`-th head of a program is the `program + step * count`-th of all.
    """

    def __init__(self, sizes: Sizes, heads: int, count: int, slots, arrived):
        self.sizes, self.heads, self.count = sizes, heads, count
        self.program = jax.lax.axis_index("program")
        self.warpgroup = jax.lax.axis_index("warpgroup")
        self.slots = slots.at[self.warpgroup]
        self.arrived = arrived

    def at(self, step) -> tuple[Array, Array]:
        """The image and the head of a step."""
        number, heads = self.program + step * self.count, jnp.int32(self.heads)
        return jax.lax.div(number, heads), jax.lax.rem(number, heads)

    def _barrier(self, slot: int):
        return self.arrived.at[self.warpgroup * self.sizes.slots + slot]

    def fetch(self, slot: int, ref, step, tile) -> None:
        """Send for a tile of a step's array; `fetched` waits for it."""
        image, head = self.at(step)
        rows = ref.at[image, rows_of(self.sizes, tile), head]
        plgpu.copy_gmem_to_smem(rows, self.slots.at[slot], self._barrier(slot))

    def fetched(self, slot: int) -> Array:
        plgpu.barrier_wait(self._barrier(slot))
        return load(self.slots.at[slot])

    def write(self, slot: int, ref, step, tile, rows: Array) -> None:
        """Send a tile of a step's result out, by a slot; `written` waits for it."""
        image, head = self.at(step)
        written()
        place = self.slots.at[slot]
        place[...] = cut(rows.astype(ref.dtype), self.sizes)
        plgpu.commit_smem()
        out = ref.at[image, rows_of(self.sizes, tile), head]
        plgpu.copy_smem_to_gmem(place, out)


def _kernel(
    sizes: Sizes,
    heads: int,
    total: int,
    count: int,
    *references: Any,
):
    q_ref, k_ref, v_ref, out_ref, d_ref, sums_ref, dq_ref, dk_ref, dv_ref = (
        references[:9]
    )
    (queries, keys, values, cotangents), slots, sums, alongs = references[9:13]
    arrived, sums_arrived, ready, free = references[13:]
    own = _Warpgroup(sizes, heads, count, slots, arrived)
    steps = jax.lax.div(total - own.program + (count - 1), jnp.int32(count))
    of_keys, of_queries = (_bounds(own.warpgroup, s) for s in shares(sizes.tiles))
    first_key, first_query = of_keys[0], of_queries[0]
    last = sizes.slots - 1
    roomy = last != SECOND
    # Where tiles share rows, the next head's come when all of this one's are computed.
    at_once = roomy and not sizes.ragged

    def fetch_sums(step) -> None:
        image, head = own.at(step)
        side = jax.lax.rem(step, jnp.int32(2))

        @pl.when(own.warpgroup == 0)
        def _():
            for start in range(0, sizes.n, LONGEST_COPY):
                part = pl.ds(start, min(LONGEST_COPY, sizes.n - start))
                plgpu.copy_gmem_to_smem(
                    *(sums_ref.at[image, head, part], sums.at[side, part]),
                    sums_arrived.at[side],
                )

    def order(to, tile, rows: Array) -> None:
        to.at[rows_of(sizes, tile)][...] = padded(rows, sizes)

    def seen(rows: Array, tile) -> Array:
        """Rows of tokens; zeros for those that are not looked at."""
        if sizes.length == sizes.n:
            return rows
        return hide(rows, rows_of(sizes, tile).start, sizes.length, 0.0, axis=0)

    def along(step, tile, d: Array, out: Array) -> None:
        """How much a query's result changes with its weights' common scale."""
        side = jax.lax.rem(step, jnp.int32(2))
        products = d.astype(jnp.float32) * out.astype(jnp.float32)
        alongs.at[side, rows_of(sizes, tile)][...] = products.sum(axis=1)

    def prepare(step, tile, later) -> None:
        """Order queries and cotangents of a tile, whose slots they are coming to.

        `later(slot)` sends for what comes next to a slot.
        """
        d = seen(own.fetched(SECOND), tile)
        order(cotangents, tile, d)
        own.fetch(SECOND, out_ref, step, tile)
        order(queries, tile, own.fetched(FIRST))
        later(FIRST)
        along(step, tile, d, own.fetched(SECOND))
        later(SECOND)

    def begin(tile, nothing):
        own.fetch(FIRST, q_ref, 0, tile)
        own.fetch(SECOND, d_ref, 0, tile)
        prepare(0, tile, later=lambda slot: None)
        return nothing

    jax.lax.fori_loop(*of_queries, begin, None)
    fetch_sums(jnp.int32(0))
    own.fetch(FIRST, k_ref, 0, first_key)
    own.fetch(SECOND, v_ref, 0, first_key)

    def one(step, nothing):
        side, more = jax.lax.rem(step, jnp.int32(2)), step + 1 < steps
        vectors = sums.at[side], alongs.at[side]
        meet(free)  # all have done with the keys and values of the head before
        plgpu.barrier_wait(sums_arrived.at[side])
        pl.when(more)(lambda: fetch_sums(step + 1))

        def key_tile(tile, nothing):
            order(keys, tile, own.fetched(FIRST))
            order(values, tile, own.fetched(SECOND))
            plgpu.commit_smem()

            @pl.when(tile + 1 < of_keys[1])
            def _():
                own.fetch(FIRST, k_ref, step, tile + 1)
                if roomy:
                    own.fetch(SECOND, v_ref, step, tile + 1)

            @pl.when((tile + 1 == of_keys[1]) & more)
            def _():
                own.fetch(FIRST, q_ref, step + 1, first_query)
                if roomy:
                    own.fetch(SECOND, d_ref, step + 1, first_query)

            rows = rows_of(sizes, tile)
            dk, dv = _of_keys(
                *(sizes, keys.at[rows], values.at[rows]), queries, cotangents, *vectors
            )
            own.write(last, dv_ref, step, tile, seen(dv, tile))
            own.write(last, dk_ref, step, tile, seen(dk, tile))
            if not roomy:

                @pl.when(tile + 1 < of_keys[1])
                def _():
                    written()
                    own.fetch(SECOND, v_ref, step, tile + 1)

            return nothing

        jax.lax.fori_loop(*of_keys, key_tile, None)
        if at_once:

            @pl.when(more)
            def _():
                written()
                own.fetch(last, out_ref, step + 1, first_query)

        meet(ready)  # all keys and values are there, and the first pass is over

        def gradient(tile) -> Array:
            rows = rows_of(sizes, tile)
            mine = [
                plgpu.load(ref.at[rows], layout=plgpu.Layout.WGMMA.reduce(1))
                for ref in vectors
            ]
            return _of_queries(
                *(sizes, queries.at[rows], cotangents.at[rows], keys, values), *mine
            )

        def query_tile(tile, nothing):
            own.write(last, dq_ref, step, tile, gradient(tile))
            return nothing

        def after(tile):
            """Sends for the next head's next tile of queries, or first one of keys."""
            another = tile + 1 < of_queries[1]

            def later(slot: int) -> None:
                query, key = ((q_ref, k_ref), (d_ref, v_ref))[slot]
                pl.when(another)(lambda: own.fetch(slot, query, step + 1, tile + 1))
                pl.when(~another)(lambda: own.fetch(slot, key, step + 1, first_key))

            return later

        def prepare_next(tile, nothing):
            prepare(step + 1, tile, after(tile))
            return nothing

        def query_tile_and_next(tile, nothing):
            dq = gradient(tile)
            pl.when(more)(lambda: order(queries, tile, own.fetched(FIRST)))
            own.write(FIRST, dq_ref, step, tile, dq)

            @pl.when(more)
            def _():
                d = seen(own.fetched(SECOND), tile)
                order(cotangents, tile, d)
                along(step + 1, tile, d, own.fetched(last))
                written()
                after(tile)(FIRST)
                after(tile)(SECOND)
                pl.when(tile + 1 < of_queries[1])(
                    lambda: own.fetch(last, out_ref, step + 1, tile + 1)
                )

            return nothing

        if at_once:
            jax.lax.fori_loop(*of_queries, query_tile_and_next, None)
        else:
            jax.lax.fori_loop(*of_queries, query_tile, None)

            @pl.when(more)
            def _():
                if not roomy:
                    written()
                    own.fetch(SECOND, d_ref, step + 1, first_query)
                jax.lax.fori_loop(*of_queries, prepare_next, None)

        plgpu.commit_smem()
        return nothing

    plgpu.commit_smem()
    jax.lax.fori_loop(0, steps, one, None)
    plgpu.wait_smem_to_gmem(0)


def _bounds(warpgroup: Array, counts: tuple[int, int]) -> tuple[Array, Array]:
    """A warpgroup's first tile and the one behind its last."""
    is_first = warpgroup == 0
    start = jnp.where(is_first, 0, jnp.int32(counts[0]))
    return start, jnp.where(is_first, counts[0], jnp.int32(sum(counts)))


def _of_keys(sizes: Sizes, k, v, queries, cotangents, sums, alongs) -> list[Array]:
    """The gradients of a tile of keys and of values."""
    scale = sizes.width**-0.5
    columns = plgpu.Layout.WGMMA.reduce(0)

    def block(start, size: int, found: list[Array], masked: bool = False) -> list:
        place = pl.ds(start, size)
        q, d = queries.at[place], cotangents.at[place]
        logits, changes = _two_products((k, q), (v, d), size)
        top = plgpu.load(sums.at[place], layout=columns)
        along = plgpu.load(alongs.at[place], layout=columns)
        weights = jnp.exp2(logits * (LOG2E * scale) - across(top, logits))
        dlogits = weights * (changes - across(along, logits))
        halves = (a.astype(k.dtype) for a in (dlogits, weights))
        return add(found, list(zip(halves, (q, d), strict=True)))

    zeros = [full((ROWS, sizes.wide), 0.0)] * 2
    # Queries that are not looked at have cotangents of zero: no need to hide them.
    dk, dv = over_blocks(sizes._replace(length=sizes.n), ACROSS, block, zeros)
    return [dk * scale, dv]


def _of_queries(
    sizes: Sizes, q, d, keys, values, top: Array, along: Array
) -> Array:
    """The gradient of a tile of queries."""
    scale = sizes.width**-0.5

    def block(start, size: int, found: list[Array], masked: bool = False) -> list:
        place = pl.ds(start, size)
        k, v = keys.at[place], values.at[place]
        logits, changes = _two_products((q, k), (d, v), size)
        if masked:
            logits = hide(logits, start, sizes.length, -jnp.inf, axis=1)
        weights = jnp.exp2(logits * (LOG2E * scale) - down(top, logits))
        dlogits = weights * (changes - down(along, logits))
        return add(found, [(dlogits.astype(q.dtype), k)])

    zeros = [full((ROWS, sizes.wide), 0.0)]
    return over_blocks(sizes, KEYS_ACROSS, block, zeros)[0] * scale


def _two_products(first: tuple, second: tuple, size: int) -> tuple[Array, Array]:
    """rows @ block^T of both pairs, at the same time."""

    def products(*found) -> tuple[Array, ...]:
        for new, (rows, block) in zip(found, (first, second), strict=True):
            plgpu.wgmma(new, rows, block.transpose((1, 0)))
        return tuple(new[...] for new in found)

    return pl.run_scoped(products, *[plgpu.ACC((ROWS, size), jnp.float32)] * 2)
