"""PixNerd: a diffusion transformer whose last layers are a neural field per patch.

Wang et al. 2025, "PixNerd: Pixel Neural Field Diffusion". With `LinearDecoder` in the
field's place it is the paper's baseline, a plain DiT on pixels.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pixelflow_jax.models.interface import (
    Condition,
    DenoiserConfig,
    Inputs,
    Labels,
    Output,
    Paper,
)
from pixelflow_jax.models.trunk import trunk_problems
from pixelflow_jax.nn.block import Block, BlockConfig, block_flops
from pixelflow_jax.nn.decoder import Patches, TokenDecoder
from pixelflow_jax.nn.embed import (
    ClassEmbed,
    TimeEmbed,
    pack_patches,
    pack_tables,
    rotary_table,
)
from pixelflow_jax.nn.field import (
    ENCODINGS,
    WEIGHTS,
    FieldBlock,
    PixelEmbed,
)
from pixelflow_jax.nn.layers import RMSNorm, linear, xavier
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.patch import Patch, patchify, unpatchify
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig, layer_modulations

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

zeros = nnx.initializers.zeros


@dataclasses.dataclass(kw_only=True)
class NeuralField:
    """Decoder: an MLP per patch on [noisy pixel, coordinates], weights from the trunk.

    `width` channels (paper: 64; ablated 36, 72), hidden `ratio * width`, `depth` MLPs
    in sequence (L: 2, XL: 4; ablated 1, 2, 4), `encoding` "dct", "sincos", "cosine", or
    "cosine16", which always spans what "cosine" spans in a patch of 16; `normalised`:
    which generated weights get unit columns ("first", "second"), `output_norm`: RMS
    norm before the last linear layer. `stack`:
    remat "names" keeps only the generated weights for the backward pass, for batches
    that do not fit otherwise.
    """

    width: int = 64
    ratio: int = 2
    depth: int = 4
    encoding: str = "dct"
    normalised: tuple[str, ...] = WEIGHTS
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
        found = []
        if self.encoding not in ENCODINGS:
            found.append(
                f"decoder.encoding must be one of {sorted(ENCODINGS)}, not "
                f"{self.encoding!r}"
            )
        if not set(self.normalised) <= set(WEIGHTS):
            found.append(
                f"decoder.normalised may hold {WEIGHTS}, not {tuple(self.normalised)}"
            )
        if min(self.width, self.ratio, self.depth) < 1:
            found.append("decoder.width, ratio and depth must be at least 1")
        return found

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
        return 2 * (model.width * pixels * model.channels + 2 * model.width**2)


@dataclasses.dataclass(kw_only=True)
class PixNerd(DenoiserConfig):
    """Config of the class-conditional denoiser; the defaults are XL/16 (700M).

    `depth` transformer blocks of `width` and `heads`; the first `feature_layer` of them form the
    early stack, whose output tokens are handed out. Class `num_classes` is the null
    class. Any image size that `patch` divides works with the same parameters.
    """

    paper: ClassVar[Paper] = PAPER
    num_classes: int = 1000
    channels: int = 3
    patch: int = 16
    width: int = 1152
    heads: int = 16
    depth: int = 26
    feature_layer: int = 8
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
        """Hidden width of the SwiGLU MLP: two thirds of four times the width."""
        return int(2 * int(4 * self.width) / 3)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixNerdModel":
        """The module, with the official initialisation."""
        return PixNerdModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        return self.decoder.problems() + trunk_problems(
            self, height, width, also=("num_classes",)
        )

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        pixels, n, d = height * width, height * width // self.patch**2, self.width
        trunk = self.depth * block_flops(n, d, self.mlp_width)
        trunk += d * pixels * self.channels
        time = d * (TimeEmbed.features + d)
        return 2 * (trunk + time) + self.decoder.flops(self, pixels, n)


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


class Precomputed(NamedTuple):
    """Time embeddings and AdaLN conditions, each [b_i, d] a group; what blocks make."""

    times: tuple[Array, ...]
    vectors: tuple[Array, ...]
    early: list | None
    late: list | None


class PixNerdModel(nnx.Module):
    """The class-conditional denoiser; see `models.base.Denoiser` for its call."""

    def __init__(self, config: PixNerd, rngs: nnx.Rngs, precision: Precision):
        d = config.width
        self.patch = config.patch
        self.head_width = d // config.heads
        self.dtype = precision.dtype
        self.patch_embed = linear(
            config.channels * config.patch**2,
            d,
            precision,
            rngs,
            init=xavier,
            bias_init=zeros,
        )
        self.time_embed = TimeEmbed(d, TIME_PERIOD, precision, rngs)
        self.class_embed = ClassEmbed(config.num_classes, d, rngs)

        sizes = BlockConfig(width=d, heads=config.heads, hidden=config.mlp_width)

        def stack(depth: int) -> Stack | None:
            def block(rngs: nnx.Rngs) -> Block:
                return Block(sizes, precision, rngs)

            return Stack(block, depth, rngs, config.stack) if depth else None

        self.early = stack(config.feature_layer)
        self.late = stack(config.depth - config.feature_layer)
        self.decoder = config.decoder.build(config, rngs, precision)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: Precomputed | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Class-conditional prediction; `conds` hold labels in [0, num_classes]."""
        groups, _, _ = zip(*batch, strict=True)
        times, vectors, *own = pre or self.precompute(batch)
        packing, tokens, rope = self.embed(groups)
        for stack, layers in zip((self.early, self.late), own, strict=True):
            if stack is self.late:
                features = packing.split(tokens)
            if stack is not None:
                tokens = stack(tokens, vectors, packing, rope, modulation=layers)
        parts = zip(groups, packing.split(tokens), times, vectors, strict=True)
        return Output(tuple(self.decoder(*part) for part in parts), tuple(features))

    def precompute(self, batch: tuple[Inputs, ...]) -> Precomputed:
        """See `models.interface.Denoiser`."""
        _, timesteps, conds = zip(*batch, strict=True)
        times, vectors = self.condition(timesteps, conds)
        stacks = (self.early, self.late)
        return Precomputed(
            times, vectors, *(layer_modulations(s, vectors) for s in stacks)
        )

    def condition(
        self, timesteps: tuple[Array, ...], conds: tuple[Condition, ...]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Time embeddings and AdaLN conditions, each [b_i, d] a group."""
        times = tuple(self.time_embed(timestep) for timestep in timesteps)
        vectors = tuple(
            jax.nn.silu(time + self.class_embed(cond.labels)).astype(self.dtype)
            for time, cond in zip(times, conds, strict=True)
        )
        return times, vectors

    def embed(
        self, groups: tuple[Array, ...]
    ) -> tuple[Packing, Array, tuple[Array, Array]]:
        """The packing, the embedded patches [rows, n, d] and their rotary table."""
        packing, flat = pack_patches(groups, self.patch, self.dtype)
        sizes = [(g.shape[1] // self.patch, g.shape[2] // self.patch) for g in groups]
        tables = [rotary_table(*size, self.head_width, ROPE_EXTENT) for size in sizes]
        return packing, self.patch_embed(flat), pack_tables(packing, tables)
