"""InceptionV3 as TensorFlow published it in 2015: the network that FID is defined by.

Not torchvision's: 1008 outputs, average pools that leave out what lies beyond the
border, a last block that pools maxima, and TensorFlow 1's resize. Source: Heusel et al.
2017, whose code and all that followed use this graph.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers import half_products
from pixelflow_jax.teachers.inception_files import EPSILON
from pixelflow_jax.teachers.inception_table import (
    BLOCKS,
    POOLED,
    STEM,
    Block,
    Branch,
    Conv,
    table,
)
from pixelflow_jax.tensors import mapping

SIZE = 299
SPATIAL = "Mixed_6d/branch1x1"  # mixed_6/conv of the graph
SPATIAL_CHANNELS = 7
SPATIAL_WIDTH = 17 * 17 * SPATIAL_CHANNELS
Window = tuple[int, int, int, int]
WINDOW: Window = (1, 3, 3, 1)
# How products are made: in float32; or as three of float16, which NVIDIA's matrix units
# do many times as fast, and as exactly (TPUs make float32 products of several bfloat16
# ones by themselves).
Arithmetic = Literal["float32", "float16x3"]
FEWEST = 8  # channels that matrix units take; images have 3
# Deviations that what leaves a batch norm hardly exceeds.
REACH = 4


class Layer(NamedTuple):
    """What is between two convolutions."""

    values: Array  # [b, h, w, c]
    bound: Array  # what they hardly exceed, by the batch norms that they come from

    def map(self, pool: Callable[[Array], Array]) -> "Layer":
        """The same behind a pool, which makes nothing larger."""
        return self._replace(values=pool(self.values))


Convolve = Callable[[Layer, Array, Conv], Array]


class Outputs(NamedTuple):
    """What the evaluators read of the network, float32."""

    pool3: Array  # [b, 2048]
    spatial: Array  # [b, 2023], row by row, channels last
    logits_unbiased: Array  # [b, 1008]
    logits: Array  # [b, 1008]


def shapes() -> dict:
    """The parameters as shapes; reads nothing."""
    return mapping.shapes(table(), Precision(compute="float32"))


def outputs(params: dict, images: Array, arithmetic: Arithmetic = "float32") -> Outputs:
    """All outputs for images uint8 (or whole floats in 0..255) [b, h, w, 3]."""
    seen = activations(params, images, arithmetic)
    pool3 = seen["AvgPool"]
    spatial = seen[SPATIAL][..., :SPATIAL_CHANNELS]
    logits = jnp.matmul(pool3, params["fc"]["kernel"], precision="highest")
    return Outputs(
        pool3,
        spatial.reshape(len(spatial), -1),
        logits,
        logits + params["fc"]["bias"],
    )


def activations(
    params: dict, images: Array, arithmetic: Arithmetic = "float32"
) -> dict[str, Array]:
    """What is behind each layer of the stem, each block and its one-layer branches.

    By name ("Mixed_5b", "Mixed_5b/branch_pool"), [b, h, w, c]; "AvgPool" is pool3,
    [b, 2048]. What is not used of it is not computed in a compiled program.
    """
    convolve = functools.partial(_convolve, arithmetic)
    x = Layer((resize(images) - 128) / 128, jnp.float32(1))
    seen = {}
    for conv in STEM:
        x = _convolved(params[conv.name], conv, x, convolve)
        seen[conv.name] = x.values
        if conv.name in POOLED:
            x = x.map(_reduced)
            seen[POOLED[conv.name]] = x.values
    for block in BLOCKS:
        parts = _branches(params[block.name], block, x, convolve)
        seen |= _named(block, parts)
        x = _concatenated(parts)
        seen[block.name] = x.values
    seen["AvgPool"] = x.values.mean((1, 2))
    return seen


def resize(images: Array) -> Array:
    """Images [b, h, w, c] at 299 x 299, float32, as TensorFlow 1 interpolates.

    Pixel i lies at i * (in / 299) between its lower and its upper neighbour: no half
    pixel, no antialiasing. All in float32, columns before rows, so that each value is
    TensorFlow's to the last bit.
    """
    x = images.astype(jnp.float32)
    low, high, share = _neighbours(x.shape[2])
    left = x[:, :, low]
    x = left + (x[:, :, high] - left) * share[:, None]
    low, high, share = _neighbours(x.shape[1])
    top = x[:, low]
    return top + (x[:, high] - top) * share[:, None, None]


@functools.cache
def _neighbours(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of 299 pixels: the two it lies between, and how far from the lower."""
    at = np.arange(SIZE, dtype=np.float32) * (np.float32(size) / np.float32(SIZE))
    low = at.astype(np.int32)
    return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def _named(block: Block, parts: list[Layer]) -> dict[str, Array]:
    """The outputs of branches of one convolution, by its name."""
    return {
        f"{block.name}/{branch.convs[0].name}": part.values
        for branch, part in zip(block.branches, parts, strict=True)
        if len(branch.convs) == 1 and not branch.fork
    }


def _branches(params: dict, block: Block, x: Layer, convolve: Convolve) -> list[Layer]:
    """What each branch makes of x."""
    joint = [branch for branch in block.branches if _starts_jointly(branch)]
    folded = [_folded(params[branch.convs[0].name]) for branch in joint]
    # All that begin with 1 x 1 read x once. Means and 1 x 1 convolutions commute, so
    # that means are taken of a few channels instead of all.
    y = convolve(x, jnp.concatenate([kernel for kernel, _ in folded], -1), Conv("", 0))
    widths = np.cumsum([branch.convs[0].outputs for branch in joint])
    heads = iter(zip(jnp.split(y, widths[:-1], -1), folded, strict=True))
    parts = []
    for branch in block.branches:
        rest, part = branch.convs, x
        if _starts_jointly(branch):
            head, (_, bias) = next(heads)
            head = mean_pool(head) if branch.pool == "mean" else head
            part = Layer(jax.nn.relu(head + bias), _bound(params[rest[0].name]))
            rest = rest[1:]
        elif branch.pool:
            part = x.map(max_pool if branch.convs else _reduced)
        for conv in rest:
            part = _convolved(params[conv.name], conv, part, convolve)
        if branch.fork:
            ends = [_convolved(params[c.name], c, part, convolve) for c in branch.fork]
            part = _concatenated(ends)
        parts.append(part)
    return parts


def _starts_jointly(branch: Branch) -> bool:
    first = branch.convs[:1]
    return bool(first) and first[0].size == (1, 1) and branch.pool != "max"


def _concatenated(parts: list[Layer]) -> Layer:
    """Layers side by side."""
    values = jnp.concatenate([part.values for part in parts], -1)
    return Layer(values, jnp.stack([part.bound for part in parts]).max())


def _folded(params: dict) -> tuple[Array, Array]:
    """Kernel and bias of a convolution that its batch norm is part of.

    One pass over the pixels instead of three.
    """
    scale = params["weight"] * jax.lax.rsqrt(params["running_var"] + EPSILON)
    return params["kernel"] * scale, params["bias"] - params["running_mean"] * scale


def _bound(params: dict) -> Array:
    """What leaves a batch norm hardly exceeds."""
    return (jnp.abs(params["bias"]) + REACH * jnp.abs(params["weight"])).max()


def _convolved(params: dict, conv: Conv, x: Layer, convolve: Convolve) -> Layer:
    """A convolution, its batch norm and ReLU."""
    kernel, bias = _folded(params)
    return Layer(jax.nn.relu(convolve(x, kernel, conv) + bias), _bound(params))


def _convolve(arithmetic: Arithmetic, x: Layer, kernel: Array, conv: Conv) -> Array:
    """A convolution with the stride and border of `conv`, float32."""
    product = functools.partial(_product, conv)
    if arithmetic == "float32" or kernel.shape[2] < FEWEST:
        return product(x.values, kernel)
    return half_products.convolve(product, x.values, x.bound, kernel)


def _product(conv: Conv, x: Array, kernel: Array, result: type = jnp.float32) -> Array:
    """The same of arrays of float32 or float16, added up in float32."""
    options = {
        "precision": "highest" if x.dtype == jnp.float32 else "default",
        "preferred_element_type": result,
    }
    if conv.size == (1, 1):  # faster so on GPUs
        return jnp.matmul(x, kernel[0, 0], **options)
    stride = 2 if conv.border == "halve" else 1
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME" if conv.border == "same" else "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **options,
    )


def mean_pool(x: Array) -> Array:
    """Means over 3 x 3, stride 1; at the border, over the pixels that there are."""
    ones = np.ones((1, *x.shape[1:3], 1), np.float32)
    return _sums(x) / _sums(ones)


def max_pool(x: Array) -> Array:
    """Maxima over 3 x 3, stride 1."""
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, WINDOW, (1, 1, 1, 1), "SAME")


def _sums(x: Array | np.ndarray) -> Array:
    return jax.lax.reduce_window(
        jnp.asarray(x), 0.0, jax.lax.add, WINDOW, (1, 1, 1, 1), "SAME"
    )


def _reduced(x: Array) -> Array:
    """Maxima over 3 x 3, stride 2, without the border."""
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, WINDOW, (1, 2, 2, 1), "VALID"
    )
