"""PixelDiT2 that reads text: a joint transformer grounded on its noisy image.

No paper has it. Yu et al. 2026 ground a model of classes; their text-to-image model of
2025, PixelDiT, is not grounded and lets images attend to their texts. Here both meet:
images attend to their text as PixNerd's do, which takes the place of the class and of
its tokens, and time and grounding modulate every token.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

from flax import nnx
from jax import Array

from pixelflow_jax.models import grounding, text_trunk, trunk
from pixelflow_jax.models.grounding import Grounding, TokenBlock
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    FrozenNetwork,
    Inputs,
    Output,
    Paper,
    TextSpec,
)
from pixelflow_jax.models.pixeldit2 import PAPER, smallest
from pixelflow_jax.models.text_trunk import RefinedText, TextTrunk
from pixelflow_jax.nn.layers import TORCH
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.values import Depth, OptionalDepth, OptionalWidth, Pixels, Width


@dataclasses.dataclass(kw_only=True)
class PixelDiT2Text(DenoiserConfig):
    """Config of the text-to-image denoiser; the defaults are of PixNerd-XXL's size.

    `text_depth` blocks on texts and `depth` on images, of `width` and `heads`; the
    image tokens after the first `feature_layer` of them are handed out. Texts have
    exactly `text_length` tokens of `text_width`; `mask_text` hides what
    `Condition.mask` excludes, else padding is read like text. `encoder`, which sees the
    noisy image, and the fields of the grounding are those of `pixeldit2.PixelDiT2`.
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
    single_silu: bool = False
    encoder: grounding.Vit = dataclasses.field(default_factory=smallest)
    ground_depth: OptionalDepth = 1
    ground_heads: OptionalWidth = 0
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> TextSpec:
        """Texts of one length."""
        return TextSpec(self.text_width, self.text_length, not self.mask_text)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLPs, that of the text models."""
        return text_trunk.mlp_width(self)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixelDiT2TextModel":
        """The module."""
        return PixelDiT2TextModel(self, rngs, precision)

    def frozen_networks(self) -> dict[str, FrozenNetwork]:
        """The encoder of the image."""
        return grounding.frozen_networks(self)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        problems = text_trunk.text_problems(self, height, width)
        return problems or grounding.problems(self, height, width)

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image, the encoder's among them."""
        pixels, d = height * width, self.width
        n = pixels // self.patch**2
        blocks = text_trunk.text_flops(self, n) + grounding.flops(self, n)
        blocks += (self.depth * 6 + 2) * n * d * d  # modulation is each token's
        ends = trunk.embed_flops(self, pixels) + pixels * self.channels * d
        return 2 * (blocks + ends)


class Known(NamedTuple):
    """What depends on time and text alone."""

    time: tuple[Array, ...]  # embeddings of the timesteps, [b_i, width]
    ground: tuple[Array, ...]  # what modulates the grounding's blocks, [b_i, width]
    text: RefinedText


class PixelDiT2TextModel(nnx.Module):
    """The text-to-image denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: PixelDiT2Text, rngs: nnx.Rngs, precision: Precision):
        d, self.patch, self.dtype = config.width, config.patch, precision.dtype
        self.patch_embed = trunk.patch_linear(config, d, rngs, precision)
        places = nnx.initializers.normal(0.02)
        self.trunk = TextTrunk(config, rngs, precision, TORCH, places, TokenBlock)
        self.ground = Grounding(config, rngs, precision)
        self.decoder = grounding.TokenFinal(config, rngs, precision)
        head_width = d // config.heads
        self.table = functools.partial(grounding.block_table, head_width=head_width)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: Known | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for times in [0, 1] and texts [b_i, text_length, text_width].

        `Condition.grounding` says which images it looks at (None: all). Raises
        ValueError without the encoder's parameters, and where a condition holds no
        text, or one of another shape.
        """
        params = grounding.encoder_params(frozen_params)
        known, images = pre or self.precompute(batch), trunk.images_of(batch)
        conds = tuple(
            self.ground.condition(params, *own)
            for own in zip(batch, known.time, known.ground, strict=True)
        )
        x = trunk.pack_images(images, self.patch, self.dtype, self.table)
        text, packing = trunk.pack_text(*known.text), x.packing
        cond, array = packing.join(conds), self.patch_embed(x.array)
        features = ()
        for number, stack in enumerate((self.trunk.early, self.trunk.late)):
            if number == 1:
                features = tuple(packing.split(array))
            if stack is not None:
                array = stack(array, cond, packing, x.rope, None, text)
        parts = zip(images, packing.split(array), conds, strict=True)
        return Output(tuple(self.decoder(*part) for part in parts), features)

    def precompute(self, batch: tuple[Inputs, ...]) -> Known:
        """What time and text make."""
        time = tuple(self.trunk.time_embed(inputs.timestep) for inputs in batch)
        cond = trunk.modulating(time, self.dtype)
        text = self.trunk.read(tuple(inputs.cond for inputs in batch), cond)
        ground = tuple(self.ground.modulate_time(inputs.timestep) for inputs in batch)
        states = RefinedText(text.packing.split(text.tokens), text.masks)
        return Known(time, ground, states)
