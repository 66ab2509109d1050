"""Queries and keys normalised and turned in registers, on Hopper GPUs by Mosaic."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import plgpu
from pixelflow_jax.nn.kernels.launch import EPS
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import Ref, across, down


class Turn(NamedTuple):
    """How: gains of queries and keys [2, width], and angles [n, width] if they turn.

    Of each pair of lanes, angles have the cosine and the sine.
    """

    gains: Ref
    angles: Ref | None = None

    def apply(self, rows: Array, which: int, place: Any) -> Array:
        """Rows of a tile, those at `place`; which of the gains is theirs."""
        layout = plgpu.Layout.WGMMA
        x = rows.astype(jnp.float32)
        mean = (x * x).sum(axis=1) * (1 / x.shape[1])
        gain = _load(self.gains.at[which], layout.reduce(0))
        x = x * down(jax.lax.rsqrt(mean + EPS), x) * across(gain, x)
        if self.angles is not None:
            x = _turned(x, _load(self.angles.at[place], layout))
        return x.astype(rows.dtype)


def _load(ref: Ref, layout: Any) -> Array:
    """From the GPU's memory, or what is near of it, right into registers."""
    return plgpu.load(ref, layout=layout, optimized=False)


def _turned(x: Array, angles: Array) -> Array:
    """Pairs of lanes, which a thread has side by side, turned by their angles."""
    from jax.experimental.mosaic import gpu as mgpu
    from jax.extend.mlir.dialects import arith, vector

    layout = plgpu.Layout.WGMMA

    @plgpu.inline_mgpu(
        arg_types=(layout, layout),
        return_type=plgpu.ShapeDtypeStruct(x.shape, jnp.float32, layout=layout),
    )
    def turn(_, x, angles):
        found = x.registers.copy()
        for place, pair in enumerate(x.registers.flat):
            angle = angles.registers.flat[place]
            sine = vector.shuffle(angle, arith.negf(angle), [3, 1])  # -sin, sin
            cosine = vector.shuffle(angle, angle, [0, 0])
            other = vector.shuffle(pair, pair, [1, 0])
            terms = arith.mulf(pair, cosine), arith.mulf(other, sine)
            found.flat[place] = arith.addf(*terms)
        return mgpu.FragmentedArray(_registers=found, _layout=x.layout, _is_signed=None)

    return turn(x, angles)
