"""DeCo that reads text: PixNerd's joint transformer before DeCo's pixel decoder.

Ma et al. 2025, "DeCo: Frequency-Decoupled Pixel Diffusion for End-to-End Image
Generation", the text-to-image model.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from pixelflow_jax.models import trunk
from pixelflow_jax.models.deco import PAPER, PixelMLPs
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Paper,
    TextSpec,
)
from pixelflow_jax.models.text_trunk import (
    TextDenoiser,
    TextTrunk,
    text_flops,
    text_problems,
    text_rope,
)
from pixelflow_jax.nn.layers import TORCH
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.values import Depth, OptionalDepth, Pixels, Width


@dataclasses.dataclass(kw_only=True)
class DeCoText(DenoiserConfig):
    """Config of the text-to-image denoiser; the defaults are XXL/16 (1.1B).

    `text_depth` blocks on texts and `depth` on images, of `width` and `heads`; the
    image tokens after the first `feature_layer` of them are handed out. Texts have
    exactly `text_length` tokens of `text_width`. Padding is read like text, as by
    PixNerd; `mask_text` hides what `Condition.mask` excludes. Any image size that
    `patch` divides works with the same parameters.
    """

    paper: ClassVar[Paper] = PAPER
    channels: Width = 3
    patch: Pixels = 16
    width: Width = 1536
    heads: Width = 24
    depth: Depth = 16
    text_depth: OptionalDepth = 4
    text_width: Width = 2048
    text_length: Width = 128
    mask_text: bool = False
    feature_layer: OptionalDepth = 6
    decoder: PixelMLPs = dataclasses.field(default_factory=PixelMLPs)
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> TextSpec:
        """Texts of one length."""
        return TextSpec(self.text_width, self.text_length, not self.mask_text)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "DeCoTextModel":
        """The module."""
        return DeCoTextModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        return text_problems(self, height, width)

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        pixels = height * width
        before = text_flops(self, pixels // self.patch**2)
        before += trunk.embed_flops(self, pixels)
        return 2 * before + self.decoder.flops(self, pixels)


class DeCoTextModel(TextDenoiser):
    """The text-to-image denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: DeCoText, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.head_width = d // config.heads
        self.dtype = precision.dtype
        self.patch_embed = trunk.patch_linear(config, d, rngs, precision)
        places = nnx.initializers.normal(1.0)
        self.trunk = TextTrunk(config, rngs, precision, TORCH, places)
        self.decoder = config.decoder.build(config, rngs, precision)

    def embed(self, images: trunk.Images) -> trunk.Tokens:
        """The embedded patches."""
        table = functools.partial(text_rope, head_width=self.head_width)
        x = trunk.pack_images(images, self.patch, self.dtype, table)
        return x._replace(array=self.patch_embed(x.array))
