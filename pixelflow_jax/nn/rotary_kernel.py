"""The RMS norm of every head and the rotary embedding behind it, as one kernel.

Computes what `nn.layers.RMSNorm` and `nn.embed.rotate` do one after the other, forward
and backward. Written in Pallas: Triton on GPUs; in interpret mode anywhere.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

EPS = 1e-6  # of the RMS norm
ROWS = 32
HEADS = 8
WARPS = 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normed_rotated(
    x: Array, weight: Array, cos: Array, sin: Array, interpret: bool = False
) -> Array:
    """Heads x [b, n, heads, width], normalised by `weight` [width] and turned.

    `cos`, `sin` [n, width / 2] as for `rotate`. Returns x's shape and type.
    """
    return _run(x, weight, cos, sin, None, interpret)


def _keep(x, weight, cos, sin, interpret):
    return _run(x, weight, cos, sin, None, interpret), (x, weight, cos, sin)


def _backward(interpret, kept, cotangent):
    x, weight, cos, sin = kept
    dx, dweight = _run(x, weight, cos, sin, cotangent, interpret)
    dweight = dweight.sum((0, 1)).astype(weight.dtype)
    return dx, dweight, jnp.zeros_like(cos), jnp.zeros_like(sin)


normed_rotated.defvjp(_keep, _backward)


def _run(x, weight, cos, sin, cotangent, interpret):
    b, n, heads, width = x.shape
    tokens = b * n
    group = HEADS if heads % HEADS == 0 else heads
    flat = lambda a: a.reshape(tokens, heads * width)
    cos = jnp.repeat(cos, 2, -1)
    sin = jnp.stack([-sin, sin], -1).reshape(n, width)
    inputs = [flat(x), weight, cos, sin]
    grid = pl.cdiv(tokens, ROWS), heads // group
    whole = pl.BlockSpec(memory_space=pl.ANY)
    shape = jax.ShapeDtypeStruct((tokens, heads * width), x.dtype)
    sizes = {"tokens": tokens, "length": n, "width": width, "group": group}
    if cotangent is None:
        kernel, outs = functools.partial(_forward_kernel, **sizes), shape
    else:
        inputs.append(flat(cotangent))
        kernel = functools.partial(_backward_kernel, **sizes)
        outs = [shape, jax.ShapeDtypeStruct((*grid, width), jnp.float32)]
    out = pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=[whole] * len(inputs),
        out_specs=jax.tree.map(lambda _: whole, outs),
        out_shape=outs,
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
        interpret=interpret,
        name="rotary_forward" if cotangent is None else "rotary_backward",
    )(*inputs)
    if cotangent is None:
        return out.reshape(x.shape)
    return out[0].reshape(x.shape), out[1]


class _Tile:
    """One program's place: its tokens, its columns, and what does not change."""

    def __init__(self, weight_ref, cos_ref, sin_ref, tokens, length, width, group):
        self.lanes = pl.next_power_of_2(width)
        self.width = width
        row = pl.program_id(0) * ROWS + jax.lax.broadcasted_iota(
            jnp.int32, (ROWS, self.lanes), 0
        )
        self.column = jax.lax.broadcasted_iota(jnp.int32, (ROWS, self.lanes), 1)
        self.row = row
        self.mask = (row < tokens) & (self.column < width)
        self.first = pl.program_id(1) * group
        place = row % length
        self.cos = triton.load(cos_ref.at[place, self.column], mask=self.mask, other=0.0)
        self.sin = triton.load(sin_ref.at[place, self.column], mask=self.mask, other=0.0)
        lane = jax.lax.broadcasted_iota(jnp.int32, (self.lanes,), 0)
        self.lane = lane
        self.weight = triton.load(
            weight_ref.at[lane], mask=lane < width, other=0.0
        ).astype(jnp.float32)

    def at(self, ref, head):
        """The tile of one head, as a place in memory."""
        return ref.at[self.row, (self.first + head) * self.width + self.column]

    def load(self, ref, head):
        """Float32 [rows, lanes], zero beyond the width."""
        return triton.load(self.at(ref, head), mask=self.mask, other=0.0)

    def store(self, ref, head, value):
        """The reverse."""
        triton.store(self.at(ref, head), value.astype(ref.dtype), mask=self.mask)

    def swapped(self, value):
        """Neighbours exchanged, float32; a product with a permutation is exact."""
        size = (self.lanes, self.lanes)
        i = jax.lax.broadcasted_iota(jnp.int32, size, 0)
        j = jax.lax.broadcasted_iota(jnp.int32, size, 1)
        permutation = jnp.where(i == (j ^ 1), 1.0, 0.0).astype(value.dtype)
        exact = jax.lax.Precision.HIGHEST if value.dtype == jnp.float32 else None
        return triton.dot(value, permutation, precision=exact)

    def rms(self, x):
        """x / rms(x) and 1 / rms(x)."""
        mean = jnp.sum(x * x, 1, keepdims=True) / self.width
        inverse = jax.lax.rsqrt(mean + EPS)
        return x * inverse, inverse


def _forward_kernel(x_ref, weight_ref, cos_ref, sin_ref, out_ref, **sizes):
    tile = _Tile(weight_ref, cos_ref, sin_ref, **sizes)
    for head in range(sizes["group"]):
        x = tile.load(x_ref, head)
        unit, _ = tile.rms(x.astype(jnp.float32))
        normed = (unit * tile.weight).astype(x.dtype)
        turned = normed.astype(jnp.float32) * tile.cos + tile.swapped(normed) * tile.sin
        tile.store(out_ref, head, turned)


def _backward_kernel(
    x_ref, weight_ref, cos_ref, sin_ref, dout_ref, dx_ref, dweight_ref, **sizes
):
    tile = _Tile(weight_ref, cos_ref, sin_ref, **sizes)
    dweight = jnp.zeros(tile.weight.shape, jnp.float32)
    for head in range(sizes["group"]):
        x = tile.load(x_ref, head).astype(jnp.float32)
        unit, inverse = tile.rms(x)
        dout = tile.load(dout_ref, head)
        dnormed = dout.astype(jnp.float32) * tile.cos - tile.swapped(dout) * tile.sin
        dweight += jnp.sum(dnormed * unit, 0)
        dunit = dnormed * tile.weight
        mean = jnp.sum(dunit * unit, 1, keepdims=True) / tile.width
        tile.store(dx_ref, head, inverse * (dunit - unit * mean))
    place = dweight_ref.at[pl.program_id(0), pl.program_id(1), tile.lane]
    triton.store(place, dweight, mask=tile.lane < tile.width)
