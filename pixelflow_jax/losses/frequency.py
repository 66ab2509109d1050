"""Flow matching in the frequencies that the eye sees: DeCo's other half."""

import dataclasses
from typing import Annotated, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pixelflow_jax.losses.context import Context, Role, Term
from pixelflow_jax.values import NonNegative, Range

Quality = Annotated[int, Range(low=1, high=100)]  # of JPEG
BLOCK = 8  # the side of JPEG's blocks
# RGB to Y, Cb and Cr without their offsets (JFIF), one a row.
YCBCR = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.168736, -0.331264, 0.5],
        [0.5, -0.418688, -0.081312],
    ]
)
# Quantisation tables at quality 50: ITU-T T.81, Annex K, Tables K.1 and K.2.
LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
CHROMINANCE = np.full((BLOCK, BLOCK), 99)
CHROMINANCE[:4, :4] = [
    [17, 18, 24, 47],
    [18, 21, 26, 66],
    [24, 26, 56, 99],
    [47, 66, 99, 99],
]


@dataclasses.dataclass(kw_only=True)
class FrequencyMatching(Term):
    """Squared error of the velocity's frequencies, weighed as JPEG quantises them.

    The error is turned into Y, Cb and Cr, padded by reflection at the bottom and at the
    right to multiples of 8, and each block of 8 x 8 into its orthonormal DCT-II. The
    weights are 1 / Q to the power `gamma`, for JPEG's tables Q at `quality` (1..100),
    with a mean of 1 a channel, so that frequencies that JPEG keeps count most. DeCo
    section 3.3; every prediction and path has a velocity, so that it goes with all. In
    a cascade each stage counts at its own size, and weighed where the prediction says
    so, as in `FlowMatching`.
    """

    weight: NonNegative = 1.0
    quality: Quality = 85
    gamma: NonNegative = 1.0
    role: ClassVar[Role] = "flow"

    def __call__(self, context: Context) -> Array:
        """One weighted mean squared error an image, float32 [b].

        Raises ValueError for images that are not RGB or smaller than their padding.
        """
        weights, values = frequency_weights(self.quality, self.gamma), []
        for point, velocity in zip(context.points, context.velocity(), strict=True):
            error = frequencies(velocity - context.prediction.target(point))
            value = jnp.mean(weights * error * error, axis=(1, 2, 3, 4, 5))
            weight = context.prediction.loss_weight(point)
            values.append(value if weight is None else weight * value)
        return jnp.concatenate(values)


def frequencies(
    images: Float[Array, "b h w 3"],
) -> Float[Array, "b rows columns 3 8 8"]:
    """The DCT-II of every block of 8 x 8 of Y, Cb and Cr, vertical frequency first.

    Raises ValueError for images that are not RGB or smaller than their padding.
    """
    b, h, w, channels = images.shape
    below, right = -h % BLOCK, -w % BLOCK
    if channels != 3 or below >= h or right >= w:
        raise ValueError(
            "FrequencyMatching needs RGB images, in a cascade at every stage, whose "
            f"sides are at least 5 pixels; one is {h} x {w} with {channels} channels. "
            "Remove the term, or take larger images or fewer stages."
        )
    to_ycbcr = jnp.asarray(YCBCR.T, images.dtype)
    coloured = jnp.matmul(images, to_ycbcr, precision="highest")
    padded = jnp.pad(coloured, ((0, 0), (0, below), (0, right), (0, 0)), "reflect")
    rows, columns = (h + below) // BLOCK, (w + right) // BLOCK
    blocks = padded.reshape(b, rows, BLOCK, columns, BLOCK, 3)
    basis = jnp.asarray(dct_matrix(), images.dtype)
    return jnp.einsum("brycxd,fy,gx->brcdfg", blocks, basis, basis, precision="highest")


def dct_matrix() -> Float[np.ndarray, "8 8"]:
    """The orthonormal DCT-II of 8 values, a row a frequency."""
    n = np.arange(BLOCK)
    waves = np.cos(np.pi * np.outer(n, n + 0.5) / BLOCK)
    return np.sqrt(np.where(n[:, None] == 0, 1, 2) / BLOCK) * waves


def frequency_weights(quality: int, gamma: float = 1.0) -> Float[np.ndarray, "3 8 8"]:
    """What every frequency of Y, Cb and Cr counts, float32, with a mean of 1 each."""
    scale = 200 - 2 * quality if quality >= 50 else 5000 / quality
    tables = np.stack([LUMINANCE, CHROMINANCE, CHROMINANCE])
    table = np.clip(np.floor((tables * scale + 50) / 100), 1, 255)
    weights = table**-gamma
    return (weights / weights.mean((1, 2), keepdims=True)).astype(np.float32)
