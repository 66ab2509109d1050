"""`short_attention` on GPUs by Triton: a head of an image a program.

What rows look at, keys and values or queries and cotangents, is made ready once and
stays in shared memory; rows come in tiles.
"""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import is_interpreted, pl
from pixelflow_jax.nn.kernels.launch import (
    EPS,
    Launch,
    block,
    cuts,
    each,
    launch,
    take_references,
    total,
)

if TYPE_CHECKING:
    from pixelflow_jax.nn.kernels.qkv_norm_rope import Arrays

QUERY, KEY, VALUE = 0, 1, 2
NARROWEST = 16  # rows and columns of a product
# Of a head's keys; as much of values lies beside them in shared memory, 176 KiB in all.
MOST_NUMBERS = 45_056
SIZES = (
    f"half precision, images in multiples of {NARROWEST} tokens, head widths in "
    "multiples of 8 up to 128, each head normalised by itself, and at most "
    f"{MOST_NUMBERS:,} numbers of a head's keys"
)
LOG2E = math.log2(math.e)


class Tiles(NamedTuple):
    """Rows a tile, the longest block of what they look at, and warps of a program."""

    rows: int
    across: int
    warps: int


FORWARD = OF_QUERIES = OF_KEYS = Tiles(rows=64, across=64, warps=4)


def supports(length: int, head_width: int, dtype: jnp.dtype) -> bool:
    """Whether the kernel takes these sizes: `SIZES` in words."""
    known = not length % NARROWEST and not head_width % 8 and head_width <= 128
    lanes = sum(max(size, NARROWEST) for _, size in cuts(head_width))
    half = is_interpreted() or dtype.itemsize == 2
    return known and half and length * lanes <= MOST_NUMBERS


class Cut(NamedTuple):
    """How `n` tokens and their lanes are cut into powers of two.

    Tiles have `rows`; where they do not fill the tokens, the last one begins earlier
    and computes some rows again: a smaller one would be code of its own, with slower
    products. (start, size) of the blocks `across`, and of the `lanes` of a head.
    """

    n: int
    rows: int
    across: tuple[tuple[int, int], ...]
    lanes: tuple[tuple[int, int], ...]


def cut(n: int, width: int, tiles: Tiles) -> Cut:
    """How `n` tokens with heads `width` wide are cut."""
    largest = cuts(n)[0][1]
    rows, across = min(tiles.rows, largest), min(tiles.across, largest)
    whole = n // across * across
    blocks = [(start, across) for start in range(0, whole, across)]
    blocks += [(whole + start, size) for start, size in cuts(n - whole)]
    return Cut(n, rows, tuple(blocks), tuple(cuts(width)))


def forward(arrays: "Arrays", keep: bool) -> list[Array]:
    """The result [b, n, heads, head_width]; where `keep`, what `backward` needs too.

    That is log2 of the sums of exponentials [b, heads, n], and the queries, keys and
    values that went into the products [b, n, 3, heads, head_width].
    """
    b, n, rows, width = arrays.qkv.shape
    heads, bias = rows // 3, arrays.bias
    arrays = arrays._replace(
        qkv=arrays.qkv.reshape(b, n, 3, heads, width),
        bias=None if bias is None else bias.reshape(3, heads, width),
    )
    outs = [(_like(arrays.qkv, (b, n, heads, width)), _head(n, width))]
    if keep:
        sums = jax.ShapeDtypeStruct((b, heads, n), jnp.float32)
        kept = _like(arrays.qkv, arrays.qkv.shape)
        outs += [(sums, _row(n)), (kept, _three(n, width))]
    whole = lambda a: None if a is None else block(a.shape)
    own_bias = block((3, None, width), None, 1)
    blocks = (_three(n, width), own_bias, *(whole(a) for a in arrays[2:]))
    inputs = [(a, own) for a, own in zip(arrays, blocks, strict=True) if a is not None]
    kernel = functools.partial(_forward_kernel, jax.tree.structure(arrays))
    return _launch(kernel, "forward", inputs, outs, FORWARD)


def backward(qkv: Array, out: Array, sums: Array, cotangent: Array) -> list[Array]:
    """The gradients of queries, keys and values [b, n, heads, head_width].

    `qkv` are those that `forward` has kept, `out` and `sums` its results.
    """
    n, width = qkv.shape[1], qkv.shape[-1]
    # How much a query's result changes with its weights' common scale.
    products = out.astype(jnp.float32) * cotangent.astype(jnp.float32)
    along = jnp.sum(products, -1).swapaxes(1, 2)
    inputs = [(qkv, _three(n, width)), (cotangent, _head(n, width))]
    inputs += [(sums, _row(n)), (along, _row(n))]
    one = _like(cotangent, cotangent.shape), _head(n, width)
    (dq,) = _launch(_queries_kernel, "of_queries", inputs, [one], OF_QUERIES)
    dk, dv = _launch(_keys_kernel, "of_keys", inputs, [one] * 2, OF_KEYS)
    return [dq, dk, dv]


def _like(a: Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, a.dtype)


def _three(n: int, width: int) -> "pl.BlockSpec":
    """A head's queries, keys and values of an image."""
    return block((None, n, 3, None, width), 0, None, None, 1)


def _head(n: int, width: int) -> "pl.BlockSpec":
    return block((None, n, None, width), 0, None, 1)


def _row(n: int) -> "pl.BlockSpec":
    """A number for each token of a head of an image."""
    return block((None, None, n), 0, 1)


def _launch(
    kernel: Callable, name: str, inputs: list, outs: list, tiles: Tiles
) -> list[Array]:
    """One program for each head of each image of the projection."""
    b, n, _, heads, width = inputs[0][0].shape
    kernel = functools.partial(kernel, cut(n, width, tiles))
    how = Launch(f"short_attention_{name}", warps=tiles.warps)
    return launch(kernel, (b, heads), inputs, outs, how)


def _forward_kernel(structure: Any, sizes: Cut, *references):
    arrays, (out, *kept) = take_references(structure, references)
    dtype, width = out.dtype, out.shape[-1]
    scale = LOG2E * width**-0.5

    def ready(part: int, place: tuple) -> list[Array]:
        x = [a.astype(dtype) for a in _turned(arrays, part, place, sizes)]
        if kept:
            _write(kept[1], place, x, sizes, part)
        return _padded(x)

    keys = [ready(KEY, place) for place in sizes.across]
    values = [ready(VALUE, place) for place in sizes.across]

    def tile(place: tuple) -> None:
        queries = ready(QUERY, place)
        top = jnp.full((place[1], 1), -jnp.inf, jnp.float32)
        sums, mixed = jnp.zeros_like(top), []
        for key, value in zip(keys, values, strict=True):
            logits = _products(queries, key)
            before, top = top, jnp.maximum(top, jnp.max(logits, 1, keepdims=True))
            fewer = jnp.exp2(scale * (before - top))
            weights = jnp.exp2(scale * (logits - top))
            sums = sums * fewer + jnp.sum(weights, 1, keepdims=True)
            mixed = [a * fewer for a in mixed]
            mixed = _mixed(mixed, weights.astype(dtype), value)
        _write(out, place, [a / sums for a in mixed], sizes)
        if kept:
            sums_ref, log2 = kept[0], jnp.log(sums) * LOG2E
            sums_ref[pl.ds(*place)] = jnp.sum(scale * top + log2, 1)

    _over_tiles(tile, sizes)


def _queries_kernel(sizes: Cut, *references):
    qkv, cotangent, sums_ref, along_ref, dq = references
    keys = [_loaded(qkv, place, sizes, KEY) for place in sizes.across]
    values = [_loaded(qkv, place, sizes, VALUE) for place in sizes.across]

    def tile(place: tuple) -> None:
        queries = _loaded(qkv, place, sizes, QUERY)
        d = _loaded(cotangent, place, sizes)
        sums, along = (ref[pl.ds(*place)][:, None] for ref in (sums_ref, along_ref))
        found: list[Array] = []
        for key, value in zip(keys, values, strict=True):
            weights = _weights(queries, key, sums, dq)
            dlogits = weights * (_products(d, value) - along)
            found = _mixed(found, dlogits.astype(dq.dtype), key)
        _write(dq, place, _scaled(found, dq), sizes)

    _over_tiles(tile, sizes)


def _keys_kernel(sizes: Cut, *references):
    qkv, cotangent, sums_ref, along_ref, dk, dv = references
    queries = [_loaded(qkv, place, sizes, QUERY) for place in sizes.across]
    ds = [_loaded(cotangent, place, sizes) for place in sizes.across]

    def tile(place: tuple) -> None:
        keys = _loaded(qkv, place, sizes, KEY)
        values = _loaded(qkv, place, sizes, VALUE)
        of_keys: list[Array] = []
        of_values: list[Array] = []
        for query, d, across in zip(queries, ds, sizes.across, strict=True):
            sums, along = (ref[pl.ds(*across)][None] for ref in (sums_ref, along_ref))
            weights = _weights(keys, query, sums, dk)
            of_values = _mixed(of_values, weights.astype(dv.dtype), d)
            dlogits = weights * (_products(values, d) - along)
            of_keys = _mixed(of_keys, dlogits.astype(dk.dtype), query)
        _write(dv, place, of_values, sizes)
        _write(dk, place, _scaled(of_keys, dk), sizes)

    _over_tiles(tile, sizes)


def _weights(rows: list[Array], block: list[Array], sums: Array, like) -> Array:
    """The softmax again, from log2 of its sums."""
    return jnp.exp2(LOG2E * like.shape[-1] ** -0.5 * _products(rows, block) - sums)


def _scaled(x: list[Array], like) -> list[Array]:
    return [like.shape[-1] ** -0.5 * a for a in x]


def _over_tiles(tile: Callable[[tuple], None], sizes: Cut) -> None:
    """`tile(place)` for all rows, one tile after another."""

    def body(i, nothing):
        start = jnp.minimum(i * sizes.rows, sizes.n - sizes.rows)
        tile((pl.multiple_of(start, NARROWEST), sizes.rows))
        return nothing

    jax.lax.fori_loop(0, -(-sizes.n // sizes.rows), body, None)


def _loaded(ref, place: tuple, sizes: Cut, *part: int) -> list[Array]:
    """Rows, ready for products."""
    rows = pl.ds(*place)
    return _padded([ref[rows, *part, pl.ds(*lanes)] for lanes in sizes.lanes])


def _turned(arrays: "Arrays", part: int, place: tuple, sizes: Cut) -> list[Array]:
    """A part's rows with their bias; queries and keys normalised and rotated."""
    rows, x = pl.ds(*place), []
    for lanes in sizes.lanes:
        x.append(arrays.qkv[rows, part, pl.ds(*lanes)].astype(jnp.float32))
        if arrays.bias is not None:
            x[-1] += arrays.bias[part, pl.ds(*lanes)].astype(jnp.float32)[None]
    if part == VALUE:
        return x
    squares = total([jnp.sum(a * a, 1, keepdims=True) for a in x])
    inverse = jax.lax.rsqrt(squares / arrays.qkv.shape[-1] + EPS)
    gain = (arrays.q_gain, arrays.k_gain)[part]
    gained = [
        a * inverse * gain[0, pl.ds(*lanes)].astype(jnp.float32)[None]
        for a, lanes in zip(x, sizes.lanes, strict=True)
    ]
    cos, sin = arrays.cos, arrays.sin
    if cos is None or sin is None:
        return gained
    half = [pl.ds(start // 2, size // 2) for start, size in sizes.lanes]
    return each(
        lambda a, lanes: _rotated(a, cos[rows, lanes], sin[rows, lanes]), gained, half
    )


def _rotated(x: Array, cos: Array, sin: Array) -> Array:
    """Neighbours turned as pairs by their token's angles."""
    a, b = _pairs(x)
    return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def _pairs(x: Array) -> list[Array]:
    """Every second column from the first, and from the second."""
    split = jax.lax.split(x.reshape(len(x), -1, 2), (1, 1), 2)
    return [a.reshape(len(x), -1) for a in split]


def _padded(x: list[Array]) -> list[Array]:
    """Rows for products, their lanes filled up to `NARROWEST` with zeros between."""
    found = []
    for part in x:
        while part.shape[1] < NARROWEST:
            pair = jnp.stack([part, jnp.zeros_like(part)], -1)
            part = pair.reshape(len(part), -1)
        found.append(part)
    return found


def _products(rows: list[Array], block: list[Array]) -> Array:
    """rows @ block^T, over all lanes."""
    return total([_dot(a, b, right=True) for a, b in zip(rows, block, strict=True)])


def _mixed(before: list[Array], weights: Array, block: list[Array]) -> list[Array]:
    """weights @ block, for each of its lanes, added to what came before."""
    found = [_dot(weights, lane) for lane in block]
    return each(jnp.add, before, found) if before else found


def _write(ref, place: tuple, x: list[Array], sizes: Cut, *part: int) -> None:
    """Write rows, without the zeros that `_padded` has put between."""
    for value, (start, size) in zip(x, sizes.lanes, strict=True):
        while value.shape[1] > size:
            value, _ = _pairs(value)
        ref[pl.ds(*place), *part, pl.ds(start, size)] = value.astype(ref.dtype)


def _dot(a: Array, b: Array, right: bool = False) -> Array:
    """a @ b in float32; `right` transposes b."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        *(a, b, (((1,), (1 if right else 0,)), ((), ()))),
        precision=exact,
        preferred_element_type=jnp.float32,
    )
