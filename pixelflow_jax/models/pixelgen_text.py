"""PixelGen that reads text: a joint transformer that predicts the clean image.

Ma et al. 2026, "PixelGen: Pixel Diffusion Beats Latent Diffusion with Perceptual Loss",
the text-to-image model.
"""

import dataclasses
from typing import ClassVar

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
from pixelflow_jax.models.pixelgen import PAPER, places_of
from pixelflow_jax.models.text_trunk import (
    Precomputed,
    TextTrunk,
    text_flops,
    text_problems,
)
from pixelflow_jax.nn.decoder import TokenDecoder
from pixelflow_jax.nn.embed import pack_patches, pack_tables, sincos_table
from pixelflow_jax.nn.layers import XAVIER, linear, xavier
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig

zeros = nnx.initializers.zeros


@dataclasses.dataclass(kw_only=True)
class PixelGenText(DenoiserConfig):
    """Config of the text-to-image denoiser; the defaults are XXL/16 for 512 pixels.

    `text_depth` blocks on texts and `depth` on images, of `width` and `heads`; the
    image tokens after the first `feature_layer` of them are handed out. Texts have exactly
    `text_length` tokens of `text_width`. Padding is read like text, as in the official
    code; `mask_text` hides what `Condition.mask` excludes. Patches are embedded through
    `bottleneck` channels.

    `image_size` is the size trained on, whose positions are a stored table; any other
    size that `patch` divides works too, with a computed one.
    """

    paper: ClassVar[Paper] = PAPER
    channels: int = 3
    patch: int = 16
    image_size: int = 512
    width: int = 1536
    heads: int = 24
    depth: int = 16
    text_depth: int = 4
    text_width: int = 2048
    text_length: int = 128
    mask_text: bool = False
    bottleneck: int = 256
    feature_layer: int = 6
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> TextSpec:
        """Texts of one length."""
        return TextSpec(self.text_width, self.text_length, not self.mask_text)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixelGenTextModel":
        """The module, with the official initialisation."""
        return PixelGenTextModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        also = ("image_size", "bottleneck")
        found = text_problems(self, height, width, also=also)
        if self.patch > 0 and self.image_size % self.patch:
            found.append(
                f"model.image_size={self.image_size} must be a multiple of "
                f"model.patch={self.patch}"
            )
        return found

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        n, d, neck = height * width // self.patch**2, self.width, self.bottleneck
        pixels = n * self.patch**2 * self.channels
        return 2 * (text_flops(self, n) + pixels * (neck + d) + n * neck * d)


class PixelGenTextModel(nnx.Module):
    """The text-to-image denoiser; see `models.base.Denoiser` for its call."""

    def __init__(self, config: PixelGenText, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.dtype = precision.dtype
        inputs, neck = config.channels * config.patch**2, config.bottleneck
        init = {"init": xavier, "bias_init": zeros}
        self.patch_embed = linear(inputs, neck, precision, rngs, bias=False, **init)
        self.patch_expand = linear(neck, d, precision, rngs, **init)
        side = config.image_size // config.patch
        self.position = nnx.Param(jnp.asarray(sincos_table(side, side, d)))
        small = nnx.initializers.normal(0.02)
        self.trunk = TextTrunk(config, rngs, precision, XAVIER, small)
        self.decoder = TokenDecoder(config, rngs, precision, modulated=False)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: Precomputed | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for times in [0, 1] and texts [b_i, text_length, text_width].

        Raises ValueError where `conds` hold no text, or one of another shape.
        """
        groups, _, _ = zip(*batch, strict=True)
        ahead = pre or self.precompute(batch)
        out = self.trunk(groups, *self.embed(groups), ahead)
        parts = zip(groups, out.tokens, out.times, strict=True)
        pred = (self.decoder(image, x, time, time) for image, x, time in parts)
        return Output(tuple(pred), tuple(out.features))

    def precompute(self, batch: tuple[Inputs, ...]) -> Precomputed:
        """See `models.interface.Denoiser`."""
        _, timesteps, conds = zip(*batch, strict=True)
        return self.trunk.precompute(timesteps, conds)

    def embed(self, groups: tuple[Array, ...]) -> tuple[Packing, Array]:
        """The embedded patches with their positions [rows, n, width]."""
        packing, patches = pack_patches(groups, self.patch, self.dtype)
        tokens = self.patch_expand(self.patch_embed(patches))
        sizes = [(g.shape[1] // self.patch, g.shape[2] // self.patch) for g in groups]
        places = [(places_of(self.position[...], *size),) for size in sizes]
        tokens = tokens + pack_tables(packing, places)[0]
        return packing, tokens.astype(self.dtype)
