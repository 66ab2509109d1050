"""PixelDiT2: a transformer that looks at its noisy image through a frozen encoder.

Yu et al. 2026, "PixelDiT2: Representation-Grounded Pixel Diffusion Transformers". What
the encoder makes of a patch modulates its token, beside time and class. Class and
grounding can each be left out.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    FrozenNetwork,
    Inputs,
    Labels,
    Output,
    Paper,
)
from pixelflow_jax.nn.attention import SelfAttention
from pixelflow_jax.nn.block import Block, BlockConfig, block_flops
from pixelflow_jax.nn.embed import (
    ClassEmbed,
    TimeEmbed,
    identity_rope,
    rotary_table,
)
from pixelflow_jax.nn.layers import (
    RMSNorm,
    bias_of,
    gated,
    linear,
    modulate,
    zeros,
)
from pixelflow_jax.nn.mlp import MLP, swiglu_width
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.patch import unpatchify
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov3 import VARIANTS, DinoV3
from pixelflow_jax.values import Depth, OptionalDepth, OptionalWidth, Pixels, Width

TIME_PERIOD = 10.0  # as PixNerd's, and every token grid spans 0..16
ROPE_EXTENT = 16.0
GROUNDING = "grounding"  # the name of the frozen encoder
LAST = -1  # the encoder's block whose tokens are looked at

PAPER = Paper(
    title="PixelDiT2: Representation-Grounded Pixel Diffusion Transformers",
    url="https://arxiv.org/abs/2609.24919",
    bibtex="""@inproceedings{yu2026pixeldit2,
  title = {PixelDiT2: Representation-Grounded Pixel Diffusion Transformers},
  author = {Yu, Yongsheng and Xiong, Wei and Sheng, Yichen and Liu, Shiqiu and
            Luo, Jiebo},
  booktitle = {NeurIPS},
  year = {2026}
}""",
)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The config's encoder as a frozen network."""

    vit: DinoV2 | DinoV3

    def load(self) -> dict:
        """Its parameters (numpy); WeightsError where its file cannot be read."""
        return self.vit.load("model.encoder.weights")

    def shapes(self) -> dict:
        """The same as shapes."""
        return self.vit.shapes()


@dataclasses.dataclass(kw_only=True)
class PixelDiT2(DenoiserConfig):
    """Config of the class-conditional denoiser; the defaults are H/16.

    `depth` transformer blocks of `width` and `heads`; the image's tokens behind the
    first `feature_layer` are handed out. `context_length` tokens of the class enter
    before block `context_start`. `encoder` is the vision transformer that sees the
    noisy image, a token a patch of the model's (its `base_patch` means nothing here);
    `ground_depth` blocks of `ground_heads` (0: `heads`) adapt its tokens. Its file is
    the user's to get.
    `mlp_multiple`: the MLP's width is rounded up to multiples of it (0: not);
    `single_silu` leaves out the first of the two SiLU before modulation.
    """

    paper: ClassVar[Paper] = PAPER
    num_classes: Width = 1000
    channels: Width = 3
    patch: Pixels = 16
    width: Width = 1280
    heads: Width = 16
    depth: Depth = 32
    feature_layer: OptionalDepth = 8
    context_length: OptionalWidth = 32
    context_start: OptionalDepth = 8
    mlp_multiple: OptionalWidth = 0
    single_silu: bool = False
    encoder: DinoV2 | DinoV3 = dataclasses.field(
        default_factory=lambda: DinoV3(geometry=dataclasses.replace(VARIANTS["vits16"]))
    )
    ground_depth: OptionalDepth = 1
    ground_heads: OptionalWidth = 0
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> Labels:
        """Classes."""
        return Labels(self.num_classes)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLP: two thirds of four times the width."""
        hidden = swiglu_width(self.width)
        return hidden + (-hidden % self.mlp_multiple if self.mlp_multiple else 0)

    @property
    def cuts(self) -> tuple[int, int]:
        """Where the early stack ends and where the late one begins."""
        start = self.context_start if self.context_length else self.feature_layer
        return min(self.feature_layer, start), max(self.feature_layer, start)

    @property
    def vit(self) -> DinoV2 | DinoV3:
        """The encoder, for patches like the model's."""
        return dataclasses.replace(self.encoder, base_patch=self.patch)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixelDiT2Model":
        """The module."""
        return PixelDiT2Model(self, rngs, precision)

    def frozen_networks(self) -> dict[str, FrozenNetwork]:
        """The encoder."""
        return {GROUNDING: Encoder(self.vit)}

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        problems = trunk.problems(self, height, width, also=("num_classes",))
        seen = [] if problems else self.vit.problems(height, width)
        problems += [f"model.encoder: {one}" for one in seen]
        if self.channels != 3:
            problems.append("model.channels must be 3: the encoder looks at RGB images")
        if self.context_length and not self.context_start < self.depth:
            problems.append(
                f"model.context_start={self.context_start} must lie below depth="
                f"{self.depth}: the class tokens enter before that block"
            )
        if self.ground_heads and self.width % (4 * self.ground_heads):
            problems.append(
                f"model.ground_heads={self.ground_heads} must divide model.width="
                f"{self.width} into heads whose width is a multiple of 4"
            )
        return problems

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image, the encoder's among them."""
        pixels, d = height * width, self.width
        n, vit = pixels // self.patch**2, self.encoder.sizes
        before = self.context_start if self.context_length else self.depth
        blocks = before * block_flops(n, d, self.mlp_width)
        blocks += self.ground_depth * block_flops(n, d, self.mlp_width)
        longer = n + self.context_length
        blocks += (self.depth - before) * block_flops(longer, d, self.mlp_width)
        blocks += (self.depth * 6 + 2) * n * d * d  # modulation is each token's
        seen = n * vit.depth * (4 * vit.width**2 + 2 * vit.width * vit.hidden)
        seen += 2 * vit.depth * n**2 * vit.width + n * d * (vit.width + d)
        ends = trunk.embed_flops(self, pixels) + pixels * self.channels * d
        return 2 * (blocks + seen + ends)


class Known(NamedTuple):
    """What depends on time and class alone, of the images of one resolution."""

    total: Array  # the sum of both embeddings, [b, width]
    classes: Array  # [b, width]
    ground: Array  # what modulates the grounding's blocks, [b, width]


class TokenBlock(nnx.Module):
    """The transformer block with AdaLN, whose modulation is each token's own."""

    def __init__(self, sizes: BlockConfig, precision: Precision, rngs: nnx.Rngs):
        width = sizes.width
        self.norm1 = RMSNorm(width)
        self.attention = SelfAttention(sizes, precision, rngs)
        self.norm2 = RMSNorm(width)
        self.mlp = MLP("swiglu", width, sizes.hidden, precision, rngs)
        self.modulation = linear(width, 6 * width, precision, rngs)

    def __call__(
        self,
        x: Float[Array, "rows n width"],
        cond: Float[Array, "rows n width"],
        packing: Packing,
        rope: tuple[Array, Array],
    ) -> Float[Array, "rows n width"]:
        """Packed tokens to the same, each under its condition."""
        chunks = jnp.split(self.modulation(jax.nn.silu(cond)), 6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks
        mixed = self.attention(modulate(self.norm1(x), shift1, scale1), packing, rope)
        x = gated(x, gate1, _biased(mixed, self.attention.out))
        out = self.mlp(modulate(self.norm2(x), shift2, scale2), packing)
        return gated(x, gate2, _biased(out, self.mlp.down))


def _biased(branch: Array, layer: nnx.Linear) -> Array:
    bias = bias_of(layer)
    return branch if bias is None else branch + bias.astype(branch.dtype)


class Grounding(nnx.Module):
    """From the encoder's tokens to what is added to every token's condition."""

    def __init__(self, config: PixelDiT2, rngs: nnx.Rngs, precision: Precision):
        d = config.width
        self.vit, self.patch = config.vit, config.patch
        self.dtype = precision.dtype
        heads = config.ground_heads or config.heads
        self.table = functools.partial(
            rotary_table, head_width=d // heads, extent=ROPE_EXTENT
        )
        sizes = BlockConfig(width=d, heads=heads, hidden=config.mlp_width)
        self.proj = linear(config.encoder.width, d, precision, rngs)
        self.time_embed = TimeEmbed(d, TIME_PERIOD, precision, rngs)
        depth = config.ground_depth
        block = lambda rngs: Block(sizes, precision, rngs)
        self.stack = Stack(block, depth, rngs, config.stack) if depth else None
        self.out = linear(d, d, precision, rngs)

    def __call__(self, params: dict, image: Array, time: Array) -> Array:
        """[b, n, width] of noisy images [b, h, w, 3]; none of it teaches the encoder.

        `time` [b, width] modulates the blocks.
        """
        image = jax.lax.stop_gradient(image)
        seen = self.vit.features(params, image, (LAST,))[LAST]
        x = self.proj(jax.lax.stop_gradient(seen).astype(self.dtype))
        if self.stack is not None:
            packing = Packing.of([x])
            grids = trunk.token_grids((image,), self.patch)
            rope = trunk.pack_rope(packing, grids, self.table)
            x = self.stack(x, (time,), packing, rope)
        return self.out(x)


class TokenFinal(nnx.Module):
    """A norm, modulated by each token's condition, and a linear layer to pixels."""

    def __init__(self, config: PixelDiT2, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        layer = functools.partial(
            linear, precision=precision, rngs=rngs, init=zeros, bias_init=zeros
        )
        self.norm = RMSNorm(d)
        self.modulation = layer(d, 2 * d)
        self.linear = layer(d, config.patch**2 * config.channels)

    def __call__(
        self,
        image: Float[Array, "b h w channels"],
        tokens: Float[Array, "b n width"],
        cond: Float[Array, "b n width"],
    ) -> Float[Array, "b h w channels"]:
        """The image, float32, in the shape of `image`."""
        shift, scale = jnp.split(self.modulation(jax.nn.silu(cond)), 2, -1)
        out = self.linear(modulate(self.norm(tokens), shift, scale))
        pixels = out.reshape(*out.shape[:2], self.patch**2, -1).astype(jnp.float32)
        return unpatchify(pixels, self.patch, *image.shape[1:3])


class Conditioned(NamedTuple):
    """Packed tokens on their way, and what modulates each."""

    x: trunk.Tokens
    cond: Array  # [rows, n, width]


class PixelDiT2Model(nnx.Module):
    """The class-conditional denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: PixelDiT2, rngs: nnx.Rngs, precision: Precision):
        d, self.patch, self.dtype = config.width, config.patch, precision.dtype
        self.head_width = d // config.heads
        self.single_silu = config.single_silu
        self.patch_embed = trunk.patch_linear(config, d, rngs, precision)
        self.time_embed = TimeEmbed(d, TIME_PERIOD, precision, rngs)
        self.class_embed = ClassEmbed(config.num_classes, d, rngs)
        small, length = nnx.initializers.normal(0.02), config.context_length
        self.context = nnx.Param(small(rngs.params(), (length, d))) if length else None
        self.ground = Grounding(config, rngs, precision)
        self.features_at = 1 if config.feature_layer == config.cuts[0] else 2
        self.context_at = 3 - self.features_at
        sizes = BlockConfig(width=d, heads=config.heads, hidden=config.mlp_width)
        block = lambda rngs: TokenBlock(sizes, precision, rngs)
        stacks = trunk.make_stacks(config, block, rngs, config.cuts)
        self.early, self.middle, self.late = stacks
        self.decoder = TokenFinal(config, rngs, precision)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: tuple[Known, ...] | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for times in [0, 1] and labels in [0, num_classes].

        `Condition.grounding` says which images it looks at (None: all). Raises
        ValueError without the encoder's parameters.
        """
        if not frozen_params or GROUNDING not in frozen_params:
            raise ValueError(
                "PixelDiT2 looks at its images through a frozen encoder: give "
                f"frozen_params[{GROUNDING!r}]."
            )
        known, images = pre or self.precompute(batch), trunk.images_of(batch)
        conds = self.conditions(batch, known, frozen_params[GROUNDING])
        x = trunk.pack_images(images, self.patch, self.dtype, self._table(0))
        x = x._replace(array=self.patch_embed(x.array))
        lengths, features = x.packing.lengths, ()
        walk = Conditioned(x, x.packing.join(list(conds)))
        for number, stack in enumerate((self.early, self.middle, self.late)):
            if number == self.context_at and self.context is not None:
                walk = self.with_context(walk, images, known)
            if number == self.features_at:
                features = _last(walk.x, lengths)
            if stack is not None:
                array = stack(walk.x.array, walk.cond, walk.x.packing, walk.x.rope)
                walk = walk._replace(x=walk.x._replace(array=array))
        parts = zip(images, _last(walk.x, lengths), conds, strict=True)
        return Output(tuple(self.decoder(*part) for part in parts), features)

    def precompute(self, batch: tuple[Inputs, ...]) -> tuple[Known, ...]:
        """What time and class make."""
        known = []
        for inputs in batch:
            time = self.time_embed(inputs.timestep)
            classes = self.class_embed(trunk.labels_of(inputs.cond))
            ground = self.ground.time_embed(inputs.timestep)
            (active,) = trunk.modulating((ground,), self.dtype)
            known.append(Known(time + classes, classes, active))
        return tuple(known)

    def conditions(
        self, batch: tuple[Inputs, ...], known: tuple[Known, ...], params: dict
    ) -> tuple[Array, ...]:
        """What modulates each token, [b_i, n_i, width]."""
        conds = []
        for inputs, own in zip(batch, known, strict=True):
            seen = self.ground(params, inputs.image, own.ground)
            looks: Bool[Array, " b"] | None = inputs.cond.grounding
            if looks is not None:
                seen = jnp.where(looks[:, None, None], seen, 0)
            total = own.total[:, None] + seen.astype(jnp.float32)
            cond = total if self.single_silu else jax.nn.silu(total)
            conds.append(cond.astype(self.dtype))
        return tuple(conds)

    def with_context(
        self, walk: Conditioned, images: trunk.Images, known: tuple[Known, ...]
    ) -> Conditioned:
        """The same with tokens of the class before each image's.

        They do not turn, and are modulated by the mean of the image's conditions.
        """
        assert self.context is not None
        context, packing = self.context[...], walk.x.packing
        tokens, conds = [], []
        parts = packing.split(walk.x.array), packing.split(walk.cond), known
        for image, cond, own in zip(*parts, strict=True):
            ahead = (own.classes[:, None] + context).astype(self.dtype)
            mean = cond.astype(jnp.float32).mean(1, keepdims=True).astype(cond.dtype)
            tokens.append(jnp.concatenate([ahead, image], 1))
            means = jnp.broadcast_to(mean, ahead.shape)
            conds.append(jnp.concatenate([means, cond], 1))
        longer = Packing.of(tokens)
        grids = trunk.token_grids(images, self.patch)
        rope = trunk.pack_rope(longer, grids, self._table(len(context)))
        x = trunk.Tokens(longer.join(tokens), longer, rope)
        return Conditioned(x, longer.join(conds))

    def _table(self, context: int) -> trunk.Table:
        """The rotary table of a grid behind `context` tokens of the class."""

        def table(rows: int, columns: int) -> tuple[np.ndarray, ...]:
            own = rotary_table(rows, columns, self.head_width, ROPE_EXTENT)
            return identity_rope(own, context)

        return table


def _last(x: trunk.Tokens, lengths: tuple[int, ...]) -> tuple[Array, ...]:
    """The last tokens of every sequence: the image's."""
    parts = zip(x.packing.split(x.array), lengths, strict=True)
    return tuple(part[:, -length:] for part, length in parts)
