"""`neural_field` on TPUs: some patches a program, pixels along the lanes, by Mosaic.

The generated weights of a patch are read as `2 * width` rows of `hidden` numbers. A
row of the second half holds `hidden / width` rows of the second matrix; the matrix unit
puts the hidden values into the order in which these lie.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.launch import EPS, SHORTEST, Launch, block, launch

PATCHES = 8  # a program, at most
SIZES = (
    "pixels a patch and hidden widths in multiples of 128, widths in multiples of 16 "
    "that divide the hidden one, with a product of at most 16,384"
)


def supports(pixels: int, width: int, hidden: int) -> bool:
    """Whether the kernels take these sizes: `SIZES` in words."""
    whole = not (pixels % 128 or hidden % 128 or width % 16 or hidden % width)
    return whole and width * hidden <= 16384


def forward(unit: tuple[bool, bool], z: Array, gain: Array, weights: Array) -> Array:
    """The MLPs of all patches, z's shape."""
    out = jax.ShapeDtypeStruct(z.swapaxes(1, 2).shape, z.dtype)
    flops = 4 * z.size * _hidden(z, weights)
    out = _launch(_forward_kernel, unit, (z, gain, weights), [out], flops)[0]
    return out.swapaxes(1, 2)


def backward(
    unit: tuple[bool, bool], z: Array, gain: Array, weights: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    """The gradients of z, gain and weights."""
    (n, _, width), hidden = z.shape, _hidden(z, weights)
    shapes = z.swapaxes(1, 2).shape, (n, 2 * width, hidden)
    outs = [jax.ShapeDtypeStruct(shape, z.dtype) for shape in shapes]
    outs.append(jax.ShapeDtypeStruct((n, width, 1), jnp.float32))
    arrays, flops = (z, gain, weights, cotangent), 10 * z.size * hidden
    dz, dweights, dgain = _launch(_backward_kernel, unit, arrays, outs, flops)
    dgain = dgain.sum(0)[:, 0].astype(gain.dtype)
    return dz.swapaxes(1, 2), dgain, dweights.reshape(weights.shape)


def _hidden(z: Array, weights: Array) -> int:
    return weights.shape[-1] // 2 // z.shape[-1]


def _launch(kernel, unit, arrays, outs, flops):
    """One program for some patches; pixels are handed over and back as columns."""
    z, gain, weights, *others = arrays
    (n, _, width), hidden = z.shape, _hidden(z, weights)
    count = math.gcd(n, PATCHES)
    given = (
        z.swapaxes(1, 2),
        weights.reshape(n, 2 * width, hidden),
        *(a.swapaxes(1, 2) for a in others),
    )
    places = lambda a: (a, block((count, *a.shape[1:]), 0))
    order = _order(width, hidden).astype(z.dtype)
    whole = [(a, block(a.shape)) for a in (gain.astype(jnp.float32)[:, None], order)]
    return launch(
        functools.partial(kernel, unit),
        (n // count,),
        [*whole, *map(places, given)],
        list(map(places, outs)),
        Launch(f"neural_field{kernel.__name__}", "mosaic_tpu", flops=flops),
    )


def _order(width: int, hidden: int) -> Array:
    """[hidden, hidden]: row j * width + i is one at i * (hidden / width) + j."""
    ratio = hidden // width
    place = jnp.arange(hidden)
    return jax.nn.one_hot(place % width * ratio + place // width, hidden)


def _forward_kernel(unit: tuple[bool, bool], *references):
    gain_ref, order_ref, z_ref, weights_ref, out_ref = references

    def patch(i, nothing):
        first, _ = _first(weights_ref[i], order_ref[...], unit[0])
        folded, _ = _second(weights_ref[i], unit[1])
        z = z_ref[i].astype(jnp.float32)
        hidden = _dot(first, (_rms(z)[0] * gain_ref[...]).astype(z_ref.dtype))
        active = (hidden * jax.nn.sigmoid(hidden)).astype(z_ref.dtype)
        across = jnp.concatenate([part.T for part in _parts(folded)], 1)
        out_ref[i] = (z + _dot(across, active)).astype(out_ref.dtype)
        return nothing

    jax.lax.fori_loop(0, z_ref.shape[0], patch, None)


def _backward_kernel(unit: tuple[bool, bool], *references):
    gain_ref, order_ref, z_ref, weights_ref, cotangent_ref, *outs = references
    dz_ref, dweights_ref, dgain_ref = outs
    dtype, width = z_ref.dtype, z_ref.shape[1]

    def patch(i, nothing):
        gain, dout = gain_ref[...], cotangent_ref[i]
        first, scale1 = _first(weights_ref[i], order_ref[...], unit[0])
        folded, scale2 = _second(weights_ref[i], unit[1])
        unit_z, inverse = _rms(z_ref[i].astype(jnp.float32))
        normed = (unit_z * gain).astype(dtype)
        hidden = _dot(first, normed)
        gate = jax.nn.sigmoid(hidden)
        dsecond = _dot((hidden * gate).astype(dtype), dout, right=True)
        dactive = _dot(jnp.concatenate(_parts(folded), 0), dout)
        dhidden = (dactive * gate * (1 + hidden * (1 - gate))).astype(dtype)
        dfirst = _dot(dhidden, normed, right=True)
        if scale1 is not None:
            along = jnp.sum(dfirst * first.astype(jnp.float32), 1, keepdims=True)
            dfirst = scale1 * (dfirst - first.astype(jnp.float32) * along)
        dfirst = _dot(dfirst.astype(dtype), order_ref[...], left=True)
        dweights_ref[i, :width, :] = dfirst.astype(dtype)
        dfolded = _through_second(dsecond, folded.astype(jnp.float32), scale2)
        dweights_ref[i, width:, :] = dfolded.astype(dtype)
        dnormed = _dot(first, dhidden, left=True)
        dgain_ref[i] = jnp.sum(dnormed * unit_z, 1, keepdims=True)
        dunit = dnormed * gain
        along = jnp.mean(dunit * unit_z, 0, keepdims=True)
        dz = dout.astype(jnp.float32) + inverse * (dunit - unit_z * along)
        dz_ref[i] = dz.astype(dtype)
        return nothing

    jax.lax.fori_loop(0, z_ref.shape[0], patch, None)


def _first(weights: Array, order: Array, normalised: bool) -> tuple:
    """The first matrix [hidden, width], transposed and in the second's order.

    Its columns, here rows, are of unit length where asked for; and their scales.
    """
    first = weights[: len(weights) // 2]
    rows = _dot(order, first, right=True)  # only moves numbers: exact in their type
    if not normalised:
        return rows.astype(first.dtype), None
    squared = jnp.sum(rows * rows, 1, keepdims=True)
    scale = jax.lax.rsqrt(jnp.maximum(squared, SHORTEST))
    return (rows * scale).astype(first.dtype), scale


def _second(weights: Array, normalised: bool) -> tuple:
    """The second matrix as it is folded into rows, and the scales of its columns."""
    folded = weights[len(weights) // 2 :]
    if not normalised:
        return folded, None
    rows = folded.astype(jnp.float32)
    squared = _over_parts(jnp.sum(rows * rows, 0, keepdims=True), len(rows))
    scale = jax.lax.rsqrt(jnp.maximum(squared, SHORTEST))
    return (rows * scale).astype(folded.dtype), scale


def _through_second(dsecond: Array, folded: Array, scale: Array | None) -> Array:
    """The gradient of the folded second matrix, from that of its rows in order."""
    width = len(folded)
    starts = range(0, len(dsecond), width)
    dfolded = jnp.concatenate([dsecond[s : s + width] for s in starts], 1)
    if scale is None:
        return dfolded
    along = _over_parts(jnp.sum(dfolded * folded, 0, keepdims=True), width)
    return scale * (dfolded - folded * along)


def _parts(folded: Array) -> list[Array]:
    """The square parts of [width, hidden]."""
    width, hidden = folded.shape
    return [folded[:, start : start + width] for start in range(0, hidden, width)]


def _over_parts(row: Array, width: int) -> Array:
    """The sum over the parts of a row [1, hidden], once for each of them."""
    starts = range(0, row.shape[1], width)
    total = functools.reduce(jnp.add, [row[:, s : s + width] for s in starts])
    return jnp.concatenate([total] * len(starts), 1)


def _rms(z: Array) -> tuple[Array, Array]:
    """z / rms(z) and 1 / rms(z), over the rows."""
    inverse = jax.lax.rsqrt(jnp.mean(z * z, 0, keepdims=True) + EPS)
    return z * inverse, inverse


def _dot(a: Array, b: Array, left: bool = False, right: bool = False) -> Array:
    """a @ b in float32; `left` transposes a, `right` b."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    sides = (0 if left else 1,), (1 if right else 0,)
    return jax.lax.dot_general(
        *(a, b, (sides, ((), ()))),
        precision=exact,
        preferred_element_type=jnp.float32,
    )
