"""PixNerd: a diffusion transformer whose last layers are a neural field per patch.

Wang et al. 2025, "PixNerd: Pixel Neural Field Diffusion". With `LinearDecoder` in the
field's place it is the paper's baseline, a plain DiT on pixels.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
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
from pixelflow_jax.nn.embed import ClassEmbed, TimeEmbed, rotary_table
from pixelflow_jax.nn.field import (
    ENCODINGS,
    WEIGHTS,
    Encoding,
    FieldBlock,
    Generated,
    PixelEmbed,
)
from pixelflow_jax.nn.layers import RMSNorm, linear, zeros
from pixelflow_jax.nn.mlp import swiglu_width
from pixelflow_jax.nn.patch import Patch, patchify, unpatchify
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig
from pixelflow_jax.values import Depth, OptionalDepth, Pixels, Width

TIME_PERIOD = 10.0  # frequencies 10^(-j/128): t lies in [0, 1] and is not scaled
ROPE_EXTENT = 16.0  # every token grid spans 0..16, whatever its size

PAPER = Paper(
    title="PixNerd: Pixel Neural Field Diffusion",
    url="https://arxiv.org/abs/2507.23268",
    bibtex="""@article{wang2025pixnerd,
  title = {PixNerd: Pixel Neural Field Diffusion},
  author = {Wang, Shuai and Gao, Ziteng and Zhu, Chenhui and Huang, Weilin and
            Wang, Limin},
  journal = {arXiv:2507.23268},
  year = {2025}
}""",
)


@dataclasses.dataclass(kw_only=True)
class NeuralField:
    """Decoder: an MLP per patch on [noisy pixel, coordinates], weights from the trunk.

    `width` channels (paper: 64; ablated 36, 72), hidden `ratio * width`, `depth` MLPs
    in sequence (L: 2, XL: 4; ablated 1, 2, 4), `encoding` "dct", "sincos", "cosine", or
    "cosine16", which always spans what "cosine" spans in a patch of 16; `normalised`:
    which generated weights get unit columns ("first", "second"), `output_norm`: RMS
    norm before the last linear layer. `stack`: remat
    "names" keeps only the generated weights for the backward pass, for batches that do
    not fit otherwise.
    """

    width: Width = 64
    ratio: Width = 2
    depth: Depth = 4
    encoding: Encoding = "dct"
    normalised: tuple[Generated, ...] = WEIGHTS
    output_norm: bool = True
    stack: StackConfig = dataclasses.field(
        default_factory=lambda: StackConfig(remat="none", scan=False)
    )

    def build(
        self, model: Patches, rngs: nnx.Rngs, precision: Precision
    ) -> "FieldDecoder":
        """The decoder module for `model`."""
        return FieldDecoder(self, model, rngs, precision)

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        problems = []
        if self.encoding not in ENCODINGS:
            problems.append(
                f"decoder.encoding must be one of {sorted(ENCODINGS)}, not "
                f"{self.encoding!r}"
            )
        if not set(self.normalised) <= set(WEIGHTS):
            problems.append(
                f"decoder.normalised may hold {WEIGHTS}, not {tuple(self.normalised)}"
            )
        if min(self.width, self.ratio, self.depth) < 1:
            problems.append("decoder.width, ratio and depth must be at least 1")
        return problems

    def flops(self, model: Patches, pixels: int, tokens: int) -> float:
        """Forward operations for one image of that many pixels and tokens."""
        hidden = self.ratio * self.width
        generate = tokens * model.width * 2 * self.width * hidden
        run = pixels * 2 * self.width * hidden
        ends = pixels * self.width * 2 * model.channels
        return 2 * (self.depth * (generate + run) + ends)


@dataclasses.dataclass(kw_only=True)
class LinearDecoder:
    """Decoder of the baseline: LayerNorm, AdaLN and one linear layer on each token."""

    def build(
        self, model: Patches, rngs: nnx.Rngs, precision: Precision
    ) -> TokenDecoder:
        """The decoder module for `model`."""
        return TokenDecoder(model, rngs, precision)

    def problems(self) -> list[str]:
        """Nothing can be wrong."""
        return []

    def flops(self, model: Patches, pixels: int, tokens: int) -> float:
        """Forward operations for one image of that many pixels and tokens."""
        return 2 * trunk.decode_flops(model.width, model.channels, pixels)


@dataclasses.dataclass(kw_only=True)
class PixNerd(DenoiserConfig):
    """Config of the class-conditional denoiser; the defaults are XL/16 (700M).

    `depth` transformer blocks of `width` and `heads`; the tokens after the first
    `feature_layer` of them are handed out. Class `num_classes` is the null class. Any
    image size that `patch` divides works with the same parameters.
    """

    paper: ClassVar[Paper] = PAPER
    num_classes: Width = 1000
    channels: Width = 3
    patch: Pixels = 16
    width: Width = 1152
    heads: Width = 16
    depth: Depth = 26
    feature_layer: OptionalDepth = 8
    decoder: NeuralField | LinearDecoder = dataclasses.field(
        default_factory=NeuralField
    )
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> Labels:
        """Classes."""
        return Labels(self.num_classes)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLP."""
        return swiglu_width(self.width)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixNerdModel":
        """The module, with the official initialisation."""
        return PixNerdModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        return self.decoder.problems() + trunk.problems(
            self, height, width, also=("num_classes",)
        )

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        pixels, n = height * width, height * width // self.patch**2
        blocks = self.depth * block_flops(n, self.width, self.mlp_width)
        before = 2 * (blocks + trunk.embed_flops(self, pixels))
        return before + self.decoder.flops(self, pixels, n)


class FieldDecoder(nnx.Module):
    """Runs the neural field of every patch on its noisy pixels."""

    def __init__(
        self,
        config: NeuralField,
        model: Patches,
        rngs: nnx.Rngs,
        precision: Precision,
    ):
        self.patch, d = model.patch, config.width
        self.dtype = precision.dtype
        self.embed = PixelEmbed(model.channels, d, config.encoding, precision, rngs)
        self.field = Stack(
            lambda rngs: FieldBlock(
                model.width,
                d,
                config.ratio * d,
                config.normalised,
                precision,
                rngs,
            ),
            config.depth,
            rngs,
            config.stack,
        )
        self.norm = RMSNorm(d) if config.output_norm else None
        self.linear = linear(
            d, model.channels, precision, rngs, init=zeros, bias_init=zeros
        )

    def __call__(
        self,
        image: Array,
        tokens: Array,
        time: Array,
        cond: Array,
        patch: Patch | None = None,
    ) -> Array:
        """Image from a noisy one [b, h, w, c], tokens [b, n, d] and time [b, d].

        Each token stands for a `patch` of the image; None: the model's own.
        """
        return self.decode(image, jax.nn.silu(time[:, None] + tokens), patch)

    def decode(
        self, image: Array, condition: Array, patch: Patch | None = None
    ) -> Array:
        """The image for given field conditions [b, n, d]; float32."""
        patch = patch or self.patch
        pixels = patchify(image.astype(self.dtype), patch)
        z = self.field(self.embed(pixels, patch), condition)
        if self.norm is not None:
            z = self.norm(z)
        out = self.linear(z).astype(jnp.float32)
        return unpatchify(out, patch, *image.shape[1:3])


class Decoder(Protocol):
    """What makes the decoder of a transformer like this one."""

    def build(
        self, model: Patches, rngs: nnx.Rngs, precision: Precision
    ) -> Callable[[Array, Array, Array, Array], Array]:
        """A module, called with image, tokens, time and condition."""
        ...


class Trunk(trunk.Config, Protocol):
    """The fields of whatever config builds a `PixNerdModel`."""

    num_classes: int

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLP."""
        ...

    @property
    def decoder(self) -> Decoder:
        """What follows the transformer."""
        ...


class PixNerdModel(nnx.Module):
    """The class-conditional denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: Trunk, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.head_width = d // config.heads
        self.dtype = precision.dtype
        self.patch_embed = trunk.patch_linear(config, d, rngs, precision)
        self.time_embed = TimeEmbed(d, TIME_PERIOD, precision, rngs)
        self.class_embed = ClassEmbed(config.num_classes, d, rngs)
        sizes = BlockConfig(width=d, heads=config.heads, hidden=config.mlp_width)

        def block(rngs: nnx.Rngs) -> Block:
            return Block(sizes, precision, rngs)

        self.early, self.late = trunk.make_stacks(config, block, rngs)
        self.decoder = config.decoder.build(config, rngs, precision)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: trunk.Precomputed | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for times in [0, 1] and labels in [0, num_classes]."""
        pre, images = pre or self.precompute(batch), trunk.images_of(batch)
        stacks = self.early, self.late
        tokens, features = trunk.run_stacks(stacks, self.embed(images), pre)
        return Output(trunk.decode(self.decoder, images, tokens, pre), features)

    def precompute(self, batch: tuple[Inputs, ...]) -> trunk.Precomputed:
        """What time and class make."""
        embeds, stacks = (self.time_embed, self.class_embed), (self.early, self.late)
        return trunk.precompute_classes(batch, *embeds, stacks, self.dtype)

    def embed(self, images: trunk.Images) -> trunk.Tokens:
        """The embedded patches."""
        table = functools.partial(
            rotary_table, head_width=self.head_width, extent=ROPE_EXTENT
        )
        x = trunk.pack_images(images, self.patch, self.dtype, table)
        return x._replace(array=self.patch_embed(x.array))
