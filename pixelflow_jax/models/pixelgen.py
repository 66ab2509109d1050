"""PixelGen: a plain transformer on pixels (JiT) that predicts the clean image.

Ma et al. 2026, "PixelGen: Pixel Diffusion Beats Latent Diffusion with Perceptual Loss";
the network is that of Li & He 2025, "Back to Basics: Let Denoising Generative Models
Denoise". Patches may pass a bottleneck, and from one block on tokens of the class
travel ahead of the image's.
"""

import dataclasses
import math
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
from pixelflow_jax.nn.decoder import TokenDecoder
from pixelflow_jax.nn.dropout import layer_drops
from pixelflow_jax.nn.embed import (
    ClassEmbed,
    TimeEmbed,
    identity_rope,
    pack_patches,
    pack_tables,
    rotary_table,
    sincos_table,
)
from pixelflow_jax.nn.layers import XAVIER, RMSNorm, linear, xavier
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig, layer_modulations

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

zeros = nnx.initializers.zeros


@dataclasses.dataclass(kw_only=True)
class PixelGen(DenoiserConfig):
    """Config of the class-conditional denoiser; the defaults are XL/16 (676M).

    `depth` transformer blocks of `width` and `heads` with an MLP of 2/3 `mlp_ratio`
    times the width; the image tokens after the first `feature_layer` of them are handed out.
    Patches are embedded through `bottleneck` channels (0: directly). Before block
    `context_start`, `context_length` tokens of the class are put ahead of the image's
    (0: none). `dropout` (attention output, MLP hidden) and `attention_dropout`
    (attention probabilities) are rates of the blocks in the middle half of the depth.

    `image_size` is the size trained on, whose positions are a stored table; any other
    size that `patch` divides works too, with a computed one. Class `num_classes` is the
    null class.
    """

    paper: ClassVar[Paper] = PAPER
    num_classes: int = 1000
    channels: int = 3
    patch: int = 16
    image_size: int = 256
    width: int = 1152
    heads: int = 16
    depth: int = 28
    mlp_ratio: float = 4.0
    bottleneck: int = 0
    context_length: int = 32
    context_start: int = 8
    feature_layer: int = 8
    dropout: float = 0.1
    attention_dropout: float = 0.0
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> Labels:
        """Classes."""
        return Labels(self.num_classes)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLP: two thirds of `mlp_ratio` times the width."""
        return int(int(self.width * self.mlp_ratio) * 2 / 3)

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
        found = trunk_problems(self, height, width, also=("num_classes", "image_size"))
        if self.patch > 0 and self.image_size % self.patch:
            found.append(
                f"model.image_size={self.image_size} must be a multiple of "
                f"model.patch={self.patch}"
            )
        if self.mlp_width < 1:
            found.append(f"model.mlp_ratio={self.mlp_ratio} leaves the MLP no width")
        if min(self.bottleneck, self.context_length) < 0:
            found.append("model.bottleneck and context_length must be at least 0")
        if self.context_length and not 0 <= self.context_start < self.depth:
            found.append(
                f"model.context_start={self.context_start} must lie in 0..depth - 1 = "
                f"{self.depth - 1}: the class tokens enter before that block (or set "
                "model.context_length=0)"
            )
        for name in ("dropout", "attention_dropout"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                found.append(f"model.{name}={rate} must lie in [0, 1)")
        return found

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted)."""
        pixels, d = height * width, self.width
        n = pixels // self.patch**2
        before = self.context_start if self.context_length else self.depth
        trunk = before * block_flops(n, d, self.mlp_width)
        trunk += (self.depth - before) * block_flops(
            n + self.context_length, d, self.mlp_width
        )
        inputs = pixels * self.channels
        embed = inputs * (self.bottleneck or d) + n * self.bottleneck * d
        decode = inputs * d + 2 * d * d
        return 2 * (trunk + embed + decode + d * (TimeEmbed.features + d))


class Precomputed(NamedTuple):
    """What the condition makes, each [b_i, d] a group, and what blocks make of it."""

    times: tuple[Array, ...]
    classes: tuple[Array, ...]
    vectors: tuple[Array, ...]
    early: list | None
    middle: list | None
    late: list | None


class Sequence(NamedTuple):
    """Packed tokens [rows, n, width] on their way through the blocks."""

    tokens: Array
    packing: Packing
    rope: tuple[Array, ...]


class PixelGenModel(nnx.Module):
    """The class-conditional denoiser; see `models.base.Denoiser` for its call."""

    def __init__(self, config: PixelGen, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.head_width = d // config.heads
        self.depth, self.dropping = config.depth, config.dropping
        self.dropouts = bool(config.dropout or config.attention_dropout)
        self.dtype = precision.dtype
        inputs, neck = config.channels * config.patch**2, config.bottleneck
        init = {"init": xavier, "bias_init": zeros}
        self.patch_embed = linear(
            inputs, neck or d, precision, rngs, bias=not neck, **init
        )
        self.patch_expand = linear(neck, d, precision, rngs, **init) if neck else None
        side = config.image_size // config.patch
        self.position = nnx.Param(jnp.asarray(sincos_table(side, side, d)))
        self.time_embed = TimeEmbed(d, TIME_PERIOD, precision, rngs, bias_init=zeros)
        self.class_embed = ClassEmbed(config.num_classes, d, rngs)
        small, length = nnx.initializers.normal(0.02), config.context_length
        self.context = nnx.Param(small(rngs.params(), (length, d))) if length else None
        low, self.high = config.cuts
        self.low, self.feature_first = low, config.feature_layer == low
        self.early = _stack(config, low, rngs, precision)
        self.middle = _stack(config, self.high - low, rngs, precision)
        self.late = _stack(config, config.depth - self.high, rngs, precision)
        self.decoder = TokenDecoder(config, rngs, precision, RMSNorm(d))

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: Precomputed | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Class-conditional prediction; `conds` hold labels in [0, num_classes].

        `key` turns dropout on: one key for all images, or one an image [sum(b_i)] in
        the order of the groups. The masks of an image depend on its key alone.
        """
        groups, _, _ = zip(*batch, strict=True)
        times, classes, vectors, *made = pre or self.precompute(batch)
        early, middle, late = made
        dropouts = [None] * self.depth
        if self.dropouts and key is not None:
            batches = tuple(map(len, groups))
            dropouts = layer_drops(key, batches, self.depth, self.dropping)

        def run(
            stack: Stack | None, layers: list | None, first: int, x: Sequence
        ) -> Sequence:
            if stack is None:
                return x
            own = {
                "dropouts": dropouts[first : first + stack.depth],
                "modulation": layers,
            }
            return x._replace(tokens=stack(x.tokens, vectors, *x[1:], **own))

        x = self.embed(groups)
        lengths = x.packing.lengths
        x = run(self.early, early, 0, x)
        if self.feature_first:
            features = _image_tokens(x, lengths)
            x = self.with_context(
                run(self.middle, middle, self.low, x), groups, classes
            )
        else:
            x = run(
                self.middle, middle, self.low, self.with_context(x, groups, classes)
            )
            features = _image_tokens(x, lengths)
        tokens = _image_tokens(run(self.late, late, self.high, x), lengths)
        parts = zip(groups, tokens, times, vectors, strict=True)
        return Output(tuple(self.decoder(*part) for part in parts), features)

    def precompute(self, batch: tuple[Inputs, ...]) -> Precomputed:
        """See `models.interface.Denoiser`."""
        _, timesteps, conds = zip(*batch, strict=True)
        found = self.condition(timesteps, conds)
        stacks = (self.early, self.middle, self.late)
        return Precomputed(*found, *(layer_modulations(s, found[-1]) for s in stacks))

    def condition(
        self, timesteps: tuple[Array, ...], conds: tuple[Condition, ...]
    ) -> tuple[tuple[Array, ...], ...]:
        """Embeddings of time and class, and AdaLN conditions; each [b_i, d] a group."""
        times = tuple(self.time_embed(timestep) for timestep in timesteps)
        classes = tuple(self.class_embed(cond.labels) for cond in conds)
        vectors = tuple(
            jax.nn.silu(one + other).astype(self.dtype)
            for one, other in zip(times, classes, strict=True)
        )
        return times, classes, vectors

    def embed(self, groups: tuple[Array, ...]) -> Sequence:
        """The embedded patches with their positions."""
        packing, tokens = pack_patches(groups, self.patch, self.dtype)
        tokens = self.patch_embed(tokens)
        if self.patch_expand is not None:
            tokens = self.patch_expand(tokens)
        stored = self.position[...]
        places = [(places_of(stored, *size),) for size in self._sizes(groups)]
        tokens = tokens + pack_tables(packing, places)[0]
        return Sequence(
            tokens.astype(self.dtype), packing, self._rope(groups, packing, 0)
        )

    def with_context(
        self, x: Sequence, groups: tuple[Array, ...], classes: tuple[Array, ...]
    ) -> Sequence:
        """The same with tokens of the class, which know no time, ahead of each image's.

        They do not turn in the rotary embedding: each has a learnt place instead.
        """
        if self.context is None:
            return x
        length = self.context.shape[0]
        longer = []
        for tokens, label in zip(x.packing.split(x.tokens), classes, strict=True):
            ahead = label[:, None] + self.context[...]
            longer.append(jnp.concatenate([ahead.astype(self.dtype), tokens], 1))
        packing = Packing.of(longer)
        rope = self._rope(groups, packing, length)
        return Sequence(packing.join(longer), packing, rope)

    def _sizes(self, groups: tuple[Array, ...]) -> list[tuple[int, int]]:
        return [(g.shape[1] // self.patch, g.shape[2] // self.patch) for g in groups]

    def _rope(
        self, groups: tuple[Array, ...], packing: Packing, context: int
    ) -> tuple[Array, ...]:
        tables = (
            rotary_table(*size, self.head_width, None, halves=True, row_first=True)
            for size in self._sizes(groups)
        )
        return pack_tables(packing, [identity_rope(table, context) for table in tables])


def places_of(stored: Array, rows: int, columns: int) -> Array:
    """Positions [rows * columns, d]: for the square trained on, the `stored` ones.

    These are never trained; those of another grid are computed.
    """
    side = math.isqrt(len(stored))
    if (rows, columns) == (side, side):
        return jax.lax.stop_gradient(stored)
    return jnp.asarray(sincos_table(rows, columns, stored.shape[-1]))


def _image_tokens(x: Sequence, lengths: tuple[int, ...]) -> tuple[Array, ...]:
    """The last tokens of every sequence: the image's, [b_i, lengths[i], d] a group."""
    parts = zip(x.packing.split(x.tokens), lengths, strict=True)
    return tuple(part[:, -length:] for part, length in parts)


def _stack(
    config: PixelGen, depth: int, rngs: nnx.Rngs, precision: Precision
) -> Stack | None:
    sizes = BlockConfig(
        width=config.width,
        heads=config.heads,
        hidden=config.mlp_width,
        bias=True,
        initial=XAVIER,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )

    def block(rngs: nnx.Rngs) -> Block:
        return Block(sizes, precision, rngs)

    return Stack(block, depth, rngs, config.stack) if depth else None
