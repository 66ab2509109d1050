"""`neural_field` on GPUs by Triton: a patch a program, some pixels at a time."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import is_interpreted, pl, triton
from pixelflow_jax.nn.kernels.launch import EPS, SHORTEST, Launch, block, launch

# Pixels at a time, and warps. More pixels spill the sums of the backward pass out of
# registers.
FORWARD, BACKWARD = (64, 4), (32, 4)
FORWARD_ROWS = FORWARD[0]
SIZES = (
    f"powers of two, at least {FORWARD_ROWS} pixels a patch and widths of at least 16 "
    "whose product is at most 8192"
)


def supports(pixels: int, width: int, hidden: int) -> bool:
    """Whether the kernel takes these sizes: `SIZES` in words."""
    powers = all(not n & (n - 1) for n in (pixels, width, hidden))
    return (
        powers
        and pixels >= FORWARD_ROWS
        and min(width, hidden) >= 16
        and width * hidden <= 8192
    )


def forward(unit: tuple[bool, bool], z: Array, gain: Array, weights: Array) -> Array:
    """The MLPs of all patches, z's shape."""
    out = jax.ShapeDtypeStruct(z.shape, z.dtype)
    arrays = (z, gain, weights)
    return _launch(_forward_kernel, unit, arrays, [out], FORWARD)[0]


def backward(
    unit: tuple[bool, bool], z: Array, gain: Array, weights: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    """The gradients of z, gain and weights."""
    width = z.shape[-1]
    by_row = (len(z), weights.shape[-1] // width, width)
    outs = [jax.ShapeDtypeStruct(shape, z.dtype) for shape in (z.shape, by_row)]
    outs.append(jax.ShapeDtypeStruct((len(z), *gain.shape), jnp.float32))
    arrays = (z, gain, weights, cotangent)
    dz, dweights, dgain = _launch(_backward_kernel, unit, arrays, outs, BACKWARD)
    dweights = dweights.reshape(weights.shape)
    return dz, dgain.sum(0).astype(gain.dtype), dweights


def _launch(kernel, unit, arrays, outs, size):
    """One program a patch; the gain is the same for all.

    The weights are handed over twice, each time in the shape of one of the matrices.
    """
    patch = lambda a: (a, block((None, *a.shape[1:]), 0))
    (rows, warps), (z, gain, weights, *others) = size, arrays
    n, width = len(z), z.shape[-1]
    hidden = weights.shape[-1] // 2 // width
    first = (weights.reshape(n, 2 * width, hidden), block((None, width, hidden), 0))
    second = (
        weights.reshape(n, 2 * hidden, width),
        block((None, hidden, width), 0, None, start=(0, 1, 0)),
    )
    return launch(
        functools.partial(kernel, unit=unit, rows=rows),
        (n,),
        [patch(z), (gain, block(gain.shape)), first, second, *map(patch, others)],
        list(map(patch, outs)),
        Launch(f"neural_field{kernel.__name__}", warps=warps),
    )


def _forward_kernel(*references, unit: tuple[bool, bool], rows: int):
    z_ref, gain_ref, first_ref, second_ref, out_ref = references
    dtype = z_ref.dtype
    gain = gain_ref[...].astype(jnp.float32)
    first, _ = _columns(first_ref[...], unit[0])
    second, _ = _columns(second_ref[...], unit[1])

    def tile(i, nothing):
        place = pl.ds(i * rows, rows)
        z = z_ref[place, :].astype(jnp.float32)
        unit_z, _ = _rms(z)
        hidden = _dot((unit_z * gain).astype(dtype), first)
        active = (hidden * _sigmoid(hidden)).astype(dtype)
        out_ref[place, :] = (z + _dot(active, second)).astype(dtype)
        return nothing

    jax.lax.fori_loop(0, z_ref.shape[0] // rows, tile, None)


def _backward_kernel(*references, unit: tuple[bool, bool], rows: int):
    z_ref, gain_ref, first_ref, second_ref, cotangent_ref, *outs = references
    dz_ref, dweights_ref, dgain_ref = outs
    dtype = z_ref.dtype
    gain = gain_ref[...].astype(jnp.float32)
    first, scale1 = _columns(first_ref[...], unit[0])
    second, scale2 = _columns(second_ref[...], unit[1])

    def tile(i, sums):
        dgain, dfirst, dsecond = sums
        place = pl.ds(i * rows, rows)
        unit_z, inverse = _rms(z_ref[place, :].astype(jnp.float32))
        normed = (unit_z * gain).astype(dtype)
        hidden = _dot(normed, first)
        gate = _sigmoid(hidden)
        dout = cotangent_ref[place, :]
        dsecond += _dot((hidden * gate).astype(dtype), dout, left=True)
        dactive = _dot(dout, second, right=True)
        dhidden = (dactive * gate * (1 + hidden * (1 - gate))).astype(dtype)
        dfirst += _dot(normed, dhidden, left=True)
        dnormed = _dot(dhidden, first, right=True)
        dgain += jnp.sum(dnormed * unit_z, 0)
        dunit = dnormed * gain
        along = jnp.sum(dunit * unit_z, 1, keepdims=True) / unit_z.shape[1]
        dz = dout.astype(jnp.float32) + inverse * (dunit - unit_z * along)
        dz_ref[place, :] = dz.astype(dtype)
        return dgain, dfirst, dsecond

    zeros = tuple(jnp.zeros(a.shape, jnp.float32) for a in (gain, first, second))
    steps = z_ref.shape[0] // rows
    dgain, dfirst, dsecond = jax.lax.fori_loop(0, steps, tile, zeros)
    dgain_ref[...] = dgain
    dfirst = _through_columns(dfirst, first, scale1).astype(dtype)
    dsecond = _through_columns(dsecond, second, scale2).astype(dtype)
    # Row by row, the first matrix fills as many rows of the second's width.
    hidden = len(second)
    dweights_ref[pl.ds(0, hidden), :] = dfirst.reshape(dsecond.shape)
    dweights_ref[pl.ds(hidden, hidden), :] = dsecond


def _sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x); on GPUs through their own tanh, right to 2^-11."""
    if is_interpreted() or x.dtype != jnp.float32:
        return jax.nn.sigmoid(x)
    return 0.5 * triton.approx_tanh(0.5 * x) + 0.5


def _dot(a: Array, b: Array, left: bool = False, right: bool = False) -> Array:
    """a @ b in float32; `left` transposes a, `right` b."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    sides = (0 if left else 1,), (1 if right else 0,)
    return jax.lax.dot_general(
        *(a, b, (sides, ((), ()))),
        precision=exact,
        preferred_element_type=jnp.float32,
    )


def _rms(z: Array) -> tuple[Array, Array]:
    """z / rms(z) and 1 / rms(z), over the last axis."""
    inverse = jax.lax.rsqrt(jnp.sum(z * z, 1, keepdims=True) / z.shape[1] + EPS)
    return z * inverse, inverse


def _columns(weight: Array, normalised: bool) -> tuple[Array, Array | None]:
    """The weight with columns of unit length, where asked for, and their scales."""
    if not normalised:
        return weight, None
    weight32 = weight.astype(jnp.float32)
    squared = jnp.sum(weight32 * weight32, 0, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum(squared, SHORTEST))
    return (weight32 * scale).astype(weight.dtype), scale


def _through_columns(gradient: Array, unit: Array, scale: Array | None) -> Array:
    """The gradient of a weight from that of its unit columns."""
    if scale is None:
        return gradient
    unit = unit.astype(jnp.float32)
    along = jnp.sum(gradient * unit, 0, keepdims=True)
    return scale * (gradient - unit * along)
