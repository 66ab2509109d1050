"""A patch's neural field: an MLP on pixels whose weights a transformer predicts."""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from pixelflow_jax.nn.embed import Table, rotary_table
from pixelflow_jax.nn.kernels.neural_field import GeneratedMLP, neural_field
from pixelflow_jax.nn.layers import RMSNorm, linear, matrix_and_bias
from pixelflow_jax.nn.patch import Patch, sides
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.products import matmul

Generated = Literal["first", "second"]
WEIGHTS: tuple[Generated, ...] = get_args(Generated)


def dct_features(patch: Patch, frequencies: int = 8) -> Table:
    """PixNerd's coordinate features of a patch's pixels, [pixels, frequencies^2].

    cos(pi x f_i) cos(pi y f_j) / (1 + f_i f_j) with x (column), y (row) from 0 to 1 and
    f in linspace(0, frequencies, frequencies): multiples of 8/7, not the integers of a
    DCT. PixNerd eq. 12, as the official code computes it.
    """
    f = np.linspace(0, frequencies, frequencies, dtype=np.float32)

    def waves(side: int) -> np.ndarray:
        position = np.linspace(0, 1, side, dtype=np.float32)
        return np.cos(np.pi * position[:, None] * f)  # [side, frequencies]

    y, x = map(waves, sides(patch))
    product = x[None, :, :, None] * y[:, None, None, :]  # [y, x, i, j]
    table = product / (1 + f[:, None] * f)
    return table.reshape(-1, frequencies**2).astype(np.float32)


def sincos_features(patch: Patch, frequencies: int = 8) -> Table:
    """The coordinate features of NeRF, [pixels, 4 * frequencies]: PixNerd eq. 7.

    sin and cos of 2^l pi x, then of 2^l pi y, for l < frequencies.
    """

    def waves(side: int) -> np.ndarray:
        position = np.linspace(0, 1, side, dtype=np.float64)
        angles = np.pi * position[:, None] * 2.0 ** np.arange(frequencies)
        return np.concatenate([np.sin(angles), np.cos(angles)], -1)

    height, width = sides(patch)
    x, y = np.tile(waves(width), (height, 1)), np.repeat(waves(height), width, 0)
    return np.concatenate([x, y], -1).astype(np.float32)


def cosine_features(patch: Patch, frequencies: int = 32, extent: float = 0.0) -> Table:
    """The coordinate features of PixNerd's text model, [pixels, 2 * frequencies].

    cos(x w_k), cos(y w_k) side by side for every w_k = 10000^(-k / frequencies), with x
    (column), y (row) from 0 to `extent` (0: the side itself), ends included: of a
    rotary table, the official code keeps the cosines alone.
    """
    height, width = sides(patch)
    ends = (extent, extent) if extent else (float(width), float(height))
    return rotary_table(height, width, 4 * frequencies, ends)[0]


Encoding = Literal["dct", "sincos", "cosine", "cosine16"]
ENCODINGS: dict[Encoding, Callable[[Patch], Table]] = {
    "dct": dct_features,
    "sincos": sincos_features,
    "cosine": cosine_features,
    "cosine16": functools.partial(cosine_features, extent=16.0),
}


class PixelEmbed(nnx.Module):
    """Linear embedding of [pixel, coordinate features].

    The coordinates are the same for every patch, so their share of the product is
    computed once, [pixels, width], and added to the pixels' share.
    """

    def __init__(
        self, channels: int, width: int, encoding: Encoding, precision: Precision, rngs
    ):
        self.encoding: Encoding = encoding
        self.channels = channels
        features = ENCODINGS[encoding](1).shape[-1]
        self.proj = linear(channels + features, width, precision, rngs)

    def __call__(
        self, pixels: Float[Array, "*axes pixels channels"], patch: Patch
    ) -> Float[Array, "*axes pixels width"]:
        """The embedded pixels of patches."""
        kernel, bias = matrix_and_bias(self.proj, pixels.dtype)
        table = jnp.asarray(ENCODINGS[self.encoding](patch), pixels.dtype)
        coordinates = matmul(table, kernel[self.channels :]) + bias
        return matmul(pixels, kernel[: self.channels]) + coordinates


class FieldBlock(nnx.Module):
    """z + SiLU(RMS(z) W1) W2, with W1 and W2 generated for every patch.

    The `normalised` weights have columns of unit length (PixNerd eq. 10).
    """

    def __init__(
        self,
        condition_width: int,
        width: int,
        hidden: int,
        normalised: tuple[str, ...],
        precision: Precision,
        rngs: nnx.Rngs,
    ):
        self.width = width
        self.unit = (WEIGHTS[0] in normalised, WEIGHTS[1] in normalised)
        self.norm = RMSNorm(width)
        self.generator = linear(condition_width, 2 * width * hidden, precision, rngs)

    def __call__(
        self,
        z: Float[Array, "b n pixels width"],
        condition: Float[Array, "b n condition_width"],
    ) -> Float[Array, "b n pixels width"]:
        """Pixels of patches under the condition that each patch's MLP comes from."""
        mlp = GeneratedMLP(self.generated(condition), self.width, self.unit)
        return neural_field(z, self.norm.weight[...], mlp)

    def generated(
        self, condition: Float[Array, "b n condition_width"]
    ) -> Float[Array, "b n weights"]:
        """The weights of each patch's MLP, both matrices as `GeneratedMLP` has them."""
        kernel, bias = matrix_and_bias(self.generator, condition.dtype)
        return checkpoint_name(matmul(condition, kernel) + bias, "generated")
