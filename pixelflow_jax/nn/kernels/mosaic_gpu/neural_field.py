"""`neural_field` on Hopper GPUs by Mosaic: the backward pass.

As many programs as there are multiprocessors, each with one patch after the other. Two
warpgroups compute a tile of pixels each, up to the gradients of its pixels, some hidden
values at a time; a third one has the sums over pixels, the gradients of the patch's
weights, and brings the weights of the next patch. Arrays are read and written by the
copy engine, vectors by lanes. Columns get unit length by scaling products, not weights.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import pl, plgpu
from pixelflow_jax.nn.kernels.mosaic_gpu.heads import for_products, launch
from pixelflow_jax.nn.kernels.mosaic_gpu.neural_field_work import (
    COMPUTE,
    SLOTS,
    WIDTH,
    Barriers,
    Far,
    Near,
    Sizes,
    Sums,
    Tiles,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import ROWS

MOST_HIDDEN = 128
TILE_REGISTERS, SUM_REGISTERS = 152, 200  # 8 or 16 more or less are slower
# Warpgroups that compute are to be a tile ahead of the sums at most: at half of a patch
# they wait for these.
LEAST = 2 * COMPUTE * ROWS  # pixels
SIZES = (
    f"half precision, {LEAST} pixels a patch or more in multiples of {COMPUTE * ROWS}, "
    f"width {WIDTH}, and hidden widths of {WIDTH} or {MOST_HIDDEN}"
)


def supports(pixels: int, width: int, hidden: int, dtype: jnp.dtype) -> bool:
    """Whether the kernel takes these sizes: `SIZES` in words."""
    known = pixels >= LEAST and not pixels % (COMPUTE * ROWS) and width == WIDTH
    return known and hidden in (WIDTH, MOST_HIDDEN) and dtype.itemsize == 2


@functools.partial(jax.jit, static_argnums=0)  # made once for all blocks
def backward(
    unit: tuple[bool, bool], z: Array, gain: Array, weights: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    """The gradients of z, gain and weights, of `triton.neural_field`'s arrays."""
    patches, pixels, width = z.shape
    hidden = weights.shape[1] // 2 // width
    sizes = Sizes(patches, pixels, hidden, unit)
    # Of the first matrix a row of `parts` pieces for each lane of a pixel; of the
    # second one as many rows as there are parts.
    pieces = patches, 2 * width, sizes.parts, WIDTH
    second = patches, 2 * hidden, width
    striped = functools.partial(for_products, dtype=z.dtype, stripe=WIDTH)
    tiles, barrier = (COMPUTE, SLOTS, ROWS, width), plgpu.Barrier
    dz, dweights, dgain = launch(
        lambda *references: _run(sizes, references),
        "neural_field_backward",
        [
            *(z, cotangent, gain.astype(jnp.float32)),
            *(weights.reshape(pieces), weights.reshape(second)),
        ],
        outs=[
            jax.ShapeDtypeStruct(z.shape, z.dtype),
            jax.ShapeDtypeStruct(pieces, z.dtype),
            jax.ShapeDtypeStruct((patches, width), jnp.float32),
        ],
        scratch=[
            Near(
                z=striped(tiles),
                cotangent=striped(tiles),
                first=striped((SLOTS, sizes.parts, width, WIDTH)),
                second=striped((SLOTS, sizes.parts, WIDTH, width)),
                unit=striped((COMPUTE, ROWS, width)),
                active=striped((COMPUTE, ROWS, WIDTH)),
                dhidden=striped((COMPUTE, ROWS, WIDTH)),
                dsecond=plgpu.SMEM((width, sizes.parts, WIDTH), z.dtype),
                scale1=plgpu.SMEM((SLOTS, hidden), jnp.float32),
                scale2=plgpu.SMEM((SLOTS, width), jnp.float32),
            ),
            Barriers(
                tile=barrier(num_arrivals=2, num_barriers=COMPUTE * SLOTS),
                weights=barrier(num_arrivals=2 * sizes.parts, num_barriers=SLOTS),
                ready=barrier(num_barriers=COMPUTE),
                free=barrier(num_barriers=COMPUTE),
                scales=barrier(),
                done=barrier(num_arrivals=COMPUTE),
            ),
        ],
        programs=sizes.programs,
        warpgroups=COMPUTE + 1,
    )
    return dz, dgain.sum(0).astype(gain.dtype), dweights.reshape(weights.shape)


def _run(sizes: Sizes, references: tuple) -> None:
    """What a warpgroup does."""
    *far, near, barriers = references
    given = sizes, Far(*far), near, barriers
    warpgroup = jax.lax.axis_index("warpgroup")

    @pl.when(warpgroup < COMPUTE)
    def _():
        plgpu.set_max_registers(TILE_REGISTERS, action="decrease")
        Tiles(*given).run()

    @pl.when(warpgroup == COMPUTE)
    def _():
        plgpu.set_max_registers(SUM_REGISTERS, action="increase")
        Sums(*given).run()
