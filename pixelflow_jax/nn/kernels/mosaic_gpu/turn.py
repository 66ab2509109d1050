"""Queries and keys normalised and turned in registers, on Hopper GPUs by Mosaic."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl, plgpu
from pixelflow_jax.nn.kernels.launch import EPS
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import LONGEST_COPY, Bias, in_registers
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import Ref, across, by_column, down

# Cosines and sines, which shared memory has no room for in float32. Of half precision
# this is the finer one for numbers up to 1: they are off by 1/4096 at most, where what
# is turned is rounded to 1/512 of itself.
ANGLES = jnp.float16


class Turn(NamedTuple):
    """Gains of queries and keys, and angles of each pair of lanes, cosine and sine.

    Two `gains` [width], `angles` [n, width] and the `bias` of the projection lie in
    memory; of angles there may be a copy in shared memory, once it has `arrived`.
    """

    gains: tuple[Ref, Ref]
    angles: Ref
    bias: Bias | None
    near_angles: Any = None
    arrived: Any = None

    @staticmethod
    def scratch(n: int, width: int) -> list[Any]:
        """Shared memory, and the barrier of what is fetched."""
        arrived = plgpu.Barrier(num_arrivals=len(_parts(n)))
        return [plgpu.SMEM((n, width), ANGLES), arrived]

    def fetch(self) -> None:
        """Send for angles; by one warpgroup. Each waits once, by `fetched`."""
        for part in _parts(self.angles.shape[0]):
            source, to = self.angles.at[part], self.near_angles.at[part]
            plgpu.copy_gmem_to_smem(source, to, self.arrived)

    def fetched(self) -> None:
        """Wait for what was sent for."""
        plgpu.barrier_wait(self.arrived)

    def apply(self, rows: Array, part: int, head: Array, place: Any) -> Array:
        """Rows of a tile, those at `place`, of a head of queries or keys."""
        x = rows.astype(jnp.float32)
        if self.bias is not None:
            x = x + across(self.bias.of(part, head), x)
        mean = (x * x).sum(axis=1) * (1 / x.shape[1])
        gain = by_column(self.gains[part])
        x = x * down(jax.lax.rsqrt(mean + EPS), x) * across(gain, x)
        angles = self.angles if self.near_angles is None else self.near_angles
        angles = in_registers(angles.at[place])
        return _turned(x, angles.astype(jnp.float32)).astype(rows.dtype)


def _parts(n: int) -> list:
    """Rows that a copy takes at a time."""
    starts = range(0, n, LONGEST_COPY)
    return [pl.ds(start, min(LONGEST_COPY, n - start)) for start in starts]


def _turned(x: Array, angles: Array) -> Array:
    """Pairs of lanes, which a thread has side by side, turned by their angles."""
    # Not at the top: where there is no such GPU, these may be missing.
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
