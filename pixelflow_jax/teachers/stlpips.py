"""ST-LPIPS (Ghildyal & Liu 2022), frozen: a distance that small shifts hardly move.

AlexNet whose strides are taken by blurred subsampling behind a reflecting pad, compared
as LPIPS compares. Trunk and linear layers come together, under the BSD-2 licence, in
the package stlpips-pytorch as a `.pth` file, which is read without PyTorch; nothing of
the package is imported. Its values are no LPIPS.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers.depthwise import depthwise
from pixelflow_jax.teachers.lpips import channel_weights, compare, maxima, scaled
from pixelflow_jax.teachers.resize import enlarge, size_at_least
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.layouts import convolution
from pixelflow_jax.tensors.locate import Origin, load, packaged
from pixelflow_jax.tensors.mapping import Row, linear_rows
from pixelflow_jax.values import Place

PACKAGE = "stlpips_pytorch"
FILE = "weights/vST0.0/alex_shift_tolerant.pth"
INSTALL = "pip install --no-deps stlpips-pytorch==0.0.2"
BLUR = np.outer((1, 2, 1), (1, 2, 1)).astype(np.float32) / 16
UNUSED = r"scaling_layer\..*|.*\.filt"  # constants of the formula
SMALLEST = 21  # pixels a side: of fewer the last pad has too little to reflect


class Layer(NamedTuple):
    """A convolution and its ReLU; `name` is the package's.

    `pool`: before it come maxima over three pixels and a blur that halves.
    """

    name: str
    outputs: int
    size: int
    pool: bool = False


LAYERS = (
    Layer("net.slice1.0", 64, 11),
    Layer("net.slice2.5", 192, 5, pool=True),
    Layer("net.slice3.9", 384, 3, pool=True),
    Layer("net.slice4.11", 256, 3),
    Layer("net.slice5.13", 256, 3),
)


@dataclasses.dataclass(kw_only=True)
class StLpipsNet:
    """A frozen ST-LPIPS network on AlexNet.

    `weights` names its file ("": that of the installed package stlpips-pytorch).
    """

    weights: Place = ""
    precision: Precision = dataclasses.field(default_factory=Precision)

    def load(self, field: str = "teachers.stlpips") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Raises WeightsError, which names the config node `field`, for absent, unreadable
        or other weights.
        """
        path = self.weights or packaged(PACKAGE, FILE)
        source = f"in a package ({INSTALL})"
        origin = Origin("ST-LPIPS", source, f"{field}.weights")
        return load(
            path,
            origin,
            lambda tensors: table(),
            precision=self.precision,
            ignored=UNUSED,
        )

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        return mapping.shapes(table(), self.precision)

    def distance(self, params: dict, a: Array, b: Array) -> Array:
        """The distance of each pair of images, float32 [b].

        `a`, `b` [b, h, w, 3] in [-1, 1]. Gradients reach the images, never the
        parameters.
        """
        features = (self.features(params, images) for images in (a, b))
        return compare(params["linear"], *features).sum(0)

    def features(self, params: dict, images: Array) -> tuple[Array, ...]:
        """What is compared: five layers' values, each [b, h, w, c] in the compute type.

        `images` [b, h, w, 3] in [-1, 1], enlarged where a side is shorter than 21.
        Raises ValueError for images that are not RGB.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"ST-LPIPS looks at RGB images [b, h, w, 3], not {images.shape}."
            )
        own = self.precision.cast(jax.lax.stop_gradient(params["trunk"]))
        size = size_at_least((images.shape[1], images.shape[2]), SMALLEST)
        x = scaled(enlarge(images, size)).astype(self.precision.dtype)
        values = []
        with jax.default_matmul_precision(self.precision.matmul):
            for number, layer in enumerate(LAYERS):
                if layer.pool:
                    x = halved(maxima(x, 3, stride=1))
                x = _convolve(own[f"conv{number}"], x)
                # The first layer is blurred before its ReLU.
                x = jax.nn.relu(x if number else halved(x))
                values.append(x)
        return tuple(values)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of that size."""
        try:
            self.precision.check()
        except ValueError as error:
            return [str(error)]
        return []


def halved(x: Array) -> Array:
    """[b, h, w, c] blurred by (1, 2, 1), every second pixel, edges reflected by 2."""
    channels = x.shape[-1]
    x = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    kernel = jnp.broadcast_to(BLUR[..., None, None], (3, 3, 1, channels))
    return depthwise(x, kernel.astype(x.dtype), 2, "VALID")


def _convolve(params: dict, x: Array) -> Array:
    """A convolution of stride 1, padded by half of its size, the first one by 2."""
    padding = min(2, params["kernel"].shape[0] // 2)
    x = jax.lax.conv_general_dilated(
        x,
        params["kernel"],
        (1, 1),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return x + params["bias"].astype(x.dtype)


def table() -> list[Row]:
    """How our parameters are made of the file's."""
    rows, inputs = [], 3
    for number, layer in enumerate(LAYERS):
        rows += linear_rows(
            f"trunk/conv{number}",
            layer.name,
            layout=convolution,
            shape=(layer.outputs, inputs, layer.size, layer.size),
        )
        inputs = layer.outputs
    return [*rows, *channel_weights([layer.outputs for layer in LAYERS])]
