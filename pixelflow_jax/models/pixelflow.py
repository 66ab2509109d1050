"""PixelFlow: a diffusion transformer that works on all resolutions of a cascade.

Chen et al. 2025, "PixelFlow: Pixel-Space Generative Models with Flow". One set of
parameters serves every stage; the network is told the time and the image's width in
patches. Classes enter through AdaLN, text through cross-attention.
"""

import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.models.interface import (
    Condition,
    DenoiserConfig,
    Inputs,
    Labels,
    Output,
    Paper,
    TextSpec,
)
from pixelflow_jax.models.trunk import trunk_problems
from pixelflow_jax.nn.attention import attend_packed, project_qkv
from pixelflow_jax.nn.block import (
    GATE1,
    GATE2,
    SCALE1,
    SCALE2,
    SHIFT1,
    SHIFT2,
    modulations,
)
from pixelflow_jax.nn.decoder import TokenDecoder
from pixelflow_jax.nn.embed import (
    ClassEmbed,
    TimeEmbed,
    pack_patches,
    pack_tables,
    rotary_table,
    rotate,
)
from pixelflow_jax.nn.kernels.adaln_residual import AdaLN, Residual, adaln_residual
from pixelflow_jax.nn.layers import (
    XAVIER,
    RMSNorm,
    bias_of,
    fused_xavier,
    linear,
    matmul_no_bias,
    split_heads,
    xavier,
)
from pixelflow_jax.nn.mlp import MLP
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig, layer_modulations

PERIOD = (
    10000.0  # of the features of the timestep (0 .. 999) and of the width in patches
)

PAPER = Paper(
    title="PixelFlow: Pixel-Space Generative Models with Flow",
    url="https://arxiv.org/abs/2504.07963",
    bibtex="""@article{chen2025pixelflow,
  title = {PixelFlow: Pixel-Space Generative Models with Flow},
  author = {Chen, Shoufa and Ge, Chongjian and Zhang, Shilong and Sun, Peize and
            Luo, Ping},
  journal = {arXiv:2504.07963},
  year = {2025}
}""",
)

zeros = nnx.initializers.zeros


@dataclasses.dataclass(kw_only=True)
class PixelFlow(DenoiserConfig):
    """Config of the denoiser; the defaults are the class-conditional XL/4 (677M).

    `depth` transformer blocks of `width` and `heads`; the first `feature_layer` of them form the
    early stack, whose output tokens are handed out. `num_classes` 0 leaves the class
    embedding out; otherwise class `num_classes` is the null class. `text_width`, the
    width of the text's states, adds cross-attention to every block; 0 leaves it out.
    `attention_bias`: biases of the attention's linear layers. Any image size that
    `patch` divides works with the same parameters.
    """

    paper: ClassVar[Paper] = PAPER
    num_classes: int = 1000
    channels: int = 3
    patch: int = 4
    width: int = 1152
    heads: int = 16
    depth: int = 28
    feature_layer: int = 8
    text_width: int = 0
    attention_bias: bool = True
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> Labels | TextSpec:
        """Text of any length where there is cross-attention, else classes."""
        if self.text_width:
            return TextSpec(self.text_width)
        return Labels(self.num_classes)

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP."""
        return 4 * self.width

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "PixelFlowModel":
        """The module, with the official initialisation."""
        return PixelFlowModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of `height` x `width`."""
        found = trunk_problems(self, height, width)
        if min(self.num_classes, self.text_width) < 0:
            found.append("model.num_classes and text_width must be at least 0")
        elif not self.num_classes and not self.text_width:
            found.append(
                "model.num_classes and text_width are both 0: give the number of "
                "classes, the width of the text's states, or both"
            )
        return found

    def flops(self, height: int, width: int, text_length: int = 0) -> float:
        """Forward operations for one image (2 a multiply-add; norms not counted).

        `text_length` is the number of text tokens, which the config does not know.
        """
        pixels, d = height * width, self.width
        n = pixels // self.patch**2
        block = n * (4 * d * d + 2 * d * self.mlp_width) + 2 * n * n * d + 6 * d * d
        if self.text_width:
            text = 2 * text_length * d * self.text_width
            block += n * 2 * d * d + text + 2 * n * text_length * d
        ends = 2 * d * pixels * self.channels + 2 * d * d
        embeds = 2 * d * (TimeEmbed.features + d)
        return 2 * (self.depth * block + ends + embeds)


class Text(NamedTuple):
    """The text of all groups as one array, and how to take it apart again."""

    packing: Packing
    states: Array  # [rows, tokens, text_width]
    masks: tuple[Array | None, ...]  # bool [b_i, length_i] a group; None: all is text


class Precomputed(NamedTuple):
    """AdaLN conditions, each [b_i, d] a group, and what blocks make of them."""

    vectors: tuple[Array, ...]
    early: list | None
    late: list | None


class ImageAttention(nnx.Module):
    """Self-attention without its last bias, which the block adds.

    Queries and keys are RMS-normalised over all heads together.
    """

    def __init__(self, config: PixelFlow, rngs: nnx.Rngs, precision: Precision):
        d, self.heads = config.width, config.heads
        self.qkv = _projection(config, d, 3, rngs, precision)
        self.q_norm = RMSNorm(d)
        self.k_norm = RMSNorm(d)
        self.out = _projection(config, d, 1, rngs, precision)

    def __call__(
        self, tokens: Array, packing: Packing, rope: tuple[Array, Array]
    ) -> Array:
        """Tokens [rows, n, d] to the same; each image attends to itself alone."""
        q, k, v = project_qkv(self, tokens, packing, rope)
        return matmul_no_bias(self.out, attend_packed(q, k, v, packing))


class TextAttention(nnx.Module):
    """Cross-attention to the text; queries are rotated, keys have no position."""

    def __init__(self, config: PixelFlow, rngs: nnx.Rngs, precision: Precision):
        d, self.heads = config.width, config.heads
        self.q = _projection(config, d, 1, rngs, precision)
        self.kv = _projection(config, config.text_width, 2, rngs, precision)
        self.q_norm = RMSNorm(d)
        self.k_norm = RMSNorm(d)
        self.out = _projection(config, d, 1, rngs, precision)

    def __call__(
        self, tokens: Array, packing: Packing, rope: tuple[Array, Array], text: Text
    ) -> Array:
        """Tokens [rows, n, d] to the same; each image attends to its text alone."""
        q = checkpoint_name(self.q(tokens), "qkv")
        k, v = jnp.split(checkpoint_name(self.kv(text.states), "qkv"), 2, -1)
        mixed = attend_packed(
            rotate(split_heads(self.q_norm(q), self.heads), *rope),
            split_heads(self.k_norm(k), self.heads),
            split_heads(v, self.heads),
            packing,
            text.packing,
            text.masks,
        )
        return self.out(mixed)


def _projection(
    config: PixelFlow, inputs: int, parts: int, rngs: nnx.Rngs, precision: Precision
) -> nnx.Linear:
    """`parts` layers from `inputs` to the model's width, side by side."""
    return linear(
        inputs,
        parts * config.width,
        precision,
        rngs,
        bias=config.attention_bias,
        init=fused_xavier(parts),
        bias_init=zeros,
    )


class Block(nnx.Module):
    """Self-attention and MLP, modulated and gated; plain cross-attention between."""

    def __init__(self, config: PixelFlow, rngs: nnx.Rngs, precision: Precision):
        d = config.width
        self.modulation = linear(d, 6 * d, precision, rngs, init=zeros, bias_init=zeros)
        self.attention = ImageAttention(config, rngs, precision)
        has_text = config.text_width > 0
        attend = TextAttention(config, rngs, precision) if has_text else None
        self.norm2 = RMSNorm(d) if has_text else None
        self.cross_attention = attend
        self.norm3 = RMSNorm(d)
        self.mlp = MLP(
            *("gelu", d, config.mlp_width, precision, rngs),
            bias=True,
            initial=XAVIER._replace(gate_up=xavier),
        )

    def modulations(self, cond: tuple[Array, ...]) -> tuple[Array, ...]:
        """What shifts, scales and gates the block, [b_i, 6 * width] a group."""
        return modulations(self.modulation, cond)

    def __call__(
        self,
        x: Array,
        cond: tuple[Array, ...],
        packing: Packing,
        rope: tuple[Array, Array],
        text: Text | None,
        modulation: tuple[Array, ...] | None = None,
    ) -> Array:
        """Tokens [rows, n, d]; `cond`: one vector [b_i, d] an image, a group each.

        `modulation`: what `modulations(cond)` gives, if at hand.
        """
        modulation = modulation or self.modulations(cond)
        step = functools.partial(adaln_residual, modulation=modulation, packing=packing)
        x, z = step(x, adaln=AdaLN(None, SHIFT1, SCALE1, "layer"))
        mixed = checkpoint_name(self.attention(z, packing, rope), "attention_branch")
        residual = Residual(mixed, bias_of(self.attention.out), GATE1)
        adaln = AdaLN(self.norm3.weight[...], SHIFT2, SCALE2)
        if self.cross_attention is None:
            x, z = step(x, residual=residual, adaln=adaln)
        else:
            x = checkpoint_name(step(x, residual=residual)[0], "residual")
            x = x + self.cross_attention(self.norm2(x), packing, rope, text)
            x, z = step(x, adaln=adaln)
        x = checkpoint_name(x, "residual")
        out = checkpoint_name(self.mlp(z, packing), "mlp_branch")
        return step(x, residual=Residual(out, bias_of(self.mlp.down), GATE2))[0]


class PixelFlowModel(nnx.Module):
    """The denoiser; see `models.base.Denoiser` for its call."""

    def __init__(self, config: PixelFlow, rngs: nnx.Rngs, precision: Precision):
        d = config.width
        self.patch = config.patch
        self.head_width = d // config.heads
        self.text_width = config.text_width
        self.dtype = precision.dtype
        inputs = config.channels * config.patch**2
        self.patch_embed = linear(
            inputs, d, precision, rngs, init=xavier, bias_init=zeros
        )

        def embed() -> TimeEmbed:
            return TimeEmbed(d, PERIOD, precision, rngs, closed=True, bias_init=zeros)

        self.time_embed = embed()
        self.size_embed = embed()
        classes = config.num_classes
        self.class_embed = ClassEmbed(classes, d, rngs) if classes else None

        def stack(depth: int) -> Stack | None:
            def block(rngs: nnx.Rngs) -> Block:
                return Block(config, rngs, precision)

            return Stack(block, depth, rngs, config.stack) if depth else None

        self.early = stack(config.feature_layer)
        self.late = stack(config.depth - config.feature_layer)
        self.decoder = TokenDecoder(config, rngs, precision)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: Precomputed | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for timesteps 0 .. 999 and labels in [0, num_classes], text or both.

        Raises ValueError where `conds` lack what the model is conditioned on.
        """
        groups, timesteps, conds = zip(*batch, strict=True)
        vectors, *own = pre or self.precompute(batch)
        packing, tokens, rope = self.embed(groups)
        text = self.pack_text(conds)
        for stack, layers in zip((self.early, self.late), own, strict=True):
            if stack is self.late:
                features = packing.split(tokens)
            if stack is not None:
                tokens = stack(tokens, vectors, packing, rope, text, modulation=layers)
        parts = zip(groups, packing.split(tokens), vectors, strict=True)
        pred = (self.decoder(image, x, cond, cond) for image, x, cond in parts)
        return Output(tuple(pred), tuple(features))

    def precompute(self, batch: tuple[Inputs, ...]) -> Precomputed:
        """See `models.interface.Denoiser`."""
        groups, timesteps, conds = zip(*batch, strict=True)
        vectors = self.condition(groups, timesteps, conds)
        return Precomputed(
            vectors, *(layer_modulations(s, vectors) for s in (self.early, self.late))
        )

    def condition(
        self,
        groups: tuple[Array, ...],
        timesteps: tuple[Array, ...],
        conds: tuple[Condition, ...],
    ) -> tuple[Array, ...]:
        """AdaLN conditions of time, size and class, each [b_i, d] a group."""

        def one(image: Array, timestep: Array, cond: Condition) -> Array:
            size = jnp.array([image.shape[2] // self.patch])  # the width in patches
            total = self.time_embed(timestep) + self.size_embed(size)
            if self.class_embed is not None:
                if cond.labels is None:
                    raise ValueError(
                        "This model embeds classes, but the condition holds no labels: "
                        "give labels, or set model.num_classes=0."
                    )
                total = total + self.class_embed(cond.labels)
            return jax.nn.silu(total).astype(self.dtype)

        return tuple(map(one, groups, timesteps, conds))

    def embed(
        self, groups: tuple[Array, ...]
    ) -> tuple[Packing, Array, tuple[Array, Array]]:
        """The packing, the embedded patches [rows, n, d] and their rotary table."""
        packing, patches = pack_patches(groups, self.patch, self.dtype)
        sizes = [(g.shape[1] // self.patch, g.shape[2] // self.patch) for g in groups]
        tables = [rotary_table(*s, self.head_width, None, halves=True) for s in sizes]
        return packing, self.patch_embed(patches), pack_tables(packing, tables)

    def pack_text(self, conds: tuple[Condition, ...]) -> Text | None:
        """The text of all groups, or None for a model without cross-attention."""
        if not self.text_width:
            return None
        if any(cond.text is None for cond in conds):
            raise ValueError(
                "This model attends to text, but the condition holds none: give text "
                "states, or set model.text_width=0."
            )
        states = [cond.text.astype(self.dtype) for cond in conds]
        packing = Packing.of(states)
        return Text(packing, packing.join(states), tuple(c.mask for c in conds))
