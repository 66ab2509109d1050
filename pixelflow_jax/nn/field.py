"""A patch's neural field: an MLP on pixels whose weights a transformer predicts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn import field_kernel
from pixelflow_jax.nn.embed import rotary_table
from pixelflow_jax.nn.layers import RMSNorm, linear
from pixelflow_jax.nn.patch import Patch, sides
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.sharding import by_device

WEIGHTS = ("first", "second")
KERNELS = ("auto", "pallas", "einsum")


def dct_features(patch: Patch, frequencies: int = 8) -> np.ndarray:
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


def sincos_features(patch: Patch, frequencies: int = 8) -> np.ndarray:
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


def cosine_features(
    patch: Patch, frequencies: int = 32, extent: float = 0.0
) -> np.ndarray:
    """The coordinate features of PixNerd's text model, [pixels, 2 * frequencies].

    cos(x w_k), cos(y w_k) side by side for every w_k = 10000^(-k / frequencies), with x
    (column), y (row) from 0 to `extent` (0: the side itself), ends included: of a
    rotary table, the official code keeps the cosines alone.
    """
    height, width = sides(patch)
    ends = (extent, extent) if extent else (float(width), float(height))
    return rotary_table(height, width, 4 * frequencies, ends)[0]


ENCODINGS = {
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
        self, channels: int, width: int, encoding: str, precision: Precision, rngs
    ):
        self.encoding = encoding
        self.channels = channels
        features = ENCODINGS[encoding](1).shape[-1]
        self.proj = linear(channels + features, width, precision, rngs)

    def __call__(self, pixels: Array, patch: Patch) -> Array:
        """Pixels of patches [..., pixels, channels] to [..., pixels, width]."""
        kernel = self.proj.kernel[...].astype(pixels.dtype)
        table = jnp.asarray(ENCODINGS[self.encoding](patch), pixels.dtype)
        place = table @ kernel[self.channels :]
        place += self.proj.bias[...].astype(pixels.dtype)
        return pixels @ kernel[: self.channels] + place


class FieldBlock(nnx.Module):
    """z + SiLU(RMS(z) W1) W2, with W1 and W2 generated for every patch.

    The `normalised` weights have columns of unit length (PixNerd eq. 10). `kernel`:
    "pallas" computes it in one kernel, without writing the normalised weights and the
    hidden values to memory, "einsum" in separate products; "auto" takes the kernel on
    GPUs in half precision, for the sizes it knows.
    """

    def __init__(
        self,
        condition_width: int,
        width: int,
        hidden: int,
        normalised: tuple[str, ...],
        precision: Precision,
        rngs: nnx.Rngs,
        kernel: str = "auto",
    ):
        self.width = width
        self.hidden = hidden
        self.normalised = tuple(normalised)
        self.kernel = kernel
        self.norm = RMSNorm(width)
        self.generator = linear(condition_width, 2 * width * hidden, precision, rngs)

    def __call__(self, z: Array, condition: Array) -> Array:
        """z [b, n, pixels, width], condition [b, n, condition_width]; z's shape.

        Raises ValueError where "pallas" is asked for and the sizes do not fit.
        """
        first, second = self.generated(condition)
        unit = tuple(name in self.normalised for name in WEIGHTS)
        if self._fused(z):
            weight = self.norm.weight[...]
            run = functools.partial(_fused_block, unit=unit)
            return by_device(run, z, first, second, whole=(weight,))
        weights = zip((first, second), unit, strict=True)
        first, second = (unit_columns(w) if is_unit else w for w, is_unit in weights)
        hidden = jnp.einsum("bnpd,bndh->bnph", self.norm(z), first)
        return z + jnp.einsum("bnph,bnhd->bnpd", jax.nn.silu(hidden), second)

    def generated(self, condition: Array) -> tuple[Array, Array]:
        """The weights [b, n, width, hidden] and [b, n, hidden, width] of each patch.

        From two products, so that neither has to be cut out of a common array.
        """
        dtype = condition.dtype
        shapes = (self.width, self.hidden), (self.hidden, self.width)
        kernels = jnp.split(self.generator.kernel[...].astype(dtype), 2, -1)
        biases = jnp.split(self.generator.bias[...].astype(dtype), 2)
        parts = (
            (condition @ kernel + bias).reshape(*condition.shape[:-1], *shape)
            for kernel, bias, shape in zip(kernels, biases, shapes, strict=True)
        )
        return tuple(checkpoint_name(part, "generated") for part in parts)

    def _fused(self, z: Array) -> bool:
        known = field_kernel.fits(z.shape[-2], self.width, self.hidden)
        if self.kernel == "pallas" and not known:
            raise ValueError(
                f'decoder.kernel="pallas" needs {field_kernel.SIZES}, not '
                f"{z.shape[-2]} pixels, width {self.width} and hidden width "
                f'{self.hidden}: set decoder.kernel="auto".'
            )
        half = z.dtype in (jnp.bfloat16, jnp.float16)
        suits = known and half and jax.default_backend() == "gpu"
        return self.kernel == "pallas" or self.kernel == "auto" and suits


def _fused_block(
    z: Array, first: Array, second: Array, weight: Array, unit: tuple[bool, bool]
) -> Array:
    """The kernel on [b, n, ...], all patches one after the other."""
    flat = [a.reshape(-1, *a.shape[2:]) for a in (z, first, second)]
    interpret = jax.default_backend() != "gpu"
    out = field_kernel.field_block(flat[0], weight, *flat[1:], unit, interpret)
    return out.reshape(z.shape)


def unit_columns(weight: Array) -> Array:
    """Columns (axis -2) scaled to length one; computed in float32."""
    weight32 = weight.astype(jnp.float32)
    squared = jnp.sum(weight32 * weight32, -2, keepdims=True)
    # 1 / max(norm, 1e-12); taking the root last keeps a zero column free of NaN.
    inverse = jax.lax.rsqrt(jnp.maximum(squared, 1e-24))
    return (weight32 * inverse).astype(weight.dtype)
