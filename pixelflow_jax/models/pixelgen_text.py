"""PixelGen that reads text: a joint transformer that predicts the clean image.

Ma et al. 2026, "PixelGen: Pixel Diffusion Beats Latent Diffusion with Perceptual Loss",
the text-to-image model.
"""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Paper,
    TextSpec,
)
from pixelflow_jax.models.pixelgen import (
    PAPER,
    embed_placed,
    image_size_problems,
    patch_layers,
    stored_places,
)
from pixelflow_jax.models.text_trunk import (
    TextDenoiser,
    TextTrunk,
    text_flops,
    text_problems,
    text_rope,
)
from pixelflow_jax.nn.decoder import TokenDecoder
from pixelflow_jax.nn.layers import XAVIER
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.values import Depth, OptionalDepth, Pixels, Width


@dataclasses.dataclass(kw_only=True)
class PixelGenText(DenoiserConfig):
    """Config of the text-to-image denoiser; the defaults are XXL/16 for 512 pixels.

    `text_depth` blocks on texts and `depth` on images, of `width` and `heads`; the
    image tokens after the first `feature_layer` of them are handed out. Texts have
    exactly `text_length` tokens of `text_width`. Padding is read like text, as in the
    official code; `mask_text` hides what `Condition.mask` excludes. Patches are
    embedded through `bottleneck` channels.

    `image_size` is the size trained on, whose positions are a stored table; any other
    size that `patch` divides works too, with a computed one.
    """

    paper: ClassVar[Paper] = PAPER
    channels: Width = 3
    patch: Pixels = 16
    image_size: Pixels = 512
    width: Width = 1536
    heads: Width = 24
    depth: Depth = 16
    text_depth: OptionalDepth = 4
    text_width: Width = 2048
    text_length: Width = 128
    mask_text: bool = False
    bottleneck: Width = 256
    feature_layer: OptionalDepth = 6
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
        problems = text_problems(self, height, width, also=also)
        return problems + image_size_problems(self.image_size, self.patch)

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        pixels = height * width
        ends = trunk.embed_flops(self, pixels, self.bottleneck)
        ends += pixels * self.channels * self.width
        return 2 * (text_flops(self, pixels // self.patch**2) + ends)


class PixelGenTextModel(TextDenoiser):
    """The text-to-image denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: PixelGenText, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.head_width = d // config.heads
        self.dtype = precision.dtype
        self.patch_embed, self.patch_expand = patch_layers(config, rngs, precision)
        self.position = stored_places(config.image_size, config.patch, d)
        small = nnx.initializers.normal(0.02)
        self.trunk = TextTrunk(config, rngs, precision, XAVIER, small)
        self.decoder = TokenDecoder(config, rngs, precision, modulated=False)

    def embed(self, images: trunk.Images) -> trunk.Tokens:
        """The embedded patches with their positions."""
        table = functools.partial(text_rope, head_width=self.head_width)
        x = trunk.pack_images(images, self.patch, self.dtype, table)
        grids = trunk.token_grids(images, self.patch)
        layers = self.patch_embed, self.patch_expand
        return embed_placed(x, layers, self.position[...], grids)
