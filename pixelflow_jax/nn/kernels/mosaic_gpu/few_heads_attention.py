"""Attention of short sequences for few heads on Hopper GPUs by Mosaic, while sampling.

With one image there are fewer heads than multiprocessors, and what counts is how long
one head takes. So programs share a head's tiles of queries, and the warpgroups of a
program its keys: each finds what a tile finds in its share of them, and then they add
up. Everything is read straight into registers, from the projection on.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import multiprocessors, pl, plgpu
from pixelflow_jax.nn.kernels.launch import total
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import (
    KEYS,
    QUERIES,
    VALUES,
    Bias,
    Index,
    Program,
    for_products,
    in_registers,
    launch,
    meet,
    put,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import (
    NARROWEST,
    ROWS,
    Ref,
    Sizes,
    across,
    by_column,
    down,
    full,
    look,
    padded,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.turn import ANGLES, Turn

WARPGROUPS = 2  # of a program; three or four, each with fewer keys, are no faster
MOST_KEYS = 160  # of a warpgroup, whose logits have to fit into its registers
LEAST = WARPGROUPS * ROWS  # tokens


class Shares(NamedTuple):
    """Of a head: programs, and of each its warpgroups.

    A warpgroup has `keys`, of which the last one's may be the one's before as well. The
    first `windows` of them put `columns` of the result together.
    """

    programs: int
    keys: int
    windows: int
    columns: int


def shares(sizes: Sizes, heads: int) -> Shares:
    """Who does what for each of so many heads."""
    # Columns are copied in groups of eight.
    windows = WARPGROUPS if sizes.width % (8 * WARPGROUPS) == 0 else 1
    programs = max(1, min(sizes.tiles, multiprocessors() // heads))
    return Shares(programs, _keys(sizes.n), windows, sizes.width // windows)


def _keys(n: int) -> int:
    """How many keys each of the warpgroups has, of n."""
    return -(-n // (NARROWEST * WARPGROUPS)) * NARROWEST


def supports(n: int, width: int, dtype: jnp.dtype) -> bool:
    """Whether the kernel takes these sizes, of half precision.

    128 to 320 tokens in multiples of 16, widths in multiples of 8 up to 72: more do not
    fit beside each other.
    """
    known = n >= LEAST and not n % NARROWEST and not width % 8 and 8 <= width <= 72
    return known and dtype.itemsize == 2 and _keys(n) <= MOST_KEYS


@functools.partial(jax.jit, static_argnums=0)  # made once for all layers
def attend(
    heads: int,
    qkv: Array,
    gains: tuple[Array, Array],
    angles: Array,
    bias: Array | None = None,
) -> Array:
    """`short_attention_forward.forward_projected`, for few heads of all images."""
    b, n, _, width = qkv.shape
    sizes = Sizes(n, n, width)
    share = shares(sizes, b * heads)
    inputs = [qkv, *gains, angles.astype(ANGLES)]
    inputs += [] if bias is None else [bias]

    def kernel(*references) -> None:
        given, rest = references[: len(inputs)], references[len(inputs) :]
        _FewHeads(sizes, heads, share, given, rest).run()

    vector = plgpu.SMEM((WARPGROUPS, ROWS), jnp.float32)
    return launch(
        kernel,
        "few_heads_attention",
        inputs,
        outs=[jax.ShapeDtypeStruct((b, n, heads, width), qkv.dtype)],
        scratch=[
            *[for_products((n, sizes.wide), qkv.dtype)] * 2,
            *[vector] * 2,
            plgpu.SMEM((WARPGROUPS, ROWS, width), jnp.float32),
            *[plgpu.Barrier(num_arrivals=WARPGROUPS)] * 3,
        ],
        programs=b * heads * share.programs,
        warpgroups=WARPGROUPS,
    )[0]


class _FewHeads(Program):
    """What a warpgroup of a program does, with the arrays that it reads and writes."""

    def __init__(
        self, sizes: Sizes, heads: int, share: Shares, given: tuple, rest: tuple
    ):
        super().__init__(sizes, heads, share.programs)
        self.share = share
        self.qkv, q_gain, k_gain, angles, *bias = given
        self.bias = Bias(bias[0], heads) if bias else None
        self.turn = Turn((q_gain, k_gain), angles, self.bias)
        self.out, self.keys, self.values, self.tops, self.sums, self.found = rest[:6]
        self.ready, self.found_by_all, self.free = rest[6:]
        programs = jnp.int32(share.programs)
        self.image, self.head = self.of_number(jax.lax.div(self.program, programs))
        self.part = jax.lax.rem(self.program, programs)

    def run(self) -> None:
        """Lay keys and values, and find what the program's queries find."""
        # Sent for before anything is computed, since each takes as long as another.
        k, v = self._read(KEYS, self.warpgroup), self._read(VALUES, self.warpgroup)
        q = self._read(QUERIES, self.part)
        self._lay(self.warpgroup, k, v)
        stride, tiles = WARPGROUPS, self.sizes.tiles
        for start in range(stride, tiles, stride):
            pl.when(start + self.warpgroup < tiles)(
                functools.partial(self._lay, start + self.warpgroup)
            )
        q = self._turned(QUERIES, q, self.part)
        plgpu.commit_smem()
        meet(self.ready)
        self._find(self.part, q)

        def another(number: Array, nothing: None) -> None:
            tile = self.part + number * self.share.programs
            q = self._turned(QUERIES, self._read(QUERIES, tile), tile)
            self._find(tile, q, again=True)
            return nothing

        if tiles > self.share.programs:
            ahead = tiles - self.part + (self.share.programs - 1)
            turns = jax.lax.div(ahead, jnp.int32(self.share.programs))
            jax.lax.fori_loop(1, turns, another, None)

    def _read(self, part: int, tile: Index) -> Array:
        """A tile of queries, keys or values."""
        place = self.image, self.rows(tile), part * self.heads + self.head
        return in_registers(self.qkv.at[place])

    def _turned(self, part: int, rows: Array, tile: Index) -> Array:
        """The same, normalised and turned."""
        return self.turn.apply(rows, part, self.head, self.rows(tile))

    def _lay(self, tile: Index, k: Array | None = None, v: Array | None = None) -> None:
        """Bring a tile of keys and values into order, which may have been read."""
        k = self._read(KEYS, tile) if k is None else k
        v = self._read(VALUES, tile) if v is None else v
        self.order(self.keys, tile, self._turned(KEYS, k, tile))
        self.order(self.values, tile, v)

    def _find(self, tile: Index, q: Array, again: bool = False) -> None:
        """What a tile of queries finds, all warpgroups together."""
        top, sums, found = self._find_in_share(padded(q, self.sizes))
        if again:
            meet(self.free)  # all have done with what was found before
        self.tops.at[self.warpgroup][...] = top
        self.sums.at[self.warpgroup][...] = sums
        self.found.at[self.warpgroup][...] = jax.lax.slice(
            found, (0, 0), (ROWS, self.sizes.width)
        )
        meet(self.found_by_all)
        pl.when(self.warpgroup < self.share.windows)(lambda: self._put(tile))

    def _find_in_share(self, q: Array) -> tuple[Array, Array, Array]:
        """What queries find in the keys of the warpgroup, as `look` has it."""
        keys, n = self.share.keys, self.sizes.n
        wanted = self.warpgroup * keys
        start = jnp.minimum(wanted, n - keys)
        place = pl.ds(pl.multiple_of(start, NARROWEST), keys)

        def seen(logits: Array) -> Array:
            layout = plgpu.Layout.WGMMA
            tokens = plgpu.broadcasted_iota(jnp.int32, logits.shape, 1, layout=layout)
            return jnp.where(tokens + start >= wanted, logits, -jnp.inf)

        twice = keys * WARPGROUPS > n
        column = full((ROWS,), 0.0)
        nothing = full((ROWS,), -jnp.inf), column, full((ROWS, self.sizes.wide), 0.0)
        blocks = self.keys.at[place], self.values.at[place]
        return look(self.sizes, q, *blocks, nothing, seen if twice else None)

    def _put(self, tile: Index) -> None:
        """Put the warpgroup's columns of a tile's result together."""
        all_of = range(WARPGROUPS)
        tops = [_by_row(self.tops.at[one]) for one in all_of]
        sums = [_by_row(self.sums.at[one]) for one in all_of]
        top = functools.reduce(jnp.maximum, tops)
        factors = [jnp.exp2(one - top) for one in tops]
        whole = total([f * s for f, s in zip(factors, sums, strict=True)])
        start = self.warpgroup * self.share.columns
        columns = pl.ds(pl.multiple_of(start, 8), self.share.columns)
        found = full((ROWS, self.share.columns), 0.0)
        for one, factor in zip(all_of, factors, strict=True):
            rows = in_registers(self.found.at[one, :, columns])
            found = found + rows * down(factor / whole, rows)
        if self.bias is not None:  # which values lack; weights add up to one
            place = VALUES * self.heads + self.head
            found = found + across(by_column(self.bias.ref.at[place, columns]), found)
        rows = self.rows(tile)
        to = self.out.at[self.image, rows, self.head, columns]
        put(to, found.astype(self.out.dtype))


def _by_row(vector: Ref) -> Array:
    """A number for each row of a tile."""
    return plgpu.load(vector, layout=plgpu.Layout.WGMMA.reduce(1))
