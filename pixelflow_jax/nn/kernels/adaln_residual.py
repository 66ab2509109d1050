"""What lies between two matrix products of a block: gated sum, norm, modulation.

The kernel reads and writes every token once, forward and backward, and takes the sums
over tokens that the gradients of gates, shifts, scales, gains and biases need on the
way.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.choice import use_kernel
from pixelflow_jax.nn.kernels.launch import (
    BACKWARD_TILE,
    EPS,
    block,
    cuts,
    each,
    forward_tile,
    group_of,
    launch,
    pl,
    take_references,
    total,
)
from pixelflow_jax.nn.layers import gated, layer_normalise, rms_normalise
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.sharding import by_device

NORMS = {"rms": rms_normalise, "layer": layer_normalise}
WARPS = 4
SIZES = (
    "widths of at least 16 in multiples of 8, groups in multiples of 16 tokens, and "
    "groups of alike batches"
)


class Residual(NamedTuple):
    """What is added to the tokens, gate * (branch + bias)."""

    branch: Array  # [rows, n, width]
    bias: Array | None  # [width]; None: there is none
    gate: int  # the number of its chunk of the modulation


class AdaLN(NamedTuple):
    """How the sum is normalised and modulated, gain * norm(x) * (1 + scale) + shift."""

    gain: Array | None  # [width]; None: there is none
    shift: int  # the numbers of their chunks of the modulation
    scale: int
    norm: Literal["rms", "layer"] = "rms"


def adaln_residual(
    x: Array,
    modulation: tuple[Array, ...],
    packing: Packing,
    residual: Residual | None = None,
    adaln: AdaLN | None = None,
) -> tuple[Array, Array]:
    """x + gate * (branch + bias), and the same normalised and modulated (AdaLN).

    `x` are packed tokens [rows, n, width], `modulation` one vector an image, [b_i,
    chunks * width] a group. Returns two arrays of x's shape and type, float32 inside:
    the first is x itself without `residual`, the second the first without `adaln`.
    """
    supported = packing.aligned and supports(packing.lengths, x.shape[-1])
    fuse = use_kernel("blocks", supported, f"{SIZES}, not {x.shape}", x.dtype)
    return (fused if fuse else reference)(x, modulation, packing, residual, adaln)


def reference(
    x: Array,
    modulation: tuple[Array, ...],
    packing: Packing,
    residual: Residual | None = None,
    adaln: AdaLN | None = None,
) -> tuple[Array, Array]:
    """`adaln_residual` as separate operations."""
    width = x.shape[-1]

    def chunk(number: int) -> Array:
        own = [v[:, number * width : (number + 1) * width] for v in modulation]
        return packing.broadcast(own).astype(jnp.float32)

    if residual is not None:
        branch, bias, gate = residual
        branch = branch if bias is None else branch.astype(jnp.float32) + bias
        x = gated(x, chunk(gate), branch)
    if adaln is None:
        return x, x
    unit = NORMS[adaln.norm](x)
    weighted = unit if adaln.gain is None else unit * adaln.gain
    z = weighted * (1 + chunk(adaln.scale)) + chunk(adaln.shift)
    return x, z.astype(x.dtype)


def supports(lengths: tuple[int, ...], width: int) -> bool:
    """Whether the kernel takes these sizes: `SIZES` in words."""
    return (
        width >= 16
        and not width % 8
        and not any(length % BACKWARD_TILE for length in lengths)
    )


def fused(
    x: Array,
    modulation: tuple[Array, ...],
    packing: Packing,
    residual: Residual | None = None,
    adaln: AdaLN | None = None,
) -> tuple[Array, Array]:
    """`adaln_residual` as one kernel, on each device's part of the batch."""
    branch, bias, gate = residual or (None, None, None)
    gain, shift_scale, norm = None, None, "rms"
    if adaln is not None:
        gain, *chunks, norm = adaln
        shift_scale = (chunks[0], chunks[1])
    spec = Spec(gate, shift_scale, norm, packing.lengths)

    def run(*arrays: Any) -> tuple[Array, Array | None]:
        return _fused(spec, Arrays(*arrays))

    split = (x, branch, jnp.stack(modulation, 1))
    x, z = by_device(run, *split, whole=(bias, gain))
    return x, x if z is None else z


class Spec(NamedTuple):
    """The chunks of the modulation that are used (None: not), the norm, the lengths.

    `lengths` are the tokens of an image in every group.
    """

    gate: int | None
    shift_scale: tuple[int, int] | None
    norm: str
    lengths: tuple[int, ...]


class Arrays(NamedTuple):
    """Tokens `x`, `branch` [b, n, width]; `modulation` [b, groups, chunks * width].

    `bias` [width] of the branch, `gain` [width] of the norm; None: there is none.
    """

    x: Array
    branch: Array | None
    modulation: Array
    bias: Array | None
    gain: Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(spec: Spec, arrays: Arrays) -> tuple[Array, Array | None]:
    like = jax.ShapeDtypeStruct(arrays.x.shape, arrays.x.dtype)
    outs = [like] * ((spec.gate is not None) + (spec.shift_scale is not None))
    tile = forward_tile(sum(spec.lengths), len(arrays.x))
    results = _launch(_forward_kernel, spec, arrays, (), outs, tile)
    x = results[0] if spec.gate is not None else arrays.x
    return x, (results[-1] if spec.shift_scale is not None else None)


def _forward(spec: Spec, arrays: Arrays) -> tuple:
    return _fused(spec, arrays), arrays


def _backward(spec: Spec, arrays: Arrays, cotangents: tuple) -> tuple[Arrays]:
    x, width = arrays.x, arrays.x.shape[-1]
    tile = BACKWARD_TILE
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    names = _sums(spec, arrays)
    tiles = sum(spec.lengths) // tile
    part = jax.ShapeDtypeStruct((len(x), tiles, len(names), width), jnp.float32)
    modulated, gated = spec.shift_scale is not None, spec.gate is not None
    outs = [like] * (modulated + gated) + [part]
    given = tuple(cotangents[: 1 + modulated])
    *tokens, parts = _launch(_backward_kernel, spec, arrays, given, outs, tile)
    if not modulated:  # the sum hands its gradient on to x as it is
        tokens = [cotangents[0], *tokens]
    by_group = jnp.moveaxis(_by_group(spec, parts, tile), 2, 0)
    sums = dict(zip(names, by_group, strict=True))
    return (_gradients(spec, arrays, tokens, sums),)


_fused.defvjp(_forward, _backward)


def _gradients(spec: Spec, arrays: Arrays, tokens: list, sums: dict) -> Arrays:
    """The gradients of all arrays; `sums` are [b, groups, width] each."""
    b, groups, total = arrays.modulation.shape
    width = arrays.x.shape[-1]
    chunks = [jnp.zeros((b, groups, width), jnp.float32)] * (total // width)
    dgain = dbias = None
    if spec.gate is not None:
        chunks[spec.gate] = sums["gate"]
        if arrays.bias is not None:
            dbias = sums["bias"].sum((0, 1)).astype(arrays.bias.dtype)
    if spec.shift_scale is not None:
        at_shift, at_scale = spec.shift_scale
        along = sums["scale"]
        chunks[at_shift], chunks[at_scale] = sums["shift"], along
        if arrays.gain is not None:
            start = at_scale * width
            scale = arrays.modulation[..., start : start + width].astype(jnp.float32)
            chunks[at_scale] = along * arrays.gain
            dgain = (along * (1 + scale)).sum((0, 1)).astype(arrays.gain.dtype)
    dmodulation = jnp.concatenate(chunks, -1).astype(arrays.modulation.dtype)
    dbranch = tokens[1] if spec.gate is not None else None
    return Arrays(tokens[0], dbranch, dmodulation, dbias, dgain)


def _sums(spec: Spec, arrays: Arrays) -> list[str]:
    """What the backward kernel adds up over the tokens of a tile."""
    gated = ["gate"] + ["bias"] * (arrays.bias is not None)
    modulated = ["shift", "scale"]
    return gated * (spec.gate is not None) + modulated * (spec.shift_scale is not None)


def _by_group(spec: Spec, parts: Array, tile: int) -> Array:
    """Sums of tiles [b, tiles, k, width] to those of groups [b, groups, k, width]."""
    ends = [sum(spec.lengths[: i + 1]) // tile for i in range(len(spec.lengths))]
    starts = [0, *ends[:-1]]
    pairs = zip(starts, ends, strict=True)
    return jnp.stack([parts[:, s:e].sum(1) for s, e in pairs], 1)


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
        warps=WARPS,
        name=f"adaln_residual{kernel.__name__}",
    )


def _forward_kernel(spec: Spec, structure: Any, width: int, tile: int, *references):
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


def _backward_kernel(spec: Spec, structure: Any, width: int, tile: int, *references):
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


def _branch(arrays: Arrays, i, width: int, bias: list | None) -> list[Array]:
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
