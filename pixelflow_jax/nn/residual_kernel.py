"""What lies between two matrix products of a block as one kernel, forward and backward.

Computes `nn.residual.plainly`: the gated sum, the norm and the modulation read and
write every token once, and the sums over tokens that the gradients of gates, shifts,
scales, gains and biases need are taken on the way. Written in Pallas: Triton on GPUs;
in interpret mode anywhere.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from pixelflow_jax.nn.tiling import (
    BACKWARD_TILE,
    EPS,
    cuts,
    each,
    forward_tile,
    group_of,
)

WARPS = 4
SIZES = "widths of at least 16 in multiples of 8, groups in multiples of 16 tokens"


class Between(NamedTuple):
    """What happens, as numbers of the chunks of the modulation; None: it does not.

    A branch is added under a `gate`; the sum is normalised ("rms" or "layer"), shifted
    and scaled. `lengths` are the tokens of an image in every group.
    """

    gate: int | None
    shift: int | None
    scale: int | None
    norm: str
    lengths: tuple[int, ...]
    interpret: bool = False


class Inputs(NamedTuple):
    """Tokens `x` and `branch` [b, n, width]; `modulation` [b, groups, chunks * width].

    `bias` [width] of the branch, `gain` [width] of the norm; None: there is none.
    """

    x: Array
    branch: Array | None
    modulation: Array
    bias: Array | None
    gain: Array | None


def fits(lengths: tuple[int, ...], width: int) -> bool:
    """Whether the kernel takes these sizes: `SIZES` in words."""
    return (
        width >= 16
        and not width % 8
        and not any(length % BACKWARD_TILE for length in lengths)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def between(how: Between, given: Inputs) -> tuple[Array, Array | None]:
    """The tokens after the sum, and these normalised and modulated (None: not asked).

    Both have x's shape and type; float32 inside.
    """
    like = jax.ShapeDtypeStruct(given.x.shape, given.x.dtype)
    outs = [like] * ((how.gate is not None) + (how.scale is not None))
    batch = len(given.x)
    fitting = forward_tile(sum(how.lengths), batch)
    found = _run(_forward_kernel, how, given, (), outs, fitting)
    new = found[0] if how.gate is not None else given.x
    return new, (found[-1] if how.scale is not None else None)


def _keep(how: Between, given: Inputs) -> tuple:
    return between(how, given), given


def _backward(how: Between, given: Inputs, cotangents: tuple) -> tuple[Inputs]:
    x, width = given.x, given.x.shape[-1]
    tile = BACKWARD_TILE
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    names = _sums(how, given)
    tiles = _tiles(how, tile)
    part = jax.ShapeDtypeStruct((len(x), tiles, len(names), width), jnp.float32)
    modulated, gated = how.scale is not None, how.gate is not None
    outs = [like] * (modulated + gated) + [part]
    inputs = tuple(cotangents[: 1 + modulated])
    *tokens, parts = _run(_backward_kernel, how, given, inputs, outs, tile)
    if not modulated:  # the sum hands its gradient on to x as it is
        tokens = [cotangents[0], *tokens]
    sums = dict(
        zip(names, jnp.moveaxis(_by_group(how, parts, tile), 2, 0), strict=True)
    )
    return (_gathered(how, given, tokens, sums),)


between.defvjp(_keep, _backward)


def _gathered(how: Between, given: Inputs, tokens: list, sums: dict) -> Inputs:
    """The gradients of all inputs; `sums` are [b, groups, width] each."""
    b, groups, total = given.modulation.shape
    width = given.x.shape[-1]
    chunks = [jnp.zeros((b, groups, width), jnp.float32)] * (total // width)
    dgain = dbias = None
    if how.gate is not None:
        chunks[how.gate] = sums["gate"]
        if given.bias is not None:
            dbias = sums["bias"].sum((0, 1)).astype(given.bias.dtype)
    if how.scale is not None:
        chunks[how.shift] = sums["shift"]
        along = sums["scale"]
        chunks[how.scale] = along
        if given.gain is not None:
            start = how.scale * width
            scale = given.modulation[..., start : start + width].astype(jnp.float32)
            chunks[how.scale] = along * given.gain
            dgain = (along * (1 + scale)).sum((0, 1)).astype(given.gain.dtype)
    dmodulation = jnp.concatenate(chunks, -1).astype(given.modulation.dtype)
    dbranch = tokens[1] if how.gate is not None else None
    return Inputs(tokens[0], dbranch, dmodulation, dbias, dgain)


def _sums(how: Between, given: Inputs) -> list[str]:
    """What the backward kernel adds up over the tokens of a tile."""
    gated = ["gate"] + ["bias"] * (given.bias is not None)
    return gated * (how.gate is not None) + ["shift", "scale"] * (how.scale is not None)


def _tiles(how: Between, tile: int) -> int:
    return sum(how.lengths) // tile


def _by_group(how: Between, parts: Array, tile: int) -> Array:
    """Sums of tiles [b, tiles, k, width] to those of groups [b, groups, k, width]."""
    ends = [sum(how.lengths[: i + 1]) // tile for i in range(len(how.lengths))]
    starts = [0, *ends[:-1]]
    pairs = zip(starts, ends, strict=True)
    return jnp.stack([parts[:, s:e].sum(1) for s, e in pairs], 1)


def _run(kernel, how, given, cotangents, outs, tile):
    """Calls a kernel with one program for each tile of tokens of each image."""
    width = given.x.shape[-1]
    tokens = pl.BlockSpec((None, tile, width), lambda i, j: (i, j, 0))
    vector = pl.BlockSpec((width,), lambda i, j: (0,))
    modulation = pl.BlockSpec(
        (None, *given.modulation.shape[1:]), lambda i, j: (i, 0, 0)
    )
    specs = Inputs(tokens, tokens, modulation, vector, vector)
    flat = [(a, s) for a, s in zip(given, specs, strict=True) if a is not None]
    flat += [(a, tokens) for a in cotangents]
    sums = lambda out: pl.BlockSpec(
        (None, None, *out.shape[2:]), lambda i, j: (i, j, 0, 0)
    )
    arrays, in_specs = zip(*flat, strict=True)
    there = Inputs(*(a is not None for a in given))
    return pl.pallas_call(
        functools.partial(kernel, how, there, width, tile),
        grid=(len(given.x), _tiles(how, tile)),
        in_specs=list(in_specs),
        out_specs=[sums(out) if out.ndim == 4 else tokens for out in outs],
        out_shape=outs,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=how.interpret,
        name=f"between_{kernel.__name__.strip('_')}",
    )(*arrays)


def _forward_kernel(how: Between, there: Inputs, width: int, tile: int, *refs):
    given, outs = _named(there, refs)
    group, _ = group_of(pl.program_id(1) * tile, how.lengths)
    read = functools.partial(_vector, given.modulation, group, width)
    gate, shift, scale = read(how.gate), read(how.shift), read(how.scale)
    bias, gain = _chunks(given.bias, width), _chunks(given.gain, width)

    def row(i, nothing):
        x = _row(given.x, i, width)
        if gate is not None:
            branch = _branch(given, i, width, bias)
            x = each(lambda x, g, y: x + g * y, x, gate, branch)
            x = [
                _store(outs[0], i, at, part)
                for at, part in zip(cuts(width), x, strict=True)
            ]
        if scale is not None:
            unit, _ = _unit(x, how.norm, width)
            weighted = unit if gain is None else each(jnp.multiply, unit, gain)
            z = each(lambda w, s, t: w * (1 + s) + t, weighted, scale, shift)
            for at, part in zip(cuts(width), z, strict=True):
                _store(outs[-1], i, at, part)
        return nothing

    jax.lax.fori_loop(0, tile, row, None)


def _backward_kernel(how: Between, there: Inputs, width: int, tile: int, *refs):
    given, rest = _named(there, refs)
    modulated, gated = how.scale is not None, how.gate is not None
    dnew_ref, dz_ref = rest[0], rest[1] if modulated else None
    outs = rest[1 + modulated :]
    dx_ref = outs[0]  # the branch's where there is no norm
    group, _ = group_of(pl.program_id(1) * tile, how.lengths)
    read = functools.partial(_vector, given.modulation, group, width)
    gate, scale = read(how.gate), read(how.scale)
    bias, gain = _chunks(given.bias, width), _chunks(given.gain, width)

    def row(i, sums):
        x, dx, added = _row(given.x, i, width), _row(dnew_ref, i, width), []
        branch = _branch(given, i, width, bias) if gated else None
        if gated:
            x = each(lambda x, g, y: x + g * y, x, gate, branch)
            x = [part.astype(dx_ref.dtype).astype(jnp.float32) for part in x]
        if modulated:
            dz = _row(dz_ref, i, width)
            unit, inverse = _unit(x, how.norm, width)
            added += [dz, each(jnp.multiply, dz, unit)]
            dunit = each(lambda d, s: d * (1 + s), dz, scale)
            dunit = dunit if gain is None else each(jnp.multiply, dunit, gain)
            along = _mean(each(jnp.multiply, dunit, unit), width)
            middle = _mean(dunit, width) if how.norm == "layer" else 0.0
            dx = each(
                lambda d, du, u: d + inverse * (du - middle - u * along),
                dx,
                dunit,
                unit,
            )
        if gated:
            dbranch = each(jnp.multiply, dx, gate)
            product = each(jnp.multiply, dx, branch)
            added = [product] + [dbranch] * there.bias + added
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


def _named(there: Inputs, refs: tuple) -> tuple[Inputs, list]:
    """The references of the inputs that are there, and all others."""
    refs = list(refs)
    return Inputs(*(refs.pop(0) if yes else None for yes in there)), refs


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


def _branch(given: Inputs, i, width: int, bias: list | None) -> list[Array]:
    branch = _row(given.branch, i, width)
    return branch if bias is None else each(jnp.add, branch, bias)


def _store(ref, i, at: tuple[int, int], value: Array) -> Array:
    """Writes part of a row; returns it as it was rounded, float32."""
    rounded = value.astype(ref.dtype)
    ref[i, pl.ds(*at)] = rounded
    return rounded.astype(jnp.float32)


def _mean(row: list[Array], width: int) -> Array:
    return sum(jnp.sum(part) for part in row) / width


def _unit(row: list[Array], norm: str, width: int) -> tuple[list[Array], Array]:
    """The row without its mean ("layer") and over its deviation; 1 / deviation."""
    if norm == "layer":
        middle = _mean(row, width)
        row = [part - middle for part in row]
    inverse = jax.lax.rsqrt(_mean([part * part for part in row], width) + EPS)
    return [part * inverse for part in row], inverse
