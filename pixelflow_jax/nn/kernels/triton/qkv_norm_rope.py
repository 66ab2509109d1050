"""`qkv_norm_rope` on GPUs by Triton: a token at a time, in registers."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl
from pixelflow_jax.nn.kernels.launch import (
    EPS,
    PROGRAMS,
    Launch,
    block,
    cuts,
    each,
    forward_tile,
    launch,
    take_references,
    total,
)

if TYPE_CHECKING:
    from pixelflow_jax.nn.kernels.qkv_norm_rope import Arrays, Spec

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


def supports(lengths: tuple[int, ...], heads: int, head_width: int) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    return heads > 0 and not head_width % 8 and not sum(lengths) % TILE


def forward(spec: "Spec", arrays: "Arrays", parts: int = PARTS) -> list[Array]:
    """Queries, keys and values [b, n, heads, head_width], or the first of these."""
    b, n, _, head_width = arrays.qkv.shape
    one = jax.ShapeDtypeStruct((b, n, spec.heads, head_width), arrays.qkv.dtype)
    outs, tile = [(one, PART)] * parts, forward_tile(n, b * parts)
    return _launch(_forward_kernel, spec, arrays, (), outs, tile)


def backward(spec: "Spec", arrays: "Arrays", cotangents: tuple) -> tuple[Array, Array]:
    """The gradient of `qkv`, and sums over all tokens for gains and biases."""
    qkv, heads = arrays.qkv, spec.heads
    count = 1 if arrays.bias is None else 2
    shape = len(qkv), qkv.shape[1] // TILE, PARTS, count, heads, qkv.shape[-1]
    outs = [
        (jax.ShapeDtypeStruct(qkv.shape, qkv.dtype), WHOLE),
        (jax.ShapeDtypeStruct(shape, jnp.float32), SUMS),
    ]
    dqkv, sums = _launch(_backward_kernel, spec, arrays, cotangents, outs, TILE)
    return dqkv, sums.sum((0, 1))


def _launch(kernel, spec, arrays, cotangents, outs, tile):
    """One program for each tile of tokens of each image, and each of the parts.

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
    parts = PARTS if cotangents else len(outs)
    grid = len(arrays.qkv), arrays.qkv.shape[1] // tile, parts
    plenty = not cotangents and math.prod(grid) >= PLENTY
    return launch(
        functools.partial(kernel, spec, jax.tree.structure(arrays), tile),
        grid,
        [*inputs, *((a, kinds[PART]) for a in cotangents)],
        [(a, kinds[SUMS](a) if kind == SUMS else kinds[kind]) for a, kind in outs],
        Launch(f"qkv_norm_rope{kernel.__name__}", warps=1 if plenty else WARPS),
    )


def _each_part(function: Callable[[int], None], parts: int = PARTS) -> None:
    """`function(part)` for the part that is this program's."""
    for part in range(parts):
        pl.when(pl.program_id(2) == part)(functools.partial(function, part))


def _forward_kernel(spec: "Spec", structure: Any, tile: int, *references):
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

    _each_part(compute, len(outs))


def _backward_kernel(spec: "Spec", structure: Any, tile: int, *references):
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


def _load(arrays: "Arrays", i, places: list) -> list[Array]:
    """A token's heads of the program's part, with their bias."""
    parts = []
    for heads, lanes in places:
        x = arrays.qkv[i, pl.ds(*heads), pl.ds(*lanes)].astype(jnp.float32)
        if arrays.bias is not None:
            x += arrays.bias[pl.ds(*heads), pl.ds(*lanes)].astype(jnp.float32)
        parts.append(x)
    return parts


def _gain(arrays: "Arrays", part: int, places: list) -> list[Array]:
    gain = (arrays.q_gain, arrays.k_gain)[part]
    if gain.shape[0] == 1:
        return [gain[0, pl.ds(*lanes)][None] for _, lanes in places]
    return [gain[pl.ds(*heads), pl.ds(*lanes)] for heads, lanes in places]


def _means(x: list[Array], spec: "Spec", width: int) -> list[Array]:
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


def _unit(x: list[Array], spec: "Spec", width: int) -> tuple[list, list]:
    inverse = [jax.lax.rsqrt(m + EPS) for m in _means([a * a for a in x], spec, width)]
    return each(jnp.multiply, x, inverse), inverse


def _rotated(
    arrays: "Arrays", i, x: list, places: list, back: bool = False
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
