"""PixelDiT2: a transformer that looks at its noisy image through a frozen encoder.

Yu et al. 2026, "PixelDiT2: Representation-Grounded Pixel Diffusion Transformers". What
the encoder makes of a patch modulates its token, beside time and class. Class and
grounding can each be left out.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pixelflow_jax.models import grounding, trunk
from pixelflow_jax.models.grounding import TIME_PERIOD, Grounding, TokenBlock
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    FrozenNetwork,
    Inputs,
    Labels,
    Output,
    Paper,
)
from pixelflow_jax.nn.block import BlockConfig, block_flops
from pixelflow_jax.nn.dropout import DropoutKeys, layer_dropout_keys
from pixelflow_jax.nn.embed import ClassEmbed, TimeEmbed, identity_rope
from pixelflow_jax.nn.mlp import swiglu_width
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.teachers.dinov3 import VARIANTS, DinoV3
from pixelflow_jax.values import (
    Depth,
    OptionalDepth,
    OptionalWidth,
    Pixels,
    Rate,
    Width,
)

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


def smallest() -> DinoV3:
    """The encoder of the paper at 256 pixels, DINOv3-S."""
    return DinoV3(geometry=dataclasses.replace(VARIANTS["vits16"]))


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
    `single_silu` leaves out the first of the two SiLU before modulation. `dropout`
    (attention output, MLP hidden) is the rate of the blocks in the middle half.
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
    dropout: Rate = 0.0
    encoder: grounding.Vit = dataclasses.field(default_factory=smallest)
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
    def dropping(self) -> range:
        """The blocks with dropout in training."""
        quarter = self.depth // 4
        return range(quarter, 3 * quarter)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixelDiT2Model":
        """The module."""
        return PixelDiT2Model(self, rngs, precision)

    def frozen_networks(self) -> dict[str, FrozenNetwork]:
        """The encoder."""
        return grounding.frozen_networks(self)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        problems = trunk.problems(self, height, width, also=("num_classes",))
        problems = problems or grounding.problems(self, height, width)
        if self.context_length and not self.context_start < self.depth:
            problems.append(
                f"model.context_start={self.context_start} must lie below depth="
                f"{self.depth}: the class tokens enter before that block"
            )
        return problems

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image, the encoder's among them."""
        pixels, d = height * width, self.width
        n, longer = pixels // self.patch**2, self.context_length
        before = self.context_start if longer else self.depth
        blocks = before * block_flops(n, d, self.mlp_width)
        blocks += (self.depth - before) * block_flops(n + longer, d, self.mlp_width)
        blocks += (self.depth * 6 + 2) * n * d * d  # modulation is each token's
        ends = trunk.embed_flops(self, pixels) + pixels * self.channels * d
        return 2 * (blocks + grounding.flops(self, n) + ends)


class Known(NamedTuple):
    """What depends on time and class alone, of the images of one resolution."""

    total: Array  # the sum of both embeddings, [b, width]
    classes: Array  # [b, width]
    ground: Array  # what modulates the grounding's blocks, [b, width]


class Conditioned(NamedTuple):
    """Packed tokens on their way, and what modulates each."""

    x: trunk.Tokens
    cond: Array  # [rows, n, width]


class PixelDiT2Model(nnx.Module):
    """The class-conditional denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: PixelDiT2, rngs: nnx.Rngs, precision: Precision):
        d, self.patch, self.dtype = config.width, config.patch, precision.dtype
        self.head_width = d // config.heads
        self.patch_embed = trunk.patch_linear(config, d, rngs, precision)
        self.time_embed = TimeEmbed(d, TIME_PERIOD, precision, rngs)
        self.class_embed = ClassEmbed(config.num_classes, d, rngs)
        small, length = nnx.initializers.normal(0.02), config.context_length
        self.context = nnx.Param(small(rngs.params(), (length, d))) if length else None
        self.ground = Grounding(config, rngs, precision)
        self.features_at = 1 if config.feature_layer == config.cuts[0] else 2
        self.context_at = 3 - self.features_at
        self.depth, self.dropping = config.depth, config.dropping
        self.drops = bool(config.dropout)
        sizes = BlockConfig(
            width=d,
            heads=config.heads,
            hidden=config.mlp_width,
            dropout=config.dropout,
        )
        block = lambda rngs: TokenBlock(sizes, precision, rngs)
        stacks = trunk.make_stacks(config, block, rngs, config.cuts)
        self.early, self.middle, self.late = stacks
        self.decoder = grounding.TokenFinal(config, rngs, precision)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: tuple[Known, ...] | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for times in [0, 1] and labels in [0, num_classes].

        `Condition.grounding` says which images it looks at (None: all). `key` turns
        dropout on: one key for all images, or one an image in the order of the batch.
        Raises ValueError without the encoder's parameters.
        """
        params = grounding.encoder_params(frozen_params)
        known, images = pre or self.precompute(batch), trunk.images_of(batch)
        conds = tuple(
            self.ground.condition(params, inputs, own.total, own.ground)
            for inputs, own in zip(batch, known, strict=True)
        )
        x = trunk.pack_images(images, self.patch, self.dtype, self._table(0))
        x = x._replace(array=self.patch_embed(x.array))
        lengths, features = x.packing.lengths, ()
        walk = Conditioned(x, x.packing.join(list(conds)))
        drops = self.dropouts(key, images)
        for number, stack in enumerate((self.early, self.middle, self.late)):
            if number == self.context_at and self.context is not None:
                walk = self.with_context(walk, images, known)
            if number == self.features_at:
                features = trunk.image_tokens(walk.x, lengths)
            if stack is not None:
                own, drops = drops[: stack.depth], drops[stack.depth :]
                args = walk.x.array, walk.cond, walk.x.packing, walk.x.rope
                array = stack(*args, dropouts=own)
                walk = walk._replace(x=walk.x._replace(array=array))
        parts = zip(images, trunk.image_tokens(walk.x, lengths), conds, strict=True)
        return Output(tuple(self.decoder(*part) for part in parts), features)

    def dropouts(
        self, key: Array | None, images: trunk.Images
    ) -> list[DropoutKeys | None]:
        """A layer's keys each; None where it drops nothing."""
        if key is None or not self.drops:
            return [None] * self.depth
        counts = tuple(map(len, images))
        return layer_dropout_keys(key, counts, self.depth, self.dropping)

    def precompute(self, batch: tuple[Inputs, ...]) -> tuple[Known, ...]:
        """What time and class make."""
        known = []
        for inputs in batch:
            time = self.time_embed(inputs.timestep)
            classes = self.class_embed(trunk.labels_of(inputs.cond))
            ground = self.ground.modulate_time(inputs.timestep)
            known.append(Known(time + classes, classes, ground))
        return tuple(known)

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
            own = grounding.block_table(rows, columns, self.head_width)
            return identity_rope(own, context)

        return table
