"""The neural field's block as one kernel: the generated weights are read once.

Computes what `nn.field.FieldBlock` writes out in einsums, forward and backward, a patch
a program. Written in Pallas: Triton on GPUs; in interpret mode anywhere.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

EPS = 1e-6  # of the RMS norm
SHORTEST = 1e-24  # a column's squared length is at least this
# Pixels at a time. More of them spill the sums of the backward pass out of registers.
FORWARD_ROWS, BACKWARD_ROWS = 64, 32
WARPS = 4
SIZES = (
    f"powers of two, at least {FORWARD_ROWS} pixels a patch and widths of at least 16 "
    "whose product is at most 8192"
)


def fits(pixels: int, width: int, hidden: int) -> bool:
    """Whether the kernel takes these sizes: `SIZES` in words."""
    powers = all(not n & (n - 1) for n in (pixels, width, hidden))
    return (
        powers
        and pixels >= FORWARD_ROWS
        and min(width, hidden) >= 16
        and width * hidden <= 8192
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def field_block(
    z: Array,
    gain: Array,
    first: Array,
    second: Array,
    normalised: tuple[bool, bool],
    interpret: bool = False,
) -> Array:
    """z + SiLU(RMS(z) W1) W2 for every patch.

    `z` [n, pixels, width], `gain` [width] of the norm, `first` [n, width, hidden],
    `second` [n, hidden, width]; `normalised` says which of the two get columns of unit
    length. Returns z's shape and type; sums in float32.
    """
    out = jax.ShapeDtypeStruct(z.shape, z.dtype)
    inputs = (z, gain, first, second)
    return _run(_forward_kernel, inputs, out, FORWARD_ROWS, normalised, interpret)


def _keep(z, gain, first, second, normalised, interpret):
    kept = (z, gain, first, second)
    return field_block(*kept, normalised, interpret), kept


def _backward(normalised, interpret, kept, cotangent):
    z, gain, first, second = kept
    outs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (z, first, second)]
    outs.append(jax.ShapeDtypeStruct((len(z), *gain.shape), jnp.float32))
    dz, dfirst, dsecond, dgain = _run(
        _backward_kernel,
        (*kept, cotangent),
        outs,
        BACKWARD_ROWS,
        normalised,
        interpret,
    )
    return dz, dgain.sum(0).astype(gain.dtype), dfirst, dsecond


field_block.defvjp(_keep, _backward)


def _run(kernel, inputs, outs, rows, normalised, interpret):
    """Calls a kernel with one program a patch; a vector is the same for all."""

    def block(array) -> pl.BlockSpec:
        if array is inputs[1]:
            return pl.BlockSpec(array.shape, lambda i: (0,))
        inside = array.shape[1:]
        return pl.BlockSpec((None, *inside), lambda i: (i, *(0 for _ in inside)))

    return pl.pallas_call(
        functools.partial(kernel, normalised=normalised, rows=rows, exact=interpret),
        grid=(len(inputs[0]),),
        in_specs=[block(array) for array in inputs],
        out_specs=jax.tree.map(block, outs),
        out_shape=outs,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*inputs)


def _forward_kernel(
    z_ref, gain_ref, first_ref, second_ref, out_ref, *, normalised, rows, exact
):
    dtype = z_ref.dtype
    gain = gain_ref[...].astype(jnp.float32)
    first, _ = _columns(first_ref[...], normalised[0])
    second, _ = _columns(second_ref[...], normalised[1])

    def tile(i, nothing):
        place = pl.ds(i * rows, rows)
        z = z_ref[place, :].astype(jnp.float32)
        unit, _ = _rms(z)
        hidden = _dot((unit * gain).astype(dtype), first)
        active = (hidden * _sigmoid(hidden, exact)).astype(dtype)
        out_ref[place, :] = (z + _dot(active, second)).astype(dtype)
        return nothing

    jax.lax.fori_loop(0, z_ref.shape[0] // rows, tile, None)


def _backward_kernel(
    z_ref,
    gain_ref,
    first_ref,
    second_ref,
    cotangent_ref,
    dz_ref,
    dfirst_ref,
    dsecond_ref,
    dgain_ref,
    *,
    normalised,
    rows,
    exact,
):
    dtype = z_ref.dtype
    gain = gain_ref[...].astype(jnp.float32)
    first, scale1 = _columns(first_ref[...], normalised[0])
    second, scale2 = _columns(second_ref[...], normalised[1])

    def tile(i, sums):
        dgain, dfirst, dsecond = sums
        place = pl.ds(i * rows, rows)
        unit, inverse = _rms(z_ref[place, :].astype(jnp.float32))
        normed = (unit * gain).astype(dtype)
        hidden = _dot(normed, first)
        gate = _sigmoid(hidden, exact)
        dout = cotangent_ref[place, :]
        dsecond += _dot((hidden * gate).astype(dtype), dout, left=True)
        dactive = _dot(dout, second, right=True)
        dhidden = (dactive * gate * (1 + hidden * (1 - gate))).astype(dtype)
        dfirst += _dot(normed, dhidden, left=True)
        dnormed = _dot(dhidden, first, right=True)
        dgain += jnp.sum(dnormed * unit, 0)
        dunit = dnormed * gain
        along = jnp.sum(dunit * unit, 1, keepdims=True) / unit.shape[1]
        dz = dout.astype(jnp.float32) + inverse * (dunit - unit * along)
        dz_ref[place, :] = dz.astype(dtype)
        return dgain, dfirst, dsecond

    zeros = tuple(jnp.zeros(a.shape, jnp.float32) for a in (gain, first, second))
    steps = z_ref.shape[0] // rows
    dgain, dfirst, dsecond = jax.lax.fori_loop(0, steps, tile, zeros)
    dgain_ref[...] = dgain
    dfirst_ref[...] = _through_columns(dfirst, first, scale1).astype(dtype)
    dsecond_ref[...] = _through_columns(dsecond, second, scale2).astype(dtype)


def _sigmoid(x: Array, exact: bool) -> Array:
    """1 / (1 + e^-x); unless `exact` through the GPU's own tanh, right to 2^-11."""
    if exact or x.dtype != jnp.float32:
        return jax.nn.sigmoid(x)
    return 0.5 * triton.approx_tanh(0.5 * x) + 0.5


def _dot(a: Array, b: Array, left: bool = False, right: bool = False) -> Array:
    """a @ b in float32; `left` transposes a, `right` b."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return triton.dot(a, b, trans_a=left, trans_b=right, precision=exact)


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
