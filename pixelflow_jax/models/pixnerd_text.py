"""PixNerd that reads text: a joint transformer with a neural field per patch.

Wang et al. 2025, "PixNerd: Pixel Neural Field Diffusion", the text-to-image model.
"""

import dataclasses
import functools
import math
from typing import ClassVar

from flax import nnx
from jax import Array

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Paper,
    TextSpec,
)
from pixelflow_jax.models.pixnerd import PAPER, NeuralField
from pixelflow_jax.models.text_trunk import (
    TextDenoiser,
    TextTrunk,
    text_flops,
    text_problems,
    text_rope,
)
from pixelflow_jax.nn.layers import TORCH
from pixelflow_jax.nn.patch import Patch, nearest
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.values import Depth, OptionalDepth, Pixels, Width


def text_field() -> NeuralField:
    """The field of the official model, which normalises its first weight alone."""
    first = ("first",)
    return NeuralField(depth=2, encoding="cosine", normalised=first, output_norm=False)


@dataclasses.dataclass(kw_only=True)
class PixNerdText(DenoiserConfig):
    """Config of the text-to-image denoiser; the defaults are XXL/16 (1.2B).

    `text_depth` blocks on texts and `depth` on images, of `width` and `heads`; the
    image tokens after the first `feature_layer` of them are handed out. Texts have
    exactly `text_length` tokens of `text_width`. Padding is read like text, as in the
    official code; `mask_text` hides what `Condition.mask` excludes. Any image size that
    `patch` divides works with the same parameters.

    `canvas`, a height and a width (512, 512), makes images of any size the same number
    of tokens: the transformer sees pixels picked from them, as many as the canvas has,
    and the neural field decodes patches that are larger or smaller, not always square,
    by coordinates in between ("heavy decoder"; the paper's training-free generation at
    any resolution). Empty: larger images have more tokens.
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
    canvas: tuple[Pixels, ...] = ()
    feature_layer: OptionalDepth = 6
    decoder: NeuralField = dataclasses.field(default_factory=text_field)
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> TextSpec:
        """Texts of one length."""
        return TextSpec(self.text_width, self.text_length, not self.mask_text)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixNerdTextModel":
        """The module, with the official initialisation."""
        return PixNerdTextModel(self, rngs, precision)

    def field(self) -> NeuralField:
        """The decoder; with a canvas its coordinates do not grow with its patches."""
        grows = self.canvas and self.decoder.encoding == "cosine"
        encoding = "cosine16" if grows else self.decoder.encoding
        return dataclasses.replace(self.decoder, encoding=encoding)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        problems = self.decoder.problems()
        if not self.canvas:
            return problems + text_problems(self, height, width)
        where = f"model.canvas={self.canvas}"
        if len(self.canvas) != 2 or min(self.canvas) < 1:
            return [
                *problems,
                f"{where} must be a height and a width, such as (512, 512), or () for "
                "none",
            ]
        of_canvas = text_problems(self, *self.canvas)
        if of_canvas:
            return problems + [f"{problem} ({where})" for problem in of_canvas]
        rows, columns = (side // self.patch for side in self.canvas)
        if height % rows or width % columns:
            problems.append(
                f"{where} cuts every image into {rows} x {columns} patches: the height "
                f"must be a multiple of {rows} and the width of {columns}, unlike "
                f"{height} x {width}"
            )
        return problems

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        seen = math.prod(self.canvas or (height, width))
        n = seen // self.patch**2
        before = text_flops(self, n) + trunk.embed_flops(self, seen)
        return 2 * before + self.decoder.flops(self, height * width, n)


class PixNerdTextModel(TextDenoiser):
    """The text-to-image denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: PixNerdText, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.head_width = d // config.heads
        self.canvas = tuple(config.canvas)
        self.dtype = precision.dtype
        self.patch_embed = trunk.patch_linear(config, d, rngs, precision)
        places = nnx.initializers.normal(1.0)
        self.trunk = TextTrunk(config, rngs, precision, TORCH, places)
        self.decoder = config.field().build(config, rngs, precision)

    def embed(self, images: trunk.Images) -> trunk.Tokens:
        """The embedded patches of the images as the transformer sees them."""
        seen = tuple(map(self.seen, images))
        table = functools.partial(text_rope, head_width=self.head_width)
        x = trunk.pack_images(seen, self.patch, self.dtype, table)
        return x._replace(array=self.patch_embed(x.array))

    def seen(self, image: Array) -> Array:
        """The image [b, h, w, c] as the transformer sees it."""
        return nearest(image, *self.canvas) if self.canvas else image

    def field_patch(self, image: Array) -> Patch:
        """What of the image [b, h, w, c] a token stands for."""
        if not self.canvas:
            return self.patch
        pairs = zip(image.shape[1:3], self.canvas, strict=True)
        height, width = (self.patch * full // seen for full, seen in pairs)
        return height, width

    def decoded(self, image: Array, tokens: Array, time: Array, cond: Array) -> Array:
        """The decoder's prediction [b, h, w, c], at the patch of the whole image."""
        return self.decoder(image, tokens, time, cond, self.field_patch(image))
