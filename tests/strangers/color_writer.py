"""A denoiser of somebody else's that reads text: one vector of a text's states."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Inputs,
    Output,
    Paper,
    TextSpec,
)
from pixelflow_jax.nn.embed import TimeEmbed
from pixelflow_jax.nn.layers import linear, modulate, rms_normalise
from pixelflow_jax.nn.patch import patchify, unpatchify
from pixelflow_jax.nn.precision import Precision


@dataclasses.dataclass(kw_only=True)
class ColorWriter(DenoiserConfig):
    """Config of a denoiser of patches that know their text and not each other."""

    channels: int = 3
    patch: int = 4
    width: int = 32
    text_width: int = 16

    paper: ClassVar[Paper] = Paper(
        title="Colors That Read",
        url="https://example.org/color-writer",
        bibtex="@misc{stranger2026writer,\n  title = {Colors That Read}\n}",
    )
    output_kernel: ClassVar[tuple[str, ...]] = ("brush", "kernel")

    @property
    def condition(self) -> TextSpec:
        """A text of any length, without its padding."""
        return TextSpec(self.text_width)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "ColorWriterModel":
        """The module."""
        return ColorWriterModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with these fields for images of that size."""
        if height % self.patch or width % self.patch:
            return [f"model.patch={self.patch} does not divide {height} x {width}"]
        return []

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image."""
        tokens, pixels = height * width // self.patch**2, self.patch**2 * self.channels
        return 2.0 * tokens * self.width * (2 * pixels + self.width)


class ColorWriterModel(nnx.Module):
    """The denoiser."""

    def __init__(self, config: ColorWriter, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        pixels = config.patch**2 * config.channels
        self.dtype = precision.dtype
        self.canvas = linear(pixels, d, precision, rngs)
        self.time_embed = TimeEmbed(d, 10.0, precision, rngs)
        self.text = linear(config.text_width, d, precision, rngs)
        self.modulation = linear(d, 2 * d, precision, rngs)
        self.hidden = linear(d, d, precision, rngs)
        self.brush = linear(d, pixels, precision, rngs)

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
        """What time and text make, [b, width] a resolution."""
        return tuple(self.read(one) for one in batch)

    def read(self, given: Inputs) -> Array:
        """The mean of the text's states, with the time, [b, width]."""
        text, mask = given.cond.text, given.cond.mask
        if text is None:
            raise ValueError("ColorWriter reads text, but the condition holds none.")
        weight = jnp.ones(text.shape[:2]) if mask is None else mask.astype(text.dtype)
        mean = (text * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
        total = self.time_embed(given.timestep) + self.text(mean)
        return jax.nn.silu(total).astype(self.dtype)

    def one(self, given: Inputs, cond: Array) -> tuple[Array, Array]:
        """The prediction for one resolution, and its features."""
        patches = patchify(given.image.astype(self.dtype), self.patch)
        x = self.canvas(patches.reshape(*patches.shape[:2], -1))
        shift, scale = jnp.split(self.modulation(cond)[:, None], 2, -1)
        x = x + jax.nn.gelu(self.hidden(modulate(rms_normalise(x), shift, scale)))
        out = self.brush(x.astype(self.dtype)).astype(jnp.float32)
        out = out.reshape(patches.shape)
        return unpatchify(out, self.patch, *given.image.shape[1:3]), x
