"""Attention of short sequences on Hopper GPUs by Mosaic: the backward pass.

As many programs as there are multiprocessors, each with one head of one image after the
other: queries, keys, values and cotangents all in shared memory. Two passes, over tiles
of keys and then over tiles of queries, each compute the weights again: so nothing is
summed up between programs or warpgroups. While a tile is computed, the next ones are on
their way, those of the next head too: keys and values are needed as a whole in the
second pass alone, queries and cotangents in the first.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import multiprocessors, pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import (
    LONGEST_COPY,
    Courier,
    Heads,
    for_products,
    last_heads,
    launch,
    like,
    meet,
    written,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention import (
    ACROSS,
    WARPGROUPS,
    backward_slots,
    over_blocks,
    seen_of,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    ROWS,
    Sizes,
    full,
    hide,
    more_of_keys,
    more_of_queries,
    padded,
)

# Of a tile of queries, which needs fewer registers: what leaves no rest.
KEYS_ACROSS = (ACROSS, 96)
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
    slots = backward_slots(sizes)
    copies = -(-n // LONGEST_COPY)
    return tuple(
        launch(
            lambda *given: _Backward(sizes, heads, total, count, given).run(),
            "short_attention_backward",
            [*arrays, out, cotangent, sums],
            outs=[like(out)] * 3,
            scratch=[
                [whole] * 4,
                plgpu.SMEM((WARPGROUPS, slots, ROWS, width), out.dtype),
                *[plgpu.SMEM((2, sizes.numbers), jnp.float32)] * 2,
                plgpu.Barrier(num_barriers=WARPGROUPS * slots),
                plgpu.Barrier(num_barriers=2, num_arrivals=copies),
                *[plgpu.Barrier(num_arrivals=WARPGROUPS)] * 2,
            ],
            programs=count,
            warpgroups=WARPGROUPS,
        )
    )


def shares(tiles: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """How many tiles of keys, and of queries, each of two warpgroups computes.

    A tile of keys is four products for each block, one of queries three. Each has some
    of both, since what is sent for ahead is for a warpgroup's own first tile.
    """
    pairs = [(a, b) for a in range(1, tiles) for b in range(1, tiles)]
    cost = lambda a, b: max(4 * a + 3 * b, 4 * (tiles - a) + 3 * (tiles - b))
    keys, queries = min(pairs, key=lambda pair: cost(*pair))
    return (keys, tiles - keys), (queries, tiles - queries)


class _Backward(Courier):
    """What a warpgroup of a program does, with the arrays that it reads and writes."""

    def __init__(self, sizes: Sizes, heads: int, total: int, count: int, references):
        q, k, v, out, d, self.sums_of_all, *gradients = references[:9]
        self.q, self.k, self.v = Heads(q), Heads(k), last_heads(v, heads)
        self.out, self.d = Heads(out), Heads(d)
        self.dq, self.dk, self.dv = (Heads(ref) for ref in gradients)
        whole, slots, self.sums, self.alongs = references[9:13]
        self.queries, self.keys, self.values, self.cotangents = whole
        arrived, self.sums_arrived, self.ready, self.free = references[13:]
        super().__init__(sizes, heads, total, count, slots, arrived)
        self.of_keys, self.of_queries = (
            _bounds(self.warpgroup, counts) for counts in shares(sizes.tiles)
        )
        self.last = self.slot_count - 1
        self.roomy = self.last != SECOND
        # Where tiles share rows, the next head's come when this one's are all computed.
        self.at_once = self.roomy and not sizes.ragged

    def run(self) -> None:
        """The gradients of all heads that are the program's."""
        jax.lax.fori_loop(*self.of_queries, self._begin, None)
        self._fetch_sums(jnp.int32(0))
        self.fetch(FIRST, self.k, 0, self.of_keys[0])
        self.fetch(SECOND, self.v, 0, self.of_keys[0])
        plgpu.commit_smem()
        jax.lax.fori_loop(0, self.steps, self._head, None)
        plgpu.wait_smem_to_gmem(0)

    def _begin(self, tile, nothing):
        self.fetch(FIRST, self.q, 0, tile)
        self.fetch(SECOND, self.d, 0, tile)
        self._prepare(0, tile, later=lambda slot: None)
        return nothing

    def _head(self, step, nothing):
        more = step + 1 < self.steps
        meet(self.free)  # all have done with the keys and values of the head before
        plgpu.barrier_wait(self.sums_arrived.at[_side(step)])
        pl.when(more)(lambda: self._fetch_sums(step + 1))
        one = functools.partial(self._tile_of_keys, step, more)
        jax.lax.fori_loop(*self.of_keys, one, None)
        if self.at_once:

            @pl.when(more)
            def _():
                written()
                self.fetch(self.last, self.out, step + 1, self.of_queries[0])

        meet(self.ready)  # all keys and values are there, and the first pass is over
        if self.at_once:
            one = functools.partial(self._tile_of_queries_and_next, step, more)
            jax.lax.fori_loop(*self.of_queries, one, None)
        else:
            one = functools.partial(self._tile_of_queries, step)
            jax.lax.fori_loop(*self.of_queries, one, None)
            pl.when(more)(functools.partial(self._prepare_all, step + 1))
        plgpu.commit_smem()
        return nothing

    def _tile_of_keys(self, step, more, tile, nothing):
        k, v = self.fetched(FIRST), self.fetched(SECOND)
        self.order(self.keys, tile, k)
        self.order(self.values, tile, v)
        plgpu.commit_smem()
        another = tile + 1 < self.of_keys[1]

        @pl.when(another)
        def _():
            self.fetch(FIRST, self.k, step, tile + 1)
            if self.roomy:
                self.fetch(SECOND, self.v, step, tile + 1)

        @pl.when(~another & more)
        def _():
            self.fetch(FIRST, self.q, step + 1, self.of_queries[0])
            if self.roomy:
                self.fetch(SECOND, self.d, step + 1, self.of_queries[0])

        k, v = padded(k, self.sizes), padded(v, self.sizes)
        vectors = self._vectors(step)
        dk, dv = _of_keys(self.sizes, k, v, self.queries, self.cotangents, *vectors)
        self.write(self.last, self.dv, step, tile, self._seen(dv, tile))
        self.write(self.last, self.dk, step, tile, self._seen(dk, tile))
        if not self.roomy:

            @pl.when(another)
            def _():
                written()
                self.fetch(SECOND, self.v, step, tile + 1)

        return nothing

    def _tile_of_queries(self, step, tile, nothing):
        self.write(self.last, self.dq, step, tile, self._gradient(step, tile))
        return nothing

    def _tile_of_queries_and_next(self, step, more, tile, nothing):
        """A tile of this head, in whose place comes that of the next one."""
        dq = self._gradient(step, tile)
        pl.when(more)(lambda: self.order(self.queries, tile, self.fetched(FIRST)))
        self.write(FIRST, self.dq, step, tile, dq)

        @pl.when(more)
        def _():
            d = self._seen(self.fetched(SECOND), tile)
            self.order(self.cotangents, tile, d)
            self._along(step + 1, tile, d, self.fetched(self.last))
            written()
            for slot in (FIRST, SECOND):
                self._later(step + 1, tile, slot)
            pl.when(tile + 1 < self.of_queries[1])(
                lambda: self.fetch(self.last, self.out, step + 1, tile + 1)
            )

        return nothing

    def _gradient(self, step, tile) -> Array:
        """That of a tile of queries."""
        rows, layout = self.rows(tile), plgpu.Layout.WGMMA
        q, d = (
            plgpu.load(ref.at[rows], layout=layout)
            for ref in (self.queries, self.cotangents)
        )
        vectors = (
            plgpu.load(ref.at[rows], layout=layout.reduce(1))
            for ref in self._vectors(step)
        )
        return _of_queries(self.sizes, q, d, self.keys, self.values, *vectors)

    def _prepare_all(self, step) -> None:
        """Order all queries and cotangents of a step."""
        if not self.roomy:
            written()
            self.fetch(SECOND, self.d, step, self.of_queries[0])

        def one(tile, nothing):
            self._prepare(step, tile, functools.partial(self._later, step, tile))
            return nothing

        jax.lax.fori_loop(*self.of_queries, one, None)

    def _prepare(self, step, tile, later: Callable[[int], None]) -> None:
        """Order queries and cotangents of a tile, which are on their way to slots."""
        d = self._seen(self.fetched(SECOND), tile)
        self.order(self.cotangents, tile, d)
        self.fetch(SECOND, self.out, step, tile)
        self.order(self.queries, tile, self.fetched(FIRST))
        later(FIRST)
        self._along(step, tile, d, self.fetched(SECOND))
        later(SECOND)

    def _later(self, step, tile, slot: int) -> None:
        """Send for a step's next tile of queries; behind the last for one of keys."""
        query, key = ((self.q, self.k), (self.d, self.v))[slot]
        another = tile + 1 < self.of_queries[1]
        pl.when(another)(lambda: self.fetch(slot, query, step, tile + 1))
        pl.when(~another)(lambda: self.fetch(slot, key, step, self.of_keys[0]))

    def _fetch_sums(self, step) -> None:
        image, head = self.number(step)
        side = _side(step)

        @pl.when(self.warpgroup == 0)
        def _():
            for start in range(0, self.sizes.n, LONGEST_COPY):
                part = pl.ds(start, min(LONGEST_COPY, self.sizes.n - start))
                source, to = self.sums_of_all.at[image, head, part], self.sums
                plgpu.copy_gmem_to_smem(
                    source, to.at[side, part], self.sums_arrived.at[side]
                )

    def _along(self, step, tile, d: Array, out: Array) -> None:
        """How much a query's result changes with its weights' common scale."""
        products = d.astype(jnp.float32) * out.astype(jnp.float32)
        place = self.alongs.at[_side(step), self.rows(tile)]
        place[...] = products.sum(axis=1)

    def _seen(self, rows: Array, tile) -> Array:
        """Rows of tokens; zeros for those that are not looked at."""
        if self.sizes.length == self.sizes.n:
            return rows
        start = self.rows(tile).start
        return hide(rows, start, self.sizes.length, 0.0, axis=0)

    def _vectors(self, step) -> tuple:
        """log2 of the sums of exponentials of a step's queries, and `_along`."""
        return self.sums.at[_side(step)], self.alongs.at[_side(step)]


def _side(step) -> Array:
    """Of two places, for this head and the next one."""
    return jax.lax.rem(step, jnp.int32(2))


def _bounds(warpgroup: Array, counts: tuple[int, int]) -> tuple[Array, Array]:
    """A warpgroup's first tile and the one behind its last."""
    is_first = warpgroup == 0
    start = jnp.where(is_first, 0, jnp.int32(counts[0]))
    return start, jnp.where(is_first, counts[0], jnp.int32(sum(counts)))


def _of_keys(sizes: Sizes, k, v, queries, cotangents, sums, alongs) -> list[Array]:
    """The gradients of a tile of keys and of values."""

    def block(start, size: int, found: list[Array], masked: bool = False) -> list:
        place = pl.ds(start, size)
        seen = tuple(ref.at[place] for ref in (queries, cotangents, sums, alongs))
        return more_of_keys(sizes, (k, v), seen, found)

    zeros = [full((ROWS, sizes.wide), 0.0)] * 2
    # Queries that are not looked at have cotangents of zero: no need to hide them.
    dk, dv = over_blocks(sizes._replace(length=sizes.n), ACROSS, block, zeros)
    return [dk * sizes.scale, dv]


def _of_queries(sizes: Sizes, q, d, keys, values, top: Array, along: Array) -> Array:
    """The gradient of a tile of queries."""
    tile = q, d, top, along

    def block(start, size: int, found: list[Array], masked: bool = False) -> list:
        place = pl.ds(start, size)
        seen = seen_of(sizes, start) if masked else None
        return more_of_queries(
            sizes, tile, keys.at[place], values.at[place], found, seen
        )

    zeros = [full((ROWS, sizes.wide), 0.0)]
    size = next((s for s in KEYS_ACROSS if not sizes.length % s), ACROSS)
    return over_blocks(sizes, size, block, zeros)[0] * sizes.scale
