"""`qkv_norm_rope` on TPUs: a tile of tokens a program, head by head, by Mosaic.

Queries, keys and values are written as attention reads them, [b, heads, n, head_width]
in memory, so that no copy lies between.
"""

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pltpu
from pixelflow_jax.nn.kernels.launch import (
    EPS,
    Launch,
    block,
    launch,
    take_references,
    total,
)

if TYPE_CHECKING:
    from pixelflow_jax.nn.kernels.qkv_norm_rope import Arrays, Spec

PARTS, VALUE = 3, 2
TILES = (128, 64, 32, 16)  # tokens a program; sixteen fill a tile of bfloat16
LANES = 128  # of a register: a head is handled with what lies behind it, or zeros
LARGEST = 128 * PARTS * 16 * LANES  # numbers of a tile: twice its blocks fit
SIZES = (
    "head widths in multiples of 8 up to 128, at most 128 heads that are more than 120 "
    "wide together, images in multiples of 16 tokens, and groups of alike batches"
)
# What a program reads or writes: a tile of all heads side by side, or apart; its sums.
FLAT, HEADS, SUMS = "flat", "heads", "sums"


def supports(lengths: tuple[int, ...], heads: int, head_width: int) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    whole = not head_width % 8 and not sum(lengths) % TILES[-1]
    # From where the last key begins there is a register's width to read.
    wide = head_width <= LANES <= (heads + 1) * head_width
    return whole and wide and heads * TILES[-1] * PARTS * LANES <= LARGEST


def tile_of(n: int, heads: int) -> int:
    """The tokens of a program."""
    fits = (t for t in TILES if t * PARTS * heads * LANES <= LARGEST)
    return next(t for t in fits if not n % t)


def forward(spec: "Spec", arrays: "Arrays") -> list[Array]:
    """Queries, keys and values [b, n, heads, head_width]."""
    b, n, _, head_width = arrays.qkv.shape
    one = jax.ShapeDtypeStruct((b, spec.heads, n, head_width), arrays.qkv.dtype)
    results = _launch(_forward_kernel, spec, arrays, (), [(one, HEADS)] * PARTS)
    return [a.swapaxes(1, 2) for a in results]


def backward(spec: "Spec", arrays: "Arrays", cotangents: tuple) -> tuple[Array, Array]:
    """The gradient of `qkv`, and sums over all tokens for gains and biases."""
    b, n, rows, head_width = arrays.qkv.shape
    count = 1 if arrays.bias is None else 2
    shape = (b, n // tile_of(n, spec.heads), count * rows, LANES)
    outs = [
        (jax.ShapeDtypeStruct((b, n, rows * head_width), arrays.qkv.dtype), FLAT),
        (jax.ShapeDtypeStruct(shape, jnp.float32), SUMS),
    ]
    given = tuple(a.swapaxes(1, 2) for a in cotangents)
    dqkv, sums = _launch(_backward_kernel, spec, arrays, given, outs)
    sums = sums[..., :head_width].sum((0, 1))
    sums = sums.reshape(count, PARTS, spec.heads, head_width).swapaxes(0, 1)
    return dqkv.reshape(arrays.qkv.shape), sums


def _launch(kernel, spec, arrays, cotangents, outs):
    """One program for each tile of tokens of each image.

    Images follow each other: a tile's angles are read once for all of them. `outs` are
    shapes, and what of them a program writes.
    """
    b, n, rows, width = arrays.qkv.shape
    tile = tile_of(n, spec.heads)
    arrays = _padded(arrays)
    kinds = {
        FLAT: lambda a: block((None, tile, rows * width), 1, 0),
        HEADS: lambda a: block((None, spec.heads, tile, LANES), 1, None, 0),
        SUMS: lambda a: block((None, None, *a.shape[2:]), 1, 0),
    }
    angles = block((tile, LANES), 0)
    vectors = [None if a is None else block(a.shape) for a in arrays[1:4]]
    blocks = (kinds[FLAT](None), *vectors, angles, angles)
    inputs = [(a, at) for a, at in zip(arrays, blocks, strict=True) if a is not None]
    return launch(
        functools.partial(kernel, spec, jax.tree.structure(arrays), width),
        (n // tile, b),
        [*inputs, *((a, kinds[HEADS](a)) for a in cotangents)],
        [(out, kinds[kind](out)) for out, kind in outs],
        Launch(f"qkv_norm_rope{kernel.__name__}", "mosaic_tpu"),
    )


def _padded(arrays: "Arrays") -> "Arrays":
    """All but `qkv` with zeros up to whole registers, float32; `qkv` [b, n, width].

    Angles are spread over their pairs, the sine with the sign that its neighbour gets.
    """
    width = arrays.qkv.shape[-1]

    def wide(a: Array | None) -> Any:
        return None if a is None else jnp.pad(a, ((0, 0), (0, LANES - width)))

    cos, sin = arrays.cos, arrays.sin
    if cos is not None and sin is not None:
        sign = jnp.where(jnp.arange(width) % 2, 1.0, -1.0)
        cos, sin = jnp.repeat(cos, 2, -1), jnp.repeat(sin, 2, -1) * sign
    vectors = (arrays.bias, arrays.q_gain, arrays.k_gain, cos, sin)
    vectors = (a if a is None else a.astype(jnp.float32) for a in vectors)
    flat = arrays.qkv.reshape(*arrays.qkv.shape[:2], -1)
    return type(arrays)(flat, *map(wide, vectors))


class Tile(NamedTuple):
    """A program's tokens: references of its arrays, and how their heads lie in them."""

    arrays: Any
    heads: int
    width: int  # of a head

    def row(self, part: int, head: int) -> slice:
        """The row of a head in what has one for each of all parts' heads."""
        number = part * self.heads + head
        return slice(number, number + 1)

    def lanes(self, part: int, head: int, size: int) -> slice:
        """`size` numbers of a token from where a head begins."""
        start = (part * self.heads + head) * self.width
        return slice(start, start + size)

    def load(self, part: int, head: int) -> Array:
        """A head of queries or keys with its bias, zeros behind it."""
        x = self.arrays.qkv[:, self.lanes(part, head, LANES)].astype(jnp.float32)
        x = self.masked(x)
        bias = self.arrays.bias
        return x if bias is None else x + bias[self.row(part, head), :]

    def masked(self, x: Array) -> Array:
        """What lies behind the head in a register set to zero."""
        lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where(lane < self.width, x, 0.0)

    def gain(self, part: int, head: int) -> Array:
        """The gain of a head of queries or keys."""
        gain = (self.arrays.q_gain, self.arrays.k_gain)[part]
        row = head if gain.shape[0] > 1 else 0
        return gain[row : row + 1, :]

    def rotated(self, x: Array, back: bool = False) -> Array:
        """Neighbours turned as pairs by the tokens' angles, or back."""
        if self.arrays.cos is None:
            return x
        even = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) % 2 == 0
        behind, before = pltpu.roll(x, LANES - 1, 1), pltpu.roll(x, 1, 1)
        turned = jnp.where(even, behind, before) * self.arrays.sin[...]
        x = x * self.arrays.cos[...]
        return x - turned if back else x + turned

    def unrotated(self, cotangent: Any, part: int, head: int) -> Array:
        """A head's cotangent before the rotation, float32."""
        d = self.masked(cotangent[head].astype(jnp.float32))
        return d if part == VALUE else self.rotated(d, back=True)

    def inverse(self, squares: Array, heads: int = 1) -> Array:
        """1 / rms of the tokens, from squares that are added up over heads."""
        mean = jnp.sum(squares, -1, keepdims=True) / (heads * self.width)
        return jax.lax.rsqrt(mean + EPS)


def _forward_kernel(spec: "Spec", structure: Any, width: int, *references):
    arrays, outs = take_references(structure, references)
    tile = Tile(arrays, spec.heads, width)
    for part in (0, 1):
        of_all = _inverse_of_all(tile, part) if spec.together else None
        for head in range(spec.heads):
            x = tile.load(part, head)
            inverse = tile.inverse(x * x) if of_all is None else of_all
            x = tile.rotated(x * inverse * tile.gain(part, head))
            outs[part][head] = x.astype(outs[part].dtype)
    for head in range(spec.heads):
        value = arrays.qkv[:, tile.lanes(VALUE, head, width)]
        if arrays.bias is not None:
            bias = arrays.bias[tile.row(VALUE, head), :width]
            value = (value.astype(jnp.float32) + bias).astype(value.dtype)
        outs[VALUE][head, :, :width] = value


def _backward_kernel(spec: "Spec", structure: Any, width: int, *references):
    arrays, (*cotangents, out, sums) = take_references(structure, references)
    tile, biases = Tile(arrays, spec.heads, width), PARTS * spec.heads
    for part in range(PARTS):
        of_all = None
        if spec.together and part != VALUE:
            of_all = _norm_of_all(tile, cotangents[part], part)
        for head in range(spec.heads):
            d = tile.unrotated(cotangents[part], part, head)
            gained = jnp.zeros((1, LANES), jnp.float32)  # values have no gain
            if part != VALUE:
                d, gained = _through_norm(tile, d, part, head, of_all)
            row = tile.row(part, head)
            sums[row, :] = gained
            if arrays.bias is not None:
                sums[biases + row.start : biases + row.stop, :] = _sum(d)
            out[:, tile.lanes(part, head, width)] = d[:, :width].astype(out.dtype)


def _through_norm(
    tile: Tile, d: Array, part: int, head: int, of_all: tuple | None
) -> tuple[Array, Array]:
    """The gradient of a head before its norm, and that of its gain."""
    x = tile.load(part, head)
    inverse, along = (tile.inverse(x * x), None) if of_all is None else of_all
    unit = x * inverse
    gained, d = _sum(d * unit), d * tile.gain(part, head)
    if along is None:
        along = jnp.sum(d * unit, -1, keepdims=True) / tile.width
    return inverse * (d - unit * along), gained


def _inverse_of_all(tile: Tile, part: int) -> Array:
    """1 / rms over all heads of a part."""
    heads = [tile.load(part, head) for head in range(tile.heads)]
    return tile.inverse(total([x * x for x in heads]), tile.heads)


def _norm_of_all(tile: Tile, cotangent, part: int) -> tuple[Array, Array]:
    """1 / rms over all heads, and the mean of cotangents times what is normalised."""
    inverse, along = _inverse_of_all(tile, part), jnp.float32(0)
    for head in range(tile.heads):
        d = tile.unrotated(cotangent, part, head) * tile.gain(part, head)
        along += jnp.sum(d * tile.load(part, head), -1, keepdims=True)
    return inverse, along * inverse / (tile.heads * tile.width)


def _sum(rows: Array) -> Array:
    return jnp.sum(rows, 0, keepdims=True)
