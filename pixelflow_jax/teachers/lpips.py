"""LPIPS (Zhang et al. 2018), frozen: how far apart two images look to a network."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers.resize import enlarge, size_at_least
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.layouts import Layout, convolution
from pixelflow_jax.tensors.locate import Origin, load, packaged
from pixelflow_jax.tensors.mapping import Row, linear_rows
from pixelflow_jax.values import Place

# Of images in [-1, 1].
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class Conv(NamedTuple):
    """A convolution with its ReLU; `key` is its number in torchvision's `features`."""

    key: int
    outputs: int
    size: int = 3
    stride: int = 1
    padding: int = 1


class Slice(NamedTuple):
    """Convolutions up to a layer that is compared; `pool`: maxima before them."""

    convs: tuple[Conv, ...]
    pool: bool


class Backbone(NamedTuple):
    """A classifier's convolutions; maxima are taken over `window` pixels, stride 2."""

    slices: tuple[Slice, ...]
    window: int
    file: str  # torchvision's
    linear: str  # the file of the lpips package


def _vgg16() -> tuple[Slice, ...]:
    slices, key = [], 0
    for outputs, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        convs = tuple(Conv(key + 2 * n, outputs) for n in range(count))
        slices.append(Slice(convs, pool=bool(slices)))
        key += 2 * count + 1  # each convolution has a ReLU, each slice a pooling
    return tuple(slices)


ALEXNET = (
    Slice((Conv(0, 64, size=11, stride=4, padding=2),), pool=False),
    Slice((Conv(3, 192, size=5, padding=2),), pool=True),
    Slice((Conv(6, 384),), pool=True),
    Slice((Conv(8, 256),), pool=False),
    Slice((Conv(10, 256),), pool=False),
)
BackboneName = Literal["vgg16", "alexnet"]
BACKBONES: dict[BackboneName, Backbone] = {
    "vgg16": Backbone(_vgg16(), 2, "vgg16-397923af.pth", "vgg.pth"),
    "alexnet": Backbone(ALEXNET, 3, "alexnet-owt-7be5be79.pth", "alex.pth"),
}
UNUSED = r"classifier\..*"  # the classifier's own layers


@dataclasses.dataclass(kw_only=True)
class LpipsNet:
    """A frozen LPIPS network.

    `weights` names torchvision's file of the `backbone` ("vgg16" or "alexnet"),
    `linear` LPIPS's own; left empty, it is the installed lpips package's. Both go
    through `tensors.locate`.
    """

    backbone: BackboneName = "vgg16"
    weights: Place = ""
    linear: Place = ""
    precision: Precision = dataclasses.field(default_factory=Precision)

    def load(self, field: str = "teachers.lpips") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Raises WeightsError, which names the config node `field`, for absent, unreadable
        or other weights.
        """
        net = self._net
        source = f"torchvision's {net.file} (IMAGENET1K_V1)"
        origin = Origin(f"LPIPS's {self.backbone}", source, f"{field}.weights")
        backbone = load(
            self.weights,
            origin,
            lambda tensors: _convolutions(net),
            precision=self.precision,
            ignored=UNUSED,
        )
        linear = self.linear or packaged("lpips", f"weights/v0.1/{net.linear}")
        source = f"the lpips package's weights/v0.1/{net.linear}"
        origin = Origin("LPIPS's linear layers", source, f"{field}.linear")
        return backbone | load(
            linear, origin, lambda tensors: _linears(net), precision=self.precision
        )

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        return mapping.shapes(table(self.backbone), self.precision)

    def distance(self, params: dict, a: Array, b: Array) -> Array:
        """The distance of each pair of images, float32 [b].

        `a`, `b` [b, h, w, 3] in [-1, 1]. Gradients reach the images, never the
        parameters.
        """
        features = (self.features(params, images) for images in (a, b))
        return self.compare(params, *features).sum(0)

    def compare(
        self, params: dict, a: tuple[Array, ...], b: tuple[Array, ...]
    ) -> Array:
        """The parts of `distance` from two results of `features`, [layers, b]."""
        return compare(params["linear"], a, b)

    def features(self, params: dict, images: Array) -> tuple[Array, ...]:
        """What is compared: five layers' values behind their ReLU, each [b, h, w, c].

        `images` [b, h, w, 3] in [-1, 1], enlarged to `smallest` where they are smaller;
        the result has the compute type.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"LPIPS looks at RGB images [b, h, w, 3], not {images.shape}."
            )
        params = self.precision.cast(jax.lax.stop_gradient(params["backbone"]))
        size = size_at_least((images.shape[1], images.shape[2]), self.smallest)
        x = scaled(enlarge(images, size)).astype(self.precision.dtype)
        values = []
        with jax.default_matmul_precision(self.precision.matmul):
            for part in self._net.slices:
                x = _slice(part, self._net.window, params, x)
                values.append(x)
        return tuple(values)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of that size."""
        problems = []
        try:
            self.precision.check()
        except ValueError as error:
            problems.append(str(error))
        if self.backbone not in BACKBONES:
            known = ", ".join(BACKBONES)
            problems.append(f"backbone={self.backbone!r} is not one of {known}")
        return problems

    @property
    def smallest(self) -> int:
        """The fewest pixels a side that leave one in the last layer."""
        size = 1
        for part in reversed(self._net.slices):
            for conv in reversed(part.convs):
                size = max(1, (size - 1) * conv.stride + conv.size - 2 * conv.padding)
            size = (size - 1) * 2 + self._net.window if part.pool else size
        return size

    @property
    def _net(self) -> Backbone:
        return BACKBONES[self.backbone]


def scaled(images: Array) -> Array:
    """Images in [-1, 1] as LPIPS hands them to its backbone, float32."""
    return (images.astype(jnp.float32) - SHIFT) / SCALE


def _slice(part: Slice, window: int, params: dict, x: Array) -> Array:
    if part.pool:
        x = maxima(x, window)
    for conv in part.convs:
        own = params[f"conv{conv.key}"]
        x = jax.lax.conv_general_dilated(
            x,
            own["kernel"],
            (conv.stride, conv.stride),
            [(conv.padding, conv.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        x = jax.nn.relu(x + own["bias"].astype(x.dtype))
    return x


def maxima(x: Array, window: int, stride: int = 2) -> Array:
    """Maxima over windows of [b, h, w, c]; what is left over is cut."""
    strides = (1, stride, stride, 1)
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, window, window, 1), strides, "VALID"
    )


def compare(linear: dict, a: tuple[Array, ...], b: tuple[Array, ...]) -> Array:
    """The distance of two images' features in each layer, [layers, b].

    `linear` are the weights of the channels of each layer.
    """
    linear = jax.lax.stop_gradient(linear)
    with jax.default_matmul_precision("highest"):
        return jnp.stack(
            [
                _difference(one, other) @ linear[f"layer{i}"]
                for i, (one, other) in enumerate(zip(a, b, strict=True))
            ]
        )


def _difference(a: Array, b: Array) -> Array:
    """Squared difference of unit vectors, meant over pixels: [b, h, w, c] to [b, c]."""
    return jnp.mean((_unit(a) - _unit(b)) ** 2, (1, 2))


def _unit(x: Array) -> Array:
    """x over its length in the last axis, float32."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, -1, keepdims=True)
    # The root's gradient at 0 is not finite.
    return x / (jnp.sqrt(jnp.maximum(squares, 1e-30)) + 1e-10)


def table(backbone: BackboneName) -> list[Row]:
    """How all our parameters are made of torchvision's and LPIPS's."""
    net = BACKBONES[backbone]
    return [*_convolutions(net), *_linears(net)]


def _convolutions(net: Backbone) -> list[Row]:
    """Of torchvision's names."""
    rows, inputs = [], 3
    for conv in (conv for part in net.slices for conv in part.convs):
        rows += linear_rows(
            f"backbone/conv{conv.key}",
            f"features.{conv.key}",
            layout=convolution,
            shape=(conv.outputs, inputs, conv.size, conv.size),
        )
        inputs = conv.outputs
    return rows


def _linears(net: Backbone) -> list[Row]:
    return channel_weights([part.convs[-1].outputs for part in net.slices])


def channel_weights(channels: list[int]) -> list[Row]:
    """One weight a channel of each compared layer: [1, c, 1, 1] <-> [c]."""
    layout = Layout(np.ravel, lambda a: a.reshape(1, -1, 1, 1))
    return [
        Row(
            f"linear/layer{i}",
            f"lin{i}.model.1.weight",
            layout,
            shape=(1, count, 1, 1),
        )
        for i, count in enumerate(channels)
    ]
