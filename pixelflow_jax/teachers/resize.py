"""Images at other sizes: PyTorch's cubic interpolation, small ones enlarged."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

KEYS = -0.75  # PyTorch's cubic kernel
SMOOTH_KEYS = -0.5  # Pillow's, which PyTorch takes for antialiasing


def _kernel(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel (1981), zero beyond +-2."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def bicubic(
    inputs: int, outputs: int, scale: float | None = None, antialias: bool = False
) -> np.ndarray:
    """The float32 matrix [outputs, inputs] of cubic interpolation along one axis.

    Pixels are squares (align_corners=False) and edges are repeated. `scale` is the
    factor that maps coordinates where it is not outputs / inputs (PyTorch's
    `scale_factor`). `antialias` widens the kernel where it shrinks, and leaves out and
    renormalises what lies beyond the edges.
    """
    # Coordinates in float32, as PyTorch's are: at 256 pixels their rounding shows.
    step = np.float32(inputs / outputs if scale is None else 1 / scale)
    centers = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) * step
    if antialias:
        widening = max(step, 1.0)
        edges = (centers[:, None] + np.array([-2, 2]) * widening + 0.5).astype(int)
        first, end = np.clip(edges, 0, inputs).T[..., None]
        at = np.arange(inputs)
        distances = (at + 0.5 - centers[:, None]) / widening
        inside = (at >= first) & (at < end)
        matrix = np.where(inside, _kernel(distances, SMOOTH_KEYS), 0.0)
        return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
    sources = centers - np.float32(0.5)
    taps = np.floor(sources).astype(int)[:, None] + np.arange(-1, 3)
    values = _kernel(sources[:, None] - taps, KEYS)
    matrix = np.zeros((outputs, inputs))
    rows = np.arange(outputs)[:, None]
    np.add.at(matrix, (rows, np.clip(taps, 0, inputs - 1)), values)
    return matrix.astype(np.float32)


def resample(images: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Float32 [..., h, w, c] to [..., H, W, c], by matrices [H, h] and [W, w]."""
    exact = jax.lax.Precision.HIGHEST
    images = images.astype(jnp.float32)
    images = jnp.einsum("Hh,...hwc->...Hwc", rows, images, precision=exact)
    return jnp.einsum("Ww,...hwc->...hWc", columns, images, precision=exact)


def size_at_least(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """A size in the same proportions whose shorter side has `shorter` pixels or more.

    `size` (height, width) itself, where it has.
    """
    least = min(size)
    if least >= shorter:
        return size
    height, width = size
    return height * shorter // least, width * shorter // least


def enlarge(images: Array, size: tuple[int, int]) -> Array:
    """Images [b, h, w, c] at a larger size (height, width), linearly interpolated."""
    if images.shape[1:3] == size:
        return images
    b, _, _, c = images.shape
    return jax.image.resize(images, (b, *size, c), "linear")
