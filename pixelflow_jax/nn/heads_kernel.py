"""From one projection to normalised and rotated queries, keys and values: one kernel.

Computes `nn.heads.plainly`, forward and backward: every number of the projection is
read and written once, and what the gradients of gains and biases sum over the tokens is
taken on the way. Written in Pallas: Triton on GPUs; in interpret mode anywhere.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pixelflow_jax.nn.tiling import EPS, cuts, each, forward_tile

# A token at a time is little work for a program: small ones, and many.
WARPS = 2
BACKWARD_TILE = 8
QUERY, KEY, VALUE = range(3)
SIZES = "head widths in multiples of 8, images in multiples of 8 tokens"


class How(NamedTuple):
    """`whole`: queries and keys are normalised over all heads together."""

    heads: int
    whole: bool
    interpret: bool = False


class Inputs(NamedTuple):
    """The projection `qkv` [b, n, 3 * heads, head_width] without its bias.

    `bias` [3 * heads, head_width] or None; gains of queries and keys, [heads,
    head_width] or [1, head_width] for all heads; `cos`, `sin` [n, head_width / 2] or
    None.
    """

    qkv: Array
    bias: Array | None
    q_gain: Array
    k_gain: Array
    cos: Array | None
    sin: Array | None


def fits(tokens: tuple[int, ...], head_width: int) -> bool:
    """Whether the kernel takes these sizes: `SIZES` in words."""
    return not head_width % 8 and not sum(tokens) % BACKWARD_TILE


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def split(how: How, given: Inputs) -> tuple[Array, Array, Array]:
    """Queries, keys and values, each [b, n, heads, head_width]; float32 inside."""
    b, n, _, head_width = given.qkv.shape
    one = jax.ShapeDtypeStruct((b, n, how.heads, head_width), given.qkv.dtype)
    tile = forward_tile(n, b)
    return tuple(_run(_forward_kernel, how, given, (), [one] * 3, [], tile))


def _keep(how: How, given: Inputs) -> tuple:
    return split(how, given), given


def _backward(how: How, given: Inputs, cotangents: tuple) -> tuple[Inputs]:
    qkv = given.qkv
    tile = BACKWARD_TILE
    rows = 2 * how.heads + (0 if given.bias is None else 3 * how.heads)
    shape = (len(qkv), qkv.shape[1] // tile, rows, qkv.shape[-1])
    outs = [jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)]
    sums = [jax.ShapeDtypeStruct(shape, jnp.float32)]
    dqkv, parts = _run(_backward_kernel, how, given, cotangents, outs, sums, tile)
    sums = parts.sum((0, 1))
    dbias = None
    if given.bias is not None:
        dbias = sums[2 * how.heads :].astype(given.bias.dtype)
    still = (a if a is None else jnp.zeros_like(a) for a in (given.cos, given.sin))
    gains = (sums[: how.heads], sums[how.heads : 2 * how.heads])
    pairs = zip(gains, (given.q_gain, given.k_gain), strict=True)
    dgains = (d if len(a) > 1 else d.sum(0, keepdims=True) for d, a in pairs)
    return (Inputs(dqkv, dbias, *dgains, *still),)


split.defvjp(_keep, _backward)


def _run(kernel, how, given, cotangents, outs, extra, tile):
    """Calls a kernel with one program for each tile of tokens of each image.

    `outs` are written for every token, `extra` for every tile.
    """

    def tokens(a) -> pl.BlockSpec:
        return pl.BlockSpec((None, tile, *a.shape[2:]), lambda i, j: (i, j, 0, 0))

    def sums(a) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, *a.shape[2:]), lambda i, j: (i, j, 0, 0))

    def vectors(a) -> pl.BlockSpec:
        return pl.BlockSpec(a.shape, lambda i, j: (0, 0))

    def table(a) -> pl.BlockSpec:
        return pl.BlockSpec((tile, a.shape[1]), lambda i, j: (j, 0))

    kinds = (tokens, vectors, vectors, vectors, table, table)
    flat = [(a, kind(a)) for a, kind in zip(given, kinds, strict=True) if a is not None]
    flat += [(a, tokens(a)) for a in cotangents]
    arrays, in_specs = zip(*flat, strict=True)
    there = tuple(a is not None for a in given)
    return pl.pallas_call(
        functools.partial(kernel, how, there, tile),
        grid=(len(given.qkv), given.qkv.shape[1] // tile),
        in_specs=list(in_specs),
        out_specs=[*map(tokens, outs), *map(sums, extra)],
        out_shape=[*outs, *extra],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=how.interpret,
        name=f"heads_{kernel.__name__.strip('_')}",
    )(*arrays)


def _forward_kernel(how: How, there: tuple, tile: int, *refs):
    given, outs = _named(there, refs)
    width = given.qkv.shape[-1]
    places = _places(how.heads, width)

    def row(i, nothing):
        for part, out in enumerate(outs):
            x = _load(given, i, part, how.heads, places)
            if part != VALUE:
                unit, _ = _unit(x, how, width)
                x = each(jnp.multiply, unit, _gain(given, part, places))
                x = _turned(given, i, x, places)
            for (heads, lanes), value in zip(places, x, strict=True):
                out[i, pl.ds(*heads), pl.ds(*lanes)] = value.astype(out.dtype)
        return nothing

    jax.lax.fori_loop(0, tile, row, None)


def _backward_kernel(how: How, there: tuple, tile: int, *refs):
    given, (dq, dk, dv, out, sums_ref) = _named(there, refs)
    width, has_bias = given.qkv.shape[-1], there[1]
    places = _places(how.heads, width)

    def one(i, part, cotangent):
        """The gradient of a part, and what it adds to that of the gains."""
        d = [
            cotangent[i, pl.ds(*heads), pl.ds(*lanes)].astype(jnp.float32)
            for heads, lanes in places
        ]
        if part == VALUE:
            return d, []
        unit, inverse = _unit(_load(given, i, part, how.heads, places), how, width)
        d = _turned(given, i, d, places, back=True)
        gained = each(jnp.multiply, d, unit)
        d = each(jnp.multiply, d, _gain(given, part, places))
        along = _means(each(jnp.multiply, d, unit), how, width)
        return each(lambda d, u, n, a: n * (d - u * a), d, unit, inverse, along), gained

    def row(i, sums):
        added = []
        for part, cotangent in enumerate((dq, dk, dv)):
            d, gained = one(i, part, cotangent)
            added += gained + (d if has_bias else [])
            for (heads, lanes), value in zip(places, d, strict=True):
                at = part * how.heads + heads[0]
                rows = pl.ds(at, heads[1])
                out[i, rows, pl.ds(*lanes)] = value.astype(out.dtype)
        return each(jnp.add, sums, added)

    zeros = [jnp.zeros((h[1], w[1]), jnp.float32) for h, w in places]
    count = 2 + 3 * has_bias
    sums = jax.lax.fori_loop(0, tile, row, zeros * count)
    # In the order of `row`: the gains of a part, then its bias.
    first = {QUERY: 0, KEY: how.heads}
    starts = []
    for part in range(3):
        starts += [first[part]] if part in first else []
        starts += [(2 + part) * how.heads] if has_bias else []
    blocks = [(start, *place) for start in starts for place in places]
    for (start, heads, lanes), value in zip(blocks, sums, strict=True):
        sums_ref[pl.ds(start + heads[0], heads[1]), pl.ds(*lanes)] = value


def _named(there: tuple, refs: tuple) -> tuple[Inputs, list]:
    """The references of the inputs that are there, and all others."""
    refs = list(refs)
    return Inputs(*(refs.pop(0) if yes else None for yes in there)), refs


def _places(heads: int, width: int) -> list[tuple]:
    """The blocks of powers of two that [heads, width] is cut into."""
    return [(h, w) for h in cuts(heads) for w in cuts(width)]


def _load(given: Inputs, i, part: int, heads: int, places: list) -> list[Array]:
    found = []
    for (start, count), lanes in places:
        rows = pl.ds(part * heads + start, count)
        x = given.qkv[i, rows, pl.ds(*lanes)].astype(jnp.float32)
        if given.bias is not None:
            x += given.bias[rows, pl.ds(*lanes)].astype(jnp.float32)
        found.append(x)
    return found


def _gain(given: Inputs, part: int, places: list) -> list[Array]:
    gain = (given.q_gain, given.k_gain)[part]
    if gain.shape[0] == 1:
        return [gain[0, pl.ds(*lanes)][None] for _, lanes in places]
    return [gain[pl.ds(*heads), pl.ds(*lanes)] for heads, lanes in places]


def _means(x: list[Array], how: How, width: int) -> list[Array]:
    """For each block the mean of its heads, or of all, to be spread over its lanes."""
    sums = [jnp.sum(part, 1, keepdims=True) for part in x]
    if how.whole:
        total = sum(jnp.sum(part) for part in sums) / (width * how.heads)
        return [total] * len(x)
    lanes = len(cuts(width))
    found = []
    for start in range(0, len(x), lanes):
        found += [sum(sums[start : start + lanes]) / width] * lanes
    return found


def _unit(x: list[Array], how: How, width: int) -> tuple[list, list]:
    inverse = [jax.lax.rsqrt(m + EPS) for m in _means([a * a for a in x], how, width)]
    return each(jnp.multiply, x, inverse), inverse


def _turned(given: Inputs, i, x: list, places: list, back: bool = False) -> list[Array]:
    """Neighbours turned as pairs by the token's angles, or back."""
    if given.cos is None:
        return x
    found = []
    for part, (_, (start, size)) in zip(x, places, strict=True):
        lanes = pl.ds(start // 2, size // 2)
        cos, sin = given.cos[i, lanes][None], given.sin[i, lanes][None]
        sin = -sin if back else sin
        a, b = jax.lax.split(part.reshape(len(part), size // 2, 2), (1, 1), 2)
        a, b = (side.reshape(len(part), size // 2) for side in (a, b))
        pair = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
        found.append(pair.reshape(part.shape))
    return found
