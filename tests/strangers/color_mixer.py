"""A denoiser of somebody else's: patches that mix over their rows and columns.

It follows the contract of docs/add_a_method.md and nothing else: it shares no trunk
with the models of the package, its last matrix has another name, it reads classes.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Inputs,
    Labels,
    Output,
    Paper,
)
from pixelflow_jax.nn.embed import ClassEmbed, TimeEmbed
from pixelflow_jax.nn.layers import linear, modulate, rms_normalise
from pixelflow_jax.nn.patch import patchify, unpatchify
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig

zeros = nnx.initializers.zeros


@dataclasses.dataclass(kw_only=True)
class ColorMixer(DenoiserConfig):
    """Config of a small denoiser without attention.

    Each of `depth` blocks adds to every token the mean of its row and of its column,
    and a gated MLP of it. The tokens behind `feature_layer` blocks are handed out.
    """

    num_classes: int = 10
    channels: int = 3
    patch: int = 4
    width: int = 32
    depth: int = 2
    feature_layer: int = 1
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    paper: ClassVar[Paper] = Paper(
        title="Colors That Mix",
        url="https://example.org/color-mixer",
        bibtex="@misc{stranger2026mixer,\n  title = {Colors That Mix}\n}",
    )
    output_kernel: ClassVar[tuple[str, ...]] = ("to_pixels", "kernel")

    @property
    def condition(self) -> Labels:
        """One of its classes."""
        return Labels(self.num_classes)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "ColorMixerModel":
        """The module."""
        return ColorMixerModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with these fields for images of that size."""
        if height % self.patch or width % self.patch:
            return [f"model.patch={self.patch} does not divide {height} x {width}"]
        return []

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image."""
        tokens, d = height * width // self.patch**2, self.width
        ends = 2 * d * self.patch**2 * self.channels
        return 2.0 * tokens * (self.depth * 3 * d * d + ends)


class MixerBlock(nnx.Module):
    """Row and column means, modulated by the condition, through one linear layer."""

    def __init__(self, width: int, precision: Precision, rngs: nnx.Rngs):
        self.mix = linear(width, width, precision, rngs)
        self.modulation = linear(width, 2 * width, precision, rngs)

    def __call__(self, x: Array, cond: Array, rows: int) -> Array:
        """Tokens [b, n, width] in `rows` rows, condition [b, width]."""
        shift, scale = jnp.split(self.modulation(cond)[:, None], 2, -1)
        z = modulate(rms_normalise(x), shift, scale)
        grid = z.reshape(len(x), rows, -1, z.shape[-1])
        mean = grid.mean(1, keepdims=True) + grid.mean(2, keepdims=True)
        mixed = (grid + mean).reshape(x.shape).astype(x.dtype)
        return x + jax.nn.gelu(self.mix(mixed))


class ColorMixerModel(nnx.Module):
    """The denoiser, one resolution after the other."""

    def __init__(self, config: ColorMixer, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        pixels = config.patch**2 * config.channels
        self.dtype = precision.dtype
        self.from_pixels = linear(pixels, d, precision, rngs)
        self.time_embed = TimeEmbed(d, 10.0, precision, rngs)
        self.class_embed = ClassEmbed(config.num_classes, d, rngs)

        def stack(depth: int) -> Stack | None:
            make = lambda rngs: MixerBlock(d, precision, rngs)
            return Stack(make, depth, rngs, config.stack) if depth else None

        self.early = stack(config.feature_layer)
        self.late = stack(config.depth - config.feature_layer)
        self.to_pixels = linear(d, pixels, precision, rngs, init=zeros, bias_init=zeros)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: tuple[Array, ...] | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Predictions for every resolution of `batch`."""
        conds = pre or self.precompute(batch)
        both = [self.one(*pair) for pair in zip(batch, conds, strict=True)]
        pred, features = zip(*both, strict=True)
        return Output(pred, features)

    def precompute(self, batch: tuple[Inputs, ...]) -> tuple[Array, ...]:
        """What time and class make, [b, width] a resolution."""
        return tuple(
            jax.nn.silu(
                self.time_embed(one.timestep) + self.class_embed(one.cond.labels)
            ).astype(self.dtype)
            for one in batch
        )

    def one(self, given: Inputs, cond: Array) -> tuple[Array, Array]:
        """The prediction for one resolution, and its features."""
        patches = patchify(given.image.astype(self.dtype), self.patch)
        rows = given.image.shape[1] // self.patch
        x = self.from_pixels(patches.reshape(*patches.shape[:2], -1))
        x = self.early(x, cond, rows) if self.early else x
        features = x
        x = self.late(x, cond, rows) if self.late else x
        out = self.to_pixels(rms_normalise(x).astype(self.dtype)).astype(jnp.float32)
        out = out.reshape(patches.shape)
        return unpatchify(out, self.patch, *given.image.shape[1:3]), features
