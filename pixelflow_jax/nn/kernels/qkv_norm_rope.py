"""From one projection to normalised and rotated queries, keys and values.

The kernel reads and writes every number of the projection once, forward and backward,
and takes what the gradients of gains and biases sum over the tokens on the way.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.embed import rotate
from pixelflow_jax.nn.kernels.choice import use_kernel
from pixelflow_jax.nn.kernels.launch import (
    EPS,
    PROGRAMS,
    block,
    cuts,
    each,
    forward_tile,
    launch,
    pl,
    take_references,
    total,
)
from pixelflow_jax.nn.layers import rms_norm, split_heads
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.sharding import by_device, tensor_shards

# A token at a time is little work for a program: small ones, and many. One for each
# part, whose sums in the backward pass then fit into registers. Where there are plenty
# of them, a forward pass is faster with one warp each.
WARPS, PLENTY = 2, 8 * PROGRAMS
TILE = 8  # tokens a program of the backward pass
PARTS, VALUE = 3, 2  # queries, keys, values; these are neither normalised nor turned
# What a program reads or writes: its part of all heads, all of one part, its own sums.
WHOLE, PART, SUMS = "whole", "part", "sums"
SIZES = (
    "head widths in multiples of 8, images in multiples of 8 tokens, and groups of "
    "alike batches"
)


def qkv_norm_rope(
    qkv: Array,
    packing: Packing,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Queries and keys RMS-normalised, then rotated; values as they are.

    Packed tokens `qkv` [rows, n, 3 * width] without the projection's `bias` [3 *
    width]; `gains` of queries and keys, [head_width] each where every head is
    normalised by itself, [width] where all are together; `rope` cos and sin [n,
    head_width / 2], None: nothing turns. Returns three arrays [rows, n, heads,
    head_width] of qkv's type; float32 inside.
    """
    head_width = qkv.shape[-1] // 3 // heads
    supported = packing.aligned and supports(packing.lengths, head_width)
    fuse = use_kernel("blocks", supported, f"{SIZES}, not {qkv.shape}", qkv.dtype)
    # Of matrices that are split over devices, heads lie here and there.
    compute = fused if fuse and tensor_shards() == 1 else reference
    return compute(qkv, heads=heads, gains=gains, rope=rope, bias=bias)


def reference(
    qkv: Array,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`qkv_norm_rope` as separate operations."""
    if bias is not None:
        qkv = qkv + bias.astype(qkv.dtype)
    q, k, v = jnp.split(qkv, 3, -1)

    def norm_rope(a: Array, gain: Array) -> Array:
        together = len(gain) == a.shape[-1]
        a = rms_norm(a if together else split_heads(a, heads), gain)
        a = split_heads(a, heads) if together else a
        return a if rope is None else rotate(a, *rope)

    return norm_rope(q, gains[0]), norm_rope(k, gains[1]), split_heads(v, heads)


def supports(lengths: tuple[int, ...], head_width: int) -> bool:
    """Whether the kernel takes these sizes: `SIZES` in words."""
    return not head_width % 8 and not sum(lengths) % TILE


def fused(
    qkv: Array,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`qkv_norm_rope` as one kernel, on each device's part of the batch."""
    width = qkv.shape[-1] // 3
    spec = Spec(heads, together=len(gains[0]) == width)
    rows = tuple(gain.reshape(-1, width // heads) for gain in gains)
    if bias is not None:
        bias = bias.reshape(3 * heads, -1)

    def run(*arrays: Any) -> tuple[Array, Array, Array]:
        return _fused(spec, Arrays(*arrays))

    whole = (bias, *rows, *(rope or (None, None)))
    return by_device(run, split_heads(qkv, 3 * heads), whole=whole)


class Spec(NamedTuple):
    """`together`: queries and keys are normalised over all heads at once."""

    heads: int
    together: bool


class Arrays(NamedTuple):
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(spec: Spec, arrays: Arrays) -> tuple[Array, Array, Array]:
    b, n, _, head_width = arrays.qkv.shape
    one = jax.ShapeDtypeStruct((b, n, spec.heads, head_width), arrays.qkv.dtype)
    outs, tile = [(one, PART)] * 3, forward_tile(n, b * PARTS)
    q, k, v = _launch(_forward_kernel, spec, arrays, (), outs, tile)
    return q, k, v


def _forward(spec: Spec, arrays: Arrays) -> tuple:
    return _fused(spec, arrays), arrays


def _backward(spec: Spec, arrays: Arrays, cotangents: tuple) -> tuple[Arrays]:
    qkv, heads = arrays.qkv, spec.heads
    count = 1 if arrays.bias is None else 2
    shape = len(qkv), qkv.shape[1] // TILE, PARTS, count, heads, qkv.shape[-1]
    outs = [
        (jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), WHOLE),
        (jax.ShapeDtypeStruct(shape, jnp.float32), SUMS),
    ]
    dqkv, sums = _launch(_backward_kernel, spec, arrays, cotangents, outs, TILE)
    sums = sums.sum((0, 1))  # [parts, gains and biases, heads, head_width]
    dbias = None
    if arrays.bias is not None:
        dbias = sums[:, 1].reshape(arrays.bias.shape).astype(arrays.bias.dtype)
    no_angles = (
        a if a is None else jnp.zeros_like(a) for a in (arrays.cos, arrays.sin)
    )
    gains = (arrays.q_gain, arrays.k_gain)
    pairs = zip(sums[:VALUE, 0], gains, strict=True)
    dgains = (d if len(a) > 1 else d.sum(0, keepdims=True) for d, a in pairs)
    return (Arrays(dqkv, dbias, *dgains, *no_angles),)


_fused.defvjp(_forward, _backward)


def _launch(kernel, spec, arrays, cotangents, outs, tile):
    """One program for each tile of tokens of each image, and each of the three parts.

    `outs` are shapes, and what of them a program writes.
    """
    width = arrays.qkv.shape[-1]
    kinds = {
        WHOLE: block((None, tile, spec.heads, width), 0, 1, 2),
        PART: block((None, tile, spec.heads, width), 0, 1),
        SUMS: lambda a: block((None, None, None, *a.shape[3:]), 0, 1, 2),
    }
    whole = lambda a: None if a is None else block(a.shape)
    table = block((tile, width // 2), 1)
    blocks = (
        *(kinds[WHOLE], block((spec.heads, width), 2)),
        *(whole(arrays.q_gain), whole(arrays.k_gain), table, table),
    )
    inputs = [(a, own) for a, own in zip(arrays, blocks, strict=True) if a is not None]
    grid = len(arrays.qkv), arrays.qkv.shape[1] // tile, PARTS
    plenty = not cotangents and math.prod(grid) >= PLENTY
    return launch(
        functools.partial(kernel, spec, jax.tree.structure(arrays), tile),
        grid,
        [*inputs, *((a, kinds[PART]) for a in cotangents)],
        [(a, kinds[SUMS](a) if kind == SUMS else kinds[kind]) for a, kind in outs],
        warps=1 if plenty else WARPS,
        name=f"qkv_norm_rope{kernel.__name__}",
    )


def _each_part(function: Callable[[int], None]) -> None:
    """`function(part)` for the part that is this program's."""
    for part in range(PARTS):
        pl.when(pl.program_id(2) == part)(functools.partial(function, part))


def _forward_kernel(spec: Spec, structure: Any, tile: int, *references):
    arrays, outs = take_references(structure, references)
    width = arrays.qkv.shape[-1]
    places = _places(spec.heads, width)

    def compute(part: int) -> None:
        def row(i, nothing):
            x = _load(arrays, i, places)
            if part != VALUE:
                unit, _ = _unit(x, spec, width)
                x = each(jnp.multiply, unit, _gain(arrays, part, places))
                x = _rotated(arrays, i, x, places)
            _write(outs[part], i, places, x)
            return nothing

        jax.lax.fori_loop(0, tile, row, None)

    _each_part(compute)


def _backward_kernel(spec: Spec, structure: Any, tile: int, *references):
    arrays, rest = take_references(structure, references)
    *cotangents, out, sums_ref = rest
    width, has_bias = arrays.qkv.shape[-1], arrays.bias is not None
    places = _places(spec.heads, width)

    def gradient(i, part: int) -> tuple[list, list]:
        """The gradient of a token's part, and what it adds to that of the gains."""
        d = [
            cotangents[part][i, pl.ds(*heads), pl.ds(*lanes)].astype(jnp.float32)
            for heads, lanes in places
        ]
        if part == VALUE:
            return d, []
        unit, inverse = _unit(_load(arrays, i, places), spec, width)
        d = _rotated(arrays, i, d, places, back=True)
        gained = each(jnp.multiply, d, unit)
        d = each(jnp.multiply, d, _gain(arrays, part, places))
        along = _means(each(jnp.multiply, d, unit), spec, width)
        return each(lambda d, u, n, a: n * (d - u * a), d, unit, inverse, along), gained

    def compute(part: int) -> None:
        def row(i, sums):
            d, gained = gradient(i, part)
            _write(out, i, places, d)
            return each(jnp.add, sums, gained + (d if has_bias else []))

        numbers = ([0] if part != VALUE else []) + ([1] if has_bias else [])
        zeros = [jnp.zeros((h[1], w[1]), jnp.float32) for h, w in places]
        sums = jax.lax.fori_loop(0, tile, row, zeros * len(numbers))
        at = [(number, *place) for number in numbers for place in places]
        for (number, heads, lanes), value in zip(at, sums, strict=True):
            sums_ref[number, pl.ds(*heads), pl.ds(*lanes)] = value
        if part == VALUE:  # it has no gain; what is not written may be anything
            for (heads, lanes), zero in zip(places, zeros, strict=True):
                sums_ref[0, pl.ds(*heads), pl.ds(*lanes)] = zero

    _each_part(compute)


def _write(ref, i, places: list, values: list[Array]) -> None:
    for (heads, lanes), value in zip(places, values, strict=True):
        ref[i, pl.ds(*heads), pl.ds(*lanes)] = value.astype(ref.dtype)


def _places(heads: int, width: int) -> list[tuple]:
    """The blocks of powers of two that [heads, width] is cut into."""
    return [(h, w) for h in cuts(heads) for w in cuts(width)]


def _load(arrays: Arrays, i, places: list) -> list[Array]:
    """A token's heads of the program's part, with their bias."""
    parts = []
    for heads, lanes in places:
        x = arrays.qkv[i, pl.ds(*heads), pl.ds(*lanes)].astype(jnp.float32)
        if arrays.bias is not None:
            x += arrays.bias[pl.ds(*heads), pl.ds(*lanes)].astype(jnp.float32)
        parts.append(x)
    return parts


def _gain(arrays: Arrays, part: int, places: list) -> list[Array]:
    gain = (arrays.q_gain, arrays.k_gain)[part]
    if gain.shape[0] == 1:
        return [gain[0, pl.ds(*lanes)][None] for _, lanes in places]
    return [gain[pl.ds(*heads), pl.ds(*lanes)] for heads, lanes in places]


def _means(x: list[Array], spec: Spec, width: int) -> list[Array]:
    """For each block the mean of its heads, or of all, to be spread over its lanes."""
    sums = [jnp.sum(part, 1, keepdims=True) for part in x]
    if spec.together:
        mean = total([jnp.sum(part) for part in sums]) / (width * spec.heads)
        return [mean] * len(x)
    lanes = len(cuts(width))
    means = []
    for start in range(0, len(x), lanes):
        means += [total(sums[start : start + lanes]) / width] * lanes
    return means


def _unit(x: list[Array], spec: Spec, width: int) -> tuple[list, list]:
    inverse = [jax.lax.rsqrt(m + EPS) for m in _means([a * a for a in x], spec, width)]
    return each(jnp.multiply, x, inverse), inverse


def _rotated(
    arrays: Arrays, i, x: list, places: list, back: bool = False
) -> list[Array]:
    """Neighbours turned as pairs by the token's angles, or back."""
    if arrays.cos is None or arrays.sin is None:
        return x
    parts = []
    for part, (_, (start, size)) in zip(x, places, strict=True):
        lanes = pl.ds(start // 2, size // 2)
        cos, sin = arrays.cos[i, lanes][None], arrays.sin[i, lanes][None]
        sin = -sin if back else sin
        a, b = jax.lax.split(part.reshape(len(part), size // 2, 2), (1, 1), 2)
        a, b = (side.reshape(len(part), size // 2) for side in (a, b))
        pair = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
        parts.append(pair.reshape(part.shape))
    return parts
