"""`adaln_residual` on GPUs by Triton: a row at a time, in registers."""

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl
from pixelflow_jax.nn.kernels.launch import (
    BACKWARD_TILE,
    EPS,
    Launch,
    block,
    cuts,
    each,
    forward_tile,
    group_of,
    launch,
    take_references,
    total,
)

if TYPE_CHECKING:
    from pixelflow_jax.nn.kernels.adaln_residual import Arrays, Spec

WARPS = 4
SIZES = (
    "widths of at least 16 in multiples of 8, groups in multiples of 16 tokens, and "
    "groups of alike batches"
)


def supports(lengths: tuple[int, ...], width: int) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    return (
        width >= 16
        and not width % 8
        and not any(length % BACKWARD_TILE for length in lengths)
    )


def forward(spec: "Spec", arrays: "Arrays") -> list[Array]:
    """The sum and the modulated norm, as far as `spec` asks for them."""
    like = jax.ShapeDtypeStruct(arrays.x.shape, arrays.x.dtype)
    outs = [like] * ((spec.gate is not None) + (spec.shift_scale is not None))
    tile = forward_tile(sum(spec.lengths), len(arrays.x))
    return _launch(_forward_kernel, spec, arrays, (), outs, tile)


def backward(
    spec: "Spec", arrays: "Arrays", cotangents: tuple, vectors: int
) -> list[Array]:
    """Gradients of x and the branch, and sums [b, tiles, vectors, width] over tiles."""
    x, tiles = arrays.x, sum(spec.lengths) // BACKWARD_TILE
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    shape = (len(x), tiles, vectors, x.shape[-1])
    count = (spec.gate is not None) + (spec.shift_scale is not None)
    outs = [like] * count + [jax.ShapeDtypeStruct(shape, jnp.float32)]
    return _launch(_backward_kernel, spec, arrays, cotangents, outs, BACKWARD_TILE)


def _launch(kernel, spec, arrays, cotangents, outs, tile):
    """One program for each tile of tokens of each image."""
    width = arrays.x.shape[-1]
    tokens, vector = block((None, tile, width), 0, 1), block((width,))
    modulation = block((None, *arrays.modulation.shape[1:]), 0)
    blocks = (tokens, tokens, modulation, vector, vector)
    inputs = [(a, b) for a, b in zip(arrays, blocks, strict=True) if a is not None]
    sums = lambda out: block((None, None, *out.shape[2:]), 0, 1)
    return launch(
        functools.partial(kernel, spec, jax.tree.structure(arrays), width, tile),
        (len(arrays.x), sum(spec.lengths) // tile),
        [*inputs, *((a, tokens) for a in cotangents)],
        [(out, sums(out) if out.ndim == 4 else tokens) for out in outs],
        Launch(f"adaln_residual{kernel.__name__}", warps=WARPS),
    )


def _forward_kernel(spec: "Spec", structure: Any, width: int, tile: int, *references):
    arrays, outs = take_references(structure, references)
    group, _ = group_of(pl.program_id(1) * tile, spec.lengths)
    read = functools.partial(_vector, arrays.modulation, group, width)
    gate, (shift, scale) = read(spec.gate), map(read, spec.shift_scale or (None, None))
    bias, gain = _chunks(arrays.bias, width), _chunks(arrays.gain, width)

    def row(i, nothing):
        x = _row(arrays.x, i, width)
        if gate is not None:
            branch = _branch(arrays, i, width, bias)
            x = each(lambda x, g, y: x + g * y, x, gate, branch)
            x = [
                _store(outs[0], i, at, part)
                for at, part in zip(cuts(width), x, strict=True)
            ]
        if shift is not None and scale is not None:
            unit, _ = _unit(x, spec.norm, width)
            weighted = unit if gain is None else each(jnp.multiply, unit, gain)
            z = each(lambda w, s, t: w * (1 + s) + t, weighted, scale, shift)
            for at, part in zip(cuts(width), z, strict=True):
                _store(outs[-1], i, at, part)
        return nothing

    jax.lax.fori_loop(0, tile, row, None)


def _backward_kernel(spec: "Spec", structure: Any, width: int, tile: int, *references):
    arrays, rest = take_references(structure, references)
    modulated = spec.shift_scale is not None
    dnew_ref, dz_ref = rest[0], rest[1] if modulated else None
    outs = rest[1 + modulated :]
    dx_ref = outs[0]  # the branch's where there is no norm
    group, _ = group_of(pl.program_id(1) * tile, spec.lengths)
    read = functools.partial(_vector, arrays.modulation, group, width)
    gate, scale = read(spec.gate), read(spec.shift_scale and spec.shift_scale[1])
    bias, gain = _chunks(arrays.bias, width), _chunks(arrays.gain, width)

    def row(i, sums):
        x, dx, added = _row(arrays.x, i, width), _row(dnew_ref, i, width), []
        branch: list[Array] = []
        if gate is not None:
            branch = _branch(arrays, i, width, bias)
            x = each(lambda x, g, y: x + g * y, x, gate, branch)
            x = [part.astype(dx_ref.dtype).astype(jnp.float32) for part in x]
        if scale is not None:
            dz = _row(dz_ref, i, width)
            unit, inverse = _unit(x, spec.norm, width)
            added += [dz, each(jnp.multiply, dz, unit)]
            dunit = each(lambda d, s: d * (1 + s), dz, scale)
            dunit = dunit if gain is None else each(jnp.multiply, dunit, gain)
            along = _mean(each(jnp.multiply, dunit, unit), width)
            mean = _mean(dunit, width) if spec.norm == "layer" else 0.0
            dx = each(
                lambda d, du, u: d + inverse * (du - mean - u * along),
                dx,
                dunit,
                unit,
            )
        if gate is not None:
            dbranch = each(jnp.multiply, dx, gate)
            product = each(jnp.multiply, dx, branch)
            added = [product] + [dbranch] * (bias is not None) + added
            for at, part in zip(cuts(width), dbranch, strict=True):
                _store(outs[int(modulated)], i, at, part)
        if modulated:
            for at, part in zip(cuts(width), dx, strict=True):
                _store(dx_ref, i, at, part)
        return [each(jnp.add, s, a) for s, a in zip(sums, added, strict=True)]

    count = outs[-1].shape[0]
    zeros = [[jnp.zeros(n, jnp.float32) for _, n in cuts(width)] for _ in range(count)]
    sums = jax.lax.fori_loop(0, tile, row, zeros)
    for number, chunks in enumerate(sums):
        for (start, size), part in zip(cuts(width), chunks, strict=True):
            outs[-1][number, pl.ds(start, size)] = part


def _vector(ref, group, width: int, chunk: int | None) -> list[Array] | None:
    if chunk is None:
        return None
    places = [(chunk * width + start, size) for start, size in cuts(width)]
    return [ref[group, pl.ds(s, n)].astype(jnp.float32) for s, n in places]


def _chunks(ref, width: int) -> list[Array] | None:
    if ref is None:
        return None
    return [ref[pl.ds(s, n)].astype(jnp.float32) for s, n in cuts(width)]


def _row(ref, i, width: int) -> list[Array]:
    return [ref[i, pl.ds(s, n)].astype(jnp.float32) for s, n in cuts(width)]


def _branch(arrays: "Arrays", i, width: int, bias: list | None) -> list[Array]:
    branch = _row(arrays.branch, i, width)
    return branch if bias is None else each(jnp.add, branch, bias)


def _store(ref, i, at: tuple[int, int], value: Array) -> Array:
    """Writes part of a row; returns it as it was rounded, float32."""
    rounded = value.astype(ref.dtype)
    ref[i, pl.ds(*at)] = rounded
    return rounded.astype(jnp.float32)


def _mean(row: list[Array], width: int) -> Array:
    return total([jnp.sum(part) for part in row]) / width


def _unit(row: list[Array], norm: str, width: int) -> tuple[list[Array], Array]:
    """The row without its mean ("layer") and over its deviation; 1 / deviation."""
    if norm == "layer":
        mean = _mean(row, width)
        row = [part - mean for part in row]
    inverse = jax.lax.rsqrt(_mean([part * part for part in row], width) + EPS)
    return [part * inverse for part in row], inverse
