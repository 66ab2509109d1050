"""PixelFlow: a diffusion transformer that works on all resolutions of a cascade.

Chen et al. 2025, "PixelFlow: Pixel-Space Generative Models with Flow". One set of
parameters serves every stage; the network is told the time and the image's width in
patches. Classes enter through AdaLN, text through cross-attention.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Inputs,
    Labels,
    Output,
    Paper,
    TextSpec,
)
from pixelflow_jax.nn.attention import attend_packed, project_and_attend
from pixelflow_jax.nn.block import (
    CHUNKS,
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
    zeros,
)
from pixelflow_jax.nn.mlp import MLP
from pixelflow_jax.nn.packing import PackedText, Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Place, StackConfig
from pixelflow_jax.values import Depth, OptionalDepth, OptionalWidth, Pixels, Width

# Of the features of the timestep (0 .. 999) and of the width in patches.
PERIOD = 10_000.0

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


@dataclasses.dataclass(kw_only=True)
class PixelFlow(DenoiserConfig):
    """Config of the denoiser; the defaults are the class-conditional XL/4 (677M).

    `depth` transformer blocks of `width` and `heads`; the tokens after the first
    `feature_layer` of them are handed out. `num_classes` 0 leaves the class embedding
    out; otherwise class `num_classes` is the null class. `text_width`, the width of the
    text's states, adds cross-attention to every block; 0 leaves it out.
    `attention_bias`: biases of the attention's linear layers. Any image size that
    `patch` divides works with the same parameters.
    """

    paper: ClassVar[Paper] = PAPER
    num_classes: OptionalWidth = 1000
    channels: Width = 3
    patch: Pixels = 4
    width: Width = 1152
    heads: Width = 16
    depth: Depth = 28
    feature_layer: OptionalDepth = 8
    text_width: OptionalWidth = 0
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
        problems = trunk.problems(self, height, width)
        if min(self.num_classes, self.text_width) < 0:
            problems.append("model.num_classes and text_width must be at least 0")
        elif not self.num_classes and not self.text_width:
            problems.append(
                "model.num_classes and text_width are both 0: give the number of "
                "classes, the width of the text's states, or both"
            )
        return problems

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
        size = d * (TimeEmbed.features + d)
        ends = trunk.embed_flops(self, pixels) + trunk.decode_flops(
            d, self.channels, pixels
        )
        return 2 * (self.depth * block + ends + size)


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
        mixed = project_and_attend(self, tokens, packing, rope)
        return matmul_no_bias(self.out, mixed)


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
        self,
        tokens: Array,
        packing: Packing,
        rope: tuple[Array, Array],
        text: PackedText,
    ) -> Array:
        """Tokens [rows, n, d] to the same; each image attends to its text alone."""
        q = checkpoint_name(self.q(tokens), "qkv")
        k, v = jnp.split(checkpoint_name(self.kv(text.tokens), "qkv"), 2, -1)
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
        """What shifts, scales and gates the block, an array [b_i, 6 * width] each."""
        return modulations(self.modulation, cond)

    def __call__(
        self,
        x: Array,
        cond: tuple[Array, ...],
        packing: Packing,
        rope: tuple[Array, Array],
        drop: None = None,
        context: PackedText | None = None,
        modulation: tuple[Array, ...] | None = None,
    ) -> Array:
        """Tokens [rows, n, d] to the same; `cond`: one vector an image, [b_i, d].

        `context` is the text to attend to; nothing drops. `modulation`: what
        `modulations(cond)` gives, if at hand.
        """
        at = Place(modulation or self.modulations(cond))
        x, pending = self.open(x, cond, packing, rope, drop, context, at=at)
        return self.close(x, cond, packing, at=at._replace(pending=pending))

    def open(
        self,
        x: Array,
        cond: tuple[Array, ...],
        packing: Packing,
        rope: tuple[Array, Array],
        drop: None = None,
        context: PackedText | None = None,
        *,
        at: Place,
    ) -> tuple[Array, Residual]:
        """The same without the last sum, which is returned, and after that of `at`."""
        step = functools.partial(adaln_residual, modulation=at.groups, packing=packing)
        first = CHUNKS * at.layer
        adaln = AdaLN(None, first + SHIFT1, first + SCALE1, "layer")
        x, z = step(x, residual=at.pending, adaln=adaln)
        mixed = checkpoint_name(self.attention(z, packing, rope), "attention_branch")
        residual = Residual(mixed, bias_of(self.attention.out), first + GATE1)
        adaln = AdaLN(self.norm3.weight[...], first + SHIFT2, first + SCALE2)
        attend, norm = self.cross_attention, self.norm2
        if context is None or attend is None or norm is None:
            x, z = step(x, residual=residual, adaln=adaln)
        else:
            x = checkpoint_name(step(x, residual=residual)[0], "residual")
            x = x + attend(norm(x), packing, rope, context)
            x, z = step(x, adaln=adaln)
        x = checkpoint_name(x, "residual")
        out = checkpoint_name(self.mlp(z, packing), "mlp_branch")
        return x, Residual(out, bias_of(self.mlp.down), first + GATE2)

    def close(
        self, x: Array, cond: tuple[Array, ...], packing: Packing, *_: Any, at: Place
    ) -> Array:
        """x after the sum that is pending in `at`; other arguments are `open`'s."""
        return adaln_residual(x, at.groups, packing, at.pending)[0]


class PixelFlowModel(nnx.Module):
    """The denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: PixelFlow, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.head_width = d // config.heads
        self.text_width = config.text_width
        self.dtype = precision.dtype
        self.patch_embed = trunk.patch_linear(config, d, rngs, precision)

        def embed() -> TimeEmbed:
            return TimeEmbed(d, PERIOD, precision, rngs, closed=True, bias_init=zeros)

        self.time_embed = embed()
        self.size_embed = embed()
        classes = config.num_classes
        self.class_embed = ClassEmbed(classes, d, rngs) if classes else None

        def block(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs, precision)

        self.early, self.late = trunk.make_stacks(config, block, rngs)
        self.decoder = TokenDecoder(config, rngs, precision)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: trunk.Precomputed | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for timesteps 0 .. 999 and labels in [0, num_classes] or text.

        Raises ValueError where a condition lacks what the model is conditioned on.
        """
        pre, images = pre or self.precompute(batch), trunk.images_of(batch)
        stacks, text = (self.early, self.late), self.pack_text(batch)
        x = self.embed(images)
        tokens, features = trunk.run_stacks(stacks, x, pre, context=text)
        return Output(trunk.decode(self.decoder, images, tokens, pre), features)

    def precompute(self, batch: tuple[Inputs, ...]) -> trunk.Precomputed:
        """What time, size and class make."""
        time = tuple(self.time_embed(inputs.timestep) for inputs in batch)
        pairs = zip(time, batch, strict=True)
        total = tuple(self._total(embedded, inputs) for embedded, inputs in pairs)
        cond = trunk.modulating(total, self.dtype)
        return trunk.precompute(time, cond, (self.early, self.late))

    def _total(self, time: Array, inputs: Inputs) -> Array:
        columns = jnp.array([inputs.image.shape[2] // self.patch])
        total = time + self.size_embed(columns)
        if self.class_embed is None:
            return total
        return total + self.class_embed(trunk.labels_of(inputs.cond))

    def embed(self, images: trunk.Images) -> trunk.Tokens:
        """The embedded patches."""
        table = functools.partial(
            rotary_table, head_width=self.head_width, extent=None, halves=True
        )
        x = trunk.pack_images(images, self.patch, self.dtype, table)
        return x._replace(array=self.patch_embed(x.array))

    def pack_text(self, batch: tuple[Inputs, ...]) -> PackedText | None:
        """The text of all images, or None for a model without cross-attention."""
        if not self.text_width:
            return None
        conds = [inputs.cond for inputs in batch]
        states = [trunk.text_of(cond).astype(self.dtype) for cond in conds]
        return trunk.pack_text(states, tuple(cond.mask for cond in conds))
