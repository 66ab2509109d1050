"""PixNerd that reads text: a joint transformer with a neural field per patch.

Wang et al. 2025, "PixNerd: Pixel Neural Field Diffusion", the text-to-image model.
"""

import dataclasses
import math
from typing import ClassVar

from flax import nnx
from jax import Array

from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Inputs,
    Output,
    Paper,
    TextSpec,
)
from pixelflow_jax.models.pixnerd import PAPER, NeuralField
from pixelflow_jax.models.text_trunk import (
    Precomputed,
    TextTrunk,
    text_flops,
    text_problems,
)
from pixelflow_jax.nn.embed import pack_patches
from pixelflow_jax.nn.layers import TORCH, linear, xavier
from pixelflow_jax.nn.patch import Patch, nearest
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig

zeros = nnx.initializers.zeros


def text_field() -> NeuralField:
    """The field of the official model: only its first generated weight is normalised"""
    first = ("first",)
    return NeuralField(depth=2, encoding="cosine", normalised=first, output_norm=False)


@dataclasses.dataclass(kw_only=True)
class PixNerdText(DenoiserConfig):
    """Config of the text-to-image denoiser; the defaults are XXL/16 (1.2B).

    `text_depth` blocks on texts and `depth` on images, of `width` and `heads`; the
    image tokens after the first `feature_layer` of them are handed out. Texts have exactly
    `text_length` tokens of `text_width`. Padding is read like text, as in the official
    code; `mask_text` hides what `Condition.mask` excludes. Any image size that `patch`
    divides works with the same parameters.

    `canvas`, a height and a width (512, 512), makes images of any size the same number
    of tokens: the transformer sees pixels picked from them, as many as the canvas has,
    and the neural field decodes patches that are larger or smaller, not always square,
    by coordinates in between ("heavy decoder"; the paper's training-free generation at
    any resolution). Empty: larger images have more tokens.
    """

    paper: ClassVar[Paper] = PAPER
    channels: int = 3
    patch: int = 16
    width: int = 1536
    heads: int = 24
    depth: int = 16
    text_depth: int = 4
    text_width: int = 2048
    text_length: int = 128
    mask_text: bool = False
    canvas: tuple[int, ...] = ()
    feature_layer: int = 6
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
        found = self.decoder.problems()
        if not self.canvas:
            return found + text_problems(self, height, width)
        if len(self.canvas) != 2 or min(self.canvas) < 1:
            return [
                *found,
                f"model.canvas={self.canvas} must be a height and a width, such as "
                "(512, 512), or () for none",
            ]
        wrong = text_problems(self, *self.canvas)
        if wrong:
            where = f"model.canvas={self.canvas}"
            return found + [f"{problem} ({where})" for problem in wrong]
        rows, columns = (side // self.patch for side in self.canvas)
        if height % rows or width % columns:
            found.append(
                f"model.canvas={self.canvas} cuts every image into {rows} x {columns} "
                f"patches: the height must be a multiple of {rows} and the width of "
                f"{columns}, unlike {height} x {width}"
            )
        return found

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        seen = math.prod(self.canvas or (height, width))
        n = seen // self.patch**2
        trunk = text_flops(self, n) + self.width * seen * self.channels
        return 2 * trunk + self.decoder.flops(self, height * width, n)


class PixNerdTextModel(nnx.Module):
    """The text-to-image denoiser; see `models.base.Denoiser` for its call."""

    def __init__(self, config: PixNerdText, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.canvas = tuple(config.canvas)
        self.dtype = precision.dtype
        inputs = config.channels * config.patch**2
        init = {"init": xavier, "bias_init": zeros}
        self.patch_embed = linear(inputs, d, precision, rngs, **init)
        places = nnx.initializers.normal(1.0)
        self.trunk = TextTrunk(config, rngs, precision, TORCH, places)
        self.decoder = config.field().build(config, rngs, precision)

    def precompute(self, batch: tuple[Inputs, ...]) -> Precomputed:
        """See `models.interface.Denoiser`."""
        _, timesteps, conds = zip(*batch, strict=True)
        return self.trunk.precompute(timesteps, conds)

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
        seen = tuple(map(self.seen, groups))
        packing, patches = pack_patches(seen, self.patch, self.dtype)
        tokens = self.patch_embed(patches)
        ahead = pre or self.precompute(batch)
        out = self.trunk(seen, packing, tokens, ahead)
        parts = zip(groups, out.tokens, out.times, strict=True)
        pred = (
            self.decoder(image, x, time, time, self.field_patch(image))
            for image, x, time in parts
        )
        return Output(tuple(pred), tuple(out.features))

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
