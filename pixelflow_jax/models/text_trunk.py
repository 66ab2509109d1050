"""The transformer that the text-to-image PixNerd and PixelGen share.

The time alone modulates its blocks. A text is refined by blocks of its own; every block
on images then attends to the images and, unchanged, to the refined text.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
from flax import nnx
from jax import Array

from pixelflow_jax.models.interface import Condition
from pixelflow_jax.models.trunk import trunk_problems
from pixelflow_jax.nn.attention import JointAttention
from pixelflow_jax.nn.block import Block, BlockConfig, block_flops
from pixelflow_jax.nn.embed import TextEmbed, TimeEmbed, pack_tables, rotary_table
from pixelflow_jax.nn.layers import Initial
from pixelflow_jax.nn.packing import PackedText, Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack, StackConfig, layer_modulations

TIME_PERIOD = 10.0  # frequencies 10^(-j/128): t lies in [0, 1] and is not scaled


class TextConfig(Protocol):
    """The fields that the text-to-image models have in common."""

    channels: int
    patch: int
    width: int
    heads: int
    depth: int
    feature_layer: int
    text_depth: int
    text_width: int
    text_length: int
    mask_text: bool
    stack: StackConfig


def mlp_width(config: TextConfig) -> int:
    """Hidden width of the SwiGLU MLPs, which is not cut by a third."""
    return 4 * config.width


def text_problems(
    config: TextConfig, height: int, width: int, also: tuple[str, ...] = ()
) -> list[str]:
    """What is wrong with these fields for images of `height` x `width`.

    Fields named in `also` must be at least 1, too.
    """
    also = (*also, "text_width", "text_length")
    found = trunk_problems(config, height, width, also=also)
    if config.text_depth < 0:
        found.append(f"model.text_depth={config.text_depth} must be at least 0")
    return found


def text_flops(config: TextConfig, tokens: int) -> float:
    """Forward multiply-adds of the trunk for one image of that many tokens."""
    d, length = config.width, config.text_length
    joint = block_flops(tokens, d, mlp_width(config))
    joint += length * 2 * d**2 + 2 * tokens * length * d
    refine = config.text_depth * block_flops(length, d, mlp_width(config))
    embeds = length * config.text_width * d + d * (TimeEmbed.features + d)
    return config.depth * joint + refine + embeds


class Precomputed(NamedTuple):
    """What time and text make, a group each, and what blocks make of it."""

    times: tuple[Array, ...]  # [b_i, width]
    vectors: tuple[Array, ...]  # AdaLN conditions [b_i, width]
    states: list[Array]  # refined texts [b_i, length, width]
    masks: tuple[Array | None, ...]  # of the texts, bool [b_i, length]
    early: list | None
    late: list | None


class Tokens(NamedTuple):
    """What a decoder needs of each group."""

    tokens: list[Array]  # [b_i, n_i, width]
    features: list[Array]  # the same after `feature_layer` blocks
    times: tuple[Array, ...]  # [b_i, width]


class TextTrunk(nnx.Module):
    """Embeddings of time and text, the blocks on texts, and those on images.

    `initial` says how linear layers begin, `place_init` the places of a text's tokens.
    """

    def __init__(
        self,
        config: TextConfig,
        rngs: nnx.Rngs,
        precision: Precision,
        initial: Initial,
        place_init: Callable,
    ):
        d, self.patch = config.width, config.patch
        self.head_width = d // config.heads
        self.mask_text = config.mask_text
        self.dtype = precision.dtype
        self.time_embed = TimeEmbed(
            d, TIME_PERIOD, precision, rngs, bias_init=initial.bias
        )
        self.text_embed = TextEmbed(
            config.text_width,
            config.text_length,
            d,
            precision,
            rngs,
            place_init=place_init,
            initial=initial,
        )

        sizes = BlockConfig(
            width=d, heads=config.heads, hidden=mlp_width(config), initial=initial
        )

        def stack(depth: int, **attend: Callable) -> Stack | None:
            def block(rngs: nnx.Rngs) -> Block:
                return Block(sizes, precision, rngs, **attend)

            return Stack(block, depth, rngs, config.stack) if depth else None

        self.refine = stack(config.text_depth)
        self.early = stack(config.feature_layer, attend=JointAttention)
        self.late = stack(config.depth - config.feature_layer, attend=JointAttention)

    def __call__(
        self,
        groups: tuple[Array, ...],
        packing: Packing,
        tokens: Array,
        pre: Precomputed,
    ) -> Tokens:
        """Embedded images [rows, n, width] of `groups`, under times and texts."""
        times, vectors, states, masks, *own = pre
        packed = Packing.of(states)
        text = PackedText(packed, packed.join(states), masks)
        rope = self.rope(groups, packing)
        for stack, layers in zip((self.early, self.late), own, strict=True):
            if stack is self.late:
                features = packing.split(tokens)
            if stack is not None:
                args = (vectors, packing, rope, None, text)
                tokens = stack(tokens, *args, modulation=layers)
        return Tokens(packing.split(tokens), features, times)

    def precompute(
        self, timesteps: tuple[Array, ...], conds: tuple[Condition, ...]
    ) -> Precomputed:
        """See `models.base.Denoiser`; ValueError where `conds` hold no text."""
        times, vectors = self.condition(timesteps)
        text = self.read(conds, vectors)
        states = text.packing.split(text.tokens)
        stacks = (self.early, self.late)
        layers = (layer_modulations(stack, vectors) for stack in stacks)
        return Precomputed(times, vectors, states, text.masks, *layers)

    def condition(
        self, timesteps: tuple[Array, ...]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Time embeddings and AdaLN conditions, each [b_i, width] a group."""
        times = tuple(self.time_embed(timestep) for timestep in timesteps)
        return times, tuple(jax.nn.silu(time).astype(self.dtype) for time in times)

    def read(
        self, conds: tuple[Condition, ...], vectors: tuple[Array, ...]
    ) -> PackedText:
        """The refined texts; ValueError where `conds` hold none, or lack a mask."""
        text = self.embed_text(conds)
        if self.refine is None:
            return text
        args = (vectors, text.packing, None, None, text.masks)
        return text._replace(tokens=self.refine(text.tokens, *args))

    def embed_text(self, conds: tuple[Condition, ...]) -> PackedText:
        """The texts as the first of their blocks sees them."""
        if any(cond.text is None for cond in conds):
            raise ValueError(
                "This model reads text, but the condition holds none: give its states "
                "as Condition.text (conditioner Text does)."
            )
        masks = tuple(cond.mask if self.mask_text else None for cond in conds)
        if self.mask_text and any(mask is None for mask in masks):
            raise ValueError(
                "model.mask_text is on, but the condition holds no mask: give Condition.mask"
                ", or set model.mask_text=False."
            )
        tokens = [self.text_embed(cond.text) for cond in conds]
        packing = Packing.of(tokens)
        return PackedText(packing, packing.join(tokens), masks)

    def rope(self, groups: tuple[Array, ...], packing: Packing) -> tuple[Array, ...]:
        """The rotary table of all images."""
        sizes = [(g.shape[1] // self.patch, g.shape[2] // self.patch) for g in groups]
        tables = [text_rope(*size, self.head_width) for size in sizes]
        return pack_tables(packing, tables)


def text_rope(rows: int, columns: int, head_width: int) -> tuple:
    """Rotary table of a grid: columns span 0..rows and rows span 0..columns.

    Ends are included, so that neighbours are a little more than 1 apart; the exchanged
    extents are the official code's.
    """
    return rotary_table(rows, columns, head_width, (float(rows), float(columns)))
