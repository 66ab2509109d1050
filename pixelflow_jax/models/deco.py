"""DeCo: PixNerd's transformer before a small pixel decoder without attention.

Ma et al. 2025, "DeCo: Frequency-Decoupled Pixel Diffusion for End-to-End Image
Generation". The transformer makes one condition for each pixel; the decoder's residual
MLPs, shared by all pixels, are modulated by it. `losses.frequency` is its other half.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import DenoiserConfig, Labels, Paper
from pixelflow_jax.models.pixnerd import PixNerdModel
from pixelflow_jax.nn.block import block_flops
from pixelflow_jax.nn.decoder import Patches
from pixelflow_jax.nn.field import PixelEmbed
from pixelflow_jax.nn.layers import (
    gated,
    layer_normalise,
    linear,
    modulate,
    xavier,
    zeros,
)
from pixelflow_jax.nn.mlp import swiglu_width
from pixelflow_jax.nn.patch import patchify, unpatchify
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig
from pixelflow_jax.values import Depth, OptionalDepth, Pixels, Width

PAPER = Paper(
    title="DeCo: Frequency-Decoupled Pixel Diffusion for End-to-End Image Generation",
    url="https://arxiv.org/abs/2511.19365",
    bibtex="""@article{ma2025deco,
  title = {DeCo: Frequency-Decoupled Pixel Diffusion for End-to-End Image Generation},
  author = {Ma, Zehong and Wei, Longhui and Wang, Shuai and Zhang, Shiliang and
            Tian, Qi},
  journal = {arXiv:2511.19365},
  year = {2025}
}""",
)


@dataclasses.dataclass(kw_only=True)
class PixelMLPs:
    """Decoder: `depth` residual MLPs of `width` channels, shared by all pixels.

    `stack`: remat "full" keeps only what enters each MLP for the backward pass, for
    batches that do not fit otherwise.
    """

    width: Width = 32
    depth: Depth = 3
    stack: StackConfig = dataclasses.field(
        default_factory=lambda: StackConfig(remat="none", scan=False)
    )

    def build(
        self, model: Patches, rngs: nnx.Rngs, precision: Precision
    ) -> "PixelDecoder":
        """The decoder module for `model`."""
        return PixelDecoder(self, model, rngs, precision)

    def flops(self, model: Patches, pixels: int) -> float:
        """Forward operations for one image of that many pixels."""
        d = self.width
        layers = self.depth * 5 * d * d + d * (d + 2 * model.channels)
        return 2 * pixels * (model.width * d + layers)


@dataclasses.dataclass(kw_only=True)
class DeCo(DenoiserConfig):
    """Config of the class-conditional denoiser; the defaults are XL/16 (682M).

    `depth` transformer blocks of `width` and `heads`, as PixNerd's; the tokens after
    the first `feature_layer` of them are handed out. Class `num_classes` is the null
    class. Any image size that `patch` divides works with the same parameters.
    """

    paper: ClassVar[Paper] = PAPER
    num_classes: Width = 1000
    channels: Width = 3
    patch: Pixels = 16
    width: Width = 1152
    heads: Width = 16
    depth: Depth = 28
    feature_layer: OptionalDepth = 8
    decoder: PixelMLPs = dataclasses.field(default_factory=PixelMLPs)
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> Labels:
        """Classes."""
        return Labels(self.num_classes)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLP."""
        return swiglu_width(self.width)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> PixNerdModel:
        """The module, with the official initialisation."""
        return PixNerdModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        return trunk.problems(self, height, width, also=("num_classes",))

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        pixels, n = height * width, height * width // self.patch**2
        blocks = self.depth * block_flops(n, self.width, self.mlp_width)
        before = 2 * (blocks + trunk.embed_flops(self, pixels))
        return before + self.decoder.flops(self, pixels)


class PixelBlock(nnx.Module):
    """x + gate * MLP(LayerNorm(x) (1 + scale) + shift), pixel by pixel.

    Shift, scale and gate are a linear layer of SiLU of the pixel's condition.
    """

    def __init__(self, width: int, precision: Precision, rngs: nnx.Rngs):
        layer = functools.partial(
            linear, precision=precision, rngs=rngs, bias_init=zeros
        )
        self.weight = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.hidden = layer(width, width, init=xavier)
        self.out = layer(width, width, init=xavier)
        self.modulation = layer(width, 3 * width, init=zeros)

    def __call__(
        self, x: Float[Array, "*axes width"], active: Float[Array, "*axes width"]
    ) -> Float[Array, "*axes width"]:
        """Pixels under `active`, SiLU of their conditions."""
        shift, scale, gate = jnp.split(self.modulation(active), 3, -1)
        hidden = self.hidden(modulate(self.norm(x), shift, scale))
        return gated(x, gate, self.out(jax.nn.silu(hidden)))

    def norm(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
        """LayerNorm over the last axis, float32 inside."""
        normal = layer_normalise(x) * self.weight[...] + self.bias[...]
        return normal.astype(x.dtype)


class PixelDecoder(nnx.Module):
    """From noisy pixels and one condition a token to the output."""

    def __init__(
        self, config: PixelMLPs, model: Patches, rngs: nnx.Rngs, precision: Precision
    ):
        d, self.patch, self.dtype = config.width, model.patch, precision.dtype
        layer = functools.partial(
            linear, precision=precision, rngs=rngs, bias_init=zeros
        )
        self.embed = PixelEmbed(model.channels, d, "dct", precision, rngs)
        self.proj = layer(d, d, init=xavier)
        self.condition = layer(model.width, model.patch**2 * d, init=xavier)
        self.stack = Stack(
            lambda rngs: PixelBlock(d, precision, rngs),
            config.depth,
            rngs,
            config.stack,
        )
        self.linear = layer(d, model.channels, init=zeros)

    def __call__(self, image: Array, tokens: Array, time: Array, cond: Array) -> Array:
        """Image from a noisy one [b, h, w, c], tokens [b, n, d] and time [b, d].

        All decoders are called alike; this one does not look at the class.
        """
        return self.decode(image, jax.nn.silu(time[:, None] + tokens))

    def decode(self, image: Array, condition: Array) -> Array:
        """The image for given conditions of its tokens [b, n, width]; float32."""
        pixels = patchify(image.astype(self.dtype), self.patch)
        x = self.proj(self.embed(pixels, self.patch))
        each = self.condition(condition.astype(self.dtype)).reshape(x.shape)
        x = self.stack(x, jax.nn.silu(each))
        out = self.linear(layer_normalise(x).astype(self.dtype)).astype(jnp.float32)
        return unpatchify(out, self.patch, *image.shape[1:3])
