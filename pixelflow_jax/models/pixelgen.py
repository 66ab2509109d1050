"""PixelGen: a plain transformer on pixels (JiT) that predicts the clean image.

Ma et al. 2026, "PixelGen: Pixel Diffusion Beats Latent Diffusion with Perceptual Loss";
the network is that of Li & He 2025, "Back to Basics: Let Denoising Generative Models
Denoise". Patches may pass a bottleneck, and from one block on tokens of the class
travel ahead of the image's.
"""

import dataclasses
import math
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Inputs,
    Labels,
    Output,
    Paper,
)
from pixelflow_jax.nn.block import Block, BlockConfig, block_flops
from pixelflow_jax.nn.decoder import Patches, TokenDecoder
from pixelflow_jax.nn.dropout import layer_dropout_keys
from pixelflow_jax.nn.embed import (
    ClassEmbed,
    TimeEmbed,
    identity_rope,
    rotary_table,
    sincos_table,
)
from pixelflow_jax.nn.layers import XAVIER, RMSNorm, linear, xavier, zeros
from pixelflow_jax.nn.mlp import swiglu_width
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.values import (
    Depth,
    OptionalDepth,
    OptionalWidth,
    Pixels,
    Positive,
    Rate,
    Width,
)

TIME_PERIOD = 10_000.0  # of the features of t in [0, 1], which is not scaled

PAPER = Paper(
    title="PixelGen: Pixel Diffusion Beats Latent Diffusion with Perceptual Loss",
    url="https://arxiv.org/abs/2602.02493",
    bibtex="""@article{ma2026pixelgen,
  title = {PixelGen: Pixel Diffusion Beats Latent Diffusion with Perceptual Loss},
  author = {Ma, Zehong and Xu, Ruihan and Zhang, Shiliang},
  journal = {arXiv:2602.02493},
  year = {2026}
}

@article{li2025jit,
  title = {Back to Basics: Let Denoising Generative Models Denoise},
  author = {Li, Tianhong and He, Kaiming},
  journal = {arXiv:2511.13720},
  year = {2025}
}""",
)


class Bottleneck(Patches, Protocol):
    """Patches that pass a bottleneck of channels; 0: they do not."""

    bottleneck: int


@dataclasses.dataclass(kw_only=True)
class PixelGen(DenoiserConfig):
    """Config of the class-conditional denoiser; the defaults are XL/16 (676M).

    `depth` transformer blocks of `width` and `heads` with an MLP of 2/3 `mlp_ratio`
    times the width; the image tokens after the first `feature_layer` of them are handed
    out. Patches are embedded through `bottleneck` channels (0: directly).
    `context_length` tokens of the class are put ahead of the image's before block
    `context_start`; with 0 there are none, no table of them, and `context_start` means
    nothing. `dropout` (attention output, MLP hidden) and `attention_dropout`
    (attention probabilities) are rates of the blocks in the middle half of the depth.

    `image_size` is the size trained on, whose positions are a stored table; any other
    size that `patch` divides works too, with a computed one. Class `num_classes` is the
    null class.
    """

    paper: ClassVar[Paper] = PAPER
    num_classes: Width = 1000
    channels: Width = 3
    patch: Pixels = 16
    image_size: Pixels = 256
    width: Width = 1152
    heads: Width = 16
    depth: Depth = 28
    mlp_ratio: Positive = 4.0
    bottleneck: OptionalWidth = 0
    context_length: OptionalWidth = 32
    context_start: OptionalDepth = 8
    feature_layer: OptionalDepth = 8
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.0
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> Labels:
        """Classes."""
        return Labels(self.num_classes)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLP: two thirds of `mlp_ratio` times the width."""
        return swiglu_width(self.width, self.mlp_ratio)

    @property
    def cuts(self) -> tuple[int, int]:
        """Where the early stack ends and where the late one begins."""
        start = self.context_start if self.context_length else self.feature_layer
        return min(self.feature_layer, start), max(self.feature_layer, start)

    @property
    def dropping(self) -> range:
        """The blocks with dropout in training."""
        quarter = self.depth // 4
        return range(quarter, 3 * quarter)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixelGenModel":
        """The module, with the official initialisation."""
        return PixelGenModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        also = ("num_classes", "image_size")
        problems = trunk.problems(self, height, width, also=also)
        problems += image_size_problems(self.image_size, self.patch)
        if self.mlp_width < 1:
            problems.append(f"model.mlp_ratio={self.mlp_ratio} leaves the MLP no width")
        if min(self.bottleneck, self.context_length) < 0:
            problems.append("model.bottleneck and context_length must be at least 0")
        if self.context_length and not 0 <= self.context_start < self.depth:
            problems.append(
                f"model.context_start={self.context_start} must lie in 0..depth - 1 = "
                f"{self.depth - 1}: the class tokens enter before that block (or set "
                "model.context_length=0)"
            )
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                problems.append(f"model.{name}={rate} must lie in [0, 1)")
        return problems

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        pixels, d = height * width, self.width
        n = pixels // self.patch**2
        before = self.context_start if self.context_length else self.depth
        blocks = before * block_flops(n, d, self.mlp_width)
        blocks += (self.depth - before) * block_flops(
            n + self.context_length, d, self.mlp_width
        )
        ends = trunk.embed_flops(self, pixels, self.bottleneck)
        return 2 * (blocks + ends + trunk.decode_flops(d, self.channels, pixels))


class PixelGenModel(nnx.Module):
    """The class-conditional denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: PixelGen, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.head_width = d // config.heads
        self.depth, self.dropping = config.depth, config.dropping
        self.drops = bool(config.dropout or config.attention_dropout)
        self.dtype = precision.dtype
        self.patch_embed, self.patch_expand = patch_layers(config, rngs, precision)
        self.position = stored_places(config.image_size, config.patch, d)
        self.time_embed = TimeEmbed(d, TIME_PERIOD, precision, rngs, bias_init=zeros)
        self.class_embed = ClassEmbed(config.num_classes, d, rngs)
        small, length = nnx.initializers.normal(0.02), config.context_length
        self.context = nnx.Param(small(rngs.params(), (length, d))) if length else None
        cuts = config.cuts
        # The stacks before which features leave and class tokens enter.
        self.features_at = 1 if config.feature_layer == cuts[0] else 2
        self.context_at = 3 - self.features_at
        sizes = BlockConfig(
            width=d,
            heads=config.heads,
            hidden=config.mlp_width,
            bias=True,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            initial=XAVIER,
        )

        def block(rngs: nnx.Rngs) -> Block:
            return Block(sizes, precision, rngs)

        stacks = trunk.make_stacks(config, block, rngs, cuts)
        self.early, self.middle, self.late = stacks
        self.decoder = TokenDecoder(config, rngs, precision, RMSNorm(d))

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: trunk.Precomputed | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for times in [0, 1] and labels in [0, num_classes].

        `key` turns dropout on: one key for all images, or one an image in the order of
        the batch. The masks of an image depend on its key alone.
        """
        pre, images = pre or self.precompute(batch), trunk.images_of(batch)
        dropouts = None
        if self.drops and key is not None:
            counts = tuple(map(len, images))
            dropouts = layer_dropout_keys(key, counts, self.depth, self.dropping)
        tokens, features = trunk.run_stacks(
            (self.early, self.middle, self.late),
            self.embed(images),
            pre,
            features_at=self.features_at,
            before={self.context_at: lambda x: self.with_context(x, images, pre.extra)},
            dropouts=dropouts,
        )
        return Output(trunk.decode(self.decoder, images, tokens, pre), features)

    def precompute(self, batch: tuple[Inputs, ...]) -> trunk.Precomputed:
        """What time and class make."""
        stacks = self.early, self.middle, self.late
        embeds = self.time_embed, self.class_embed
        return trunk.precompute_classes(batch, *embeds, stacks, self.dtype)

    def embed(self, images: trunk.Images) -> trunk.Tokens:
        """The embedded patches with their positions."""
        x = trunk.pack_images(images, self.patch, self.dtype, self._table(0))
        grids = trunk.token_grids(images, self.patch)
        layers = self.patch_embed, self.patch_expand
        return embed_placed(x, layers, self.position[...], grids)

    def with_context(
        self, x: trunk.Tokens, images: trunk.Images, classes: tuple[Array, ...]
    ) -> trunk.Tokens:
        """The same with tokens of the class, which know no time, before each image's.

        They do not turn in the rotary embedding: each has a learnt place instead.
        """
        if self.context is None:
            return x
        context = self.context[...]
        longer = [
            jnp.concatenate([(label[:, None] + context).astype(self.dtype), tokens], 1)
            for tokens, label in zip(x.packing.split(x.array), classes, strict=True)
        ]
        packing = Packing.of(longer)
        grids = trunk.token_grids(images, self.patch)
        rope = trunk.pack_rope(packing, grids, self._table(len(context)))
        return trunk.Tokens(packing.join(longer), packing, rope)

    def _table(self, context: int) -> trunk.Table:
        """The rotary table of a grid behind `context` tokens of the class."""

        def table(rows: int, columns: int) -> tuple[np.ndarray, ...]:
            own = rotary_table(
                rows, columns, self.head_width, None, halves=True, row_first=True
            )
            return identity_rope(own, context)

        return table


def patch_layers(
    config: Bottleneck, rngs: nnx.Rngs, precision: Precision
) -> tuple[nnx.Linear, nnx.Linear | None]:
    """The linear layer on a patch's pixels and, behind a bottleneck, the next one."""
    d, neck = config.width, config.bottleneck
    if not neck:
        return trunk.patch_linear(config, d, rngs, precision), None
    first = trunk.patch_linear(config, neck, rngs, precision, bias=False)
    init = {"init": xavier, "bias_init": zeros}
    return first, linear(neck, d, precision, rngs, **init)


def embed_placed(
    x: trunk.Tokens,
    layers: tuple[nnx.Linear, nnx.Linear | None],
    stored: Array,
    grids: list[tuple[int, int]],
) -> trunk.Tokens:
    """Patches embedded by `patch_layers`, with positions (`places_of`) added."""
    first, second = layers
    array = first(x.array)
    if second is not None:
        array = second(array)
    places = x.packing.tile([places_of(stored, *grid) for grid in grids])
    return x._replace(array=(array + places).astype(array.dtype))


def stored_places(image_size: int, patch: int, width: int) -> nnx.Param:
    """The positions [n, width] of the square that a model is trained on."""
    side = image_size // patch
    return nnx.Param(jnp.asarray(sincos_table(side, side, width)))


def places_of(stored: Array, rows: int, columns: int) -> Array:
    """Positions [rows * columns, d]: for the square trained on, the `stored` ones.

    These are never trained; those of another grid are computed.
    """
    side = math.isqrt(len(stored))
    if (rows, columns) == (side, side):
        return jax.lax.stop_gradient(stored)
    return jnp.asarray(sincos_table(rows, columns, stored.shape[-1]))


def image_size_problems(image_size: int, patch: int) -> list[str]:
    """What is wrong with the size trained on."""
    if patch < 1 or image_size % patch == 0:
        return []
    return [f"model.image_size={image_size} must be a multiple of model.patch={patch}"]
