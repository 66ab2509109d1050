"""Convolutions that look at each channel by itself."""

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.backends import platform


def depthwise(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    """Each channel of [b, h, w, c] convolved with its own kernel of [k, k, 1, c].

    In the kernel's type, with sums in float32. `padding` is "SAME", as TensorFlow's, or
    "VALID". XLA's convolution, except on CPUs, where that is some twenty times as slow
    as its terms added up one by one; the two differ by the rounding of float32.
    """
    x = x.astype(kernel.dtype)
    if platform() == "cpu":
        return _added_up(x, kernel, stride, padding)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _added_up(x: Array, kernel: Array, stride: int, padding: str) -> Array:
    """The same as a sum over the kernel's places, of x moved there and multiplied."""
    height, width = kernel.shape[:2]
    strides = (stride, stride)
    borders = jax.lax.padtype_to_pads(x.shape[1:3], (height, width), strides, padding)
    moved = jnp.pad(x.astype("float32"), ((0, 0), *borders, (0, 0)))
    rows, columns = moved.shape[1] - height + 1, moved.shape[2] - width + 1
    total = sum(
        moved[:, i : i + rows : stride, j : j + columns : stride] * kernel[i, j, 0]
        for i in range(height)
        for j in range(width)
    )
    return jnp.asarray(total, x.dtype)
