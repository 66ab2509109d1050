"""The transformer that the text-to-image models share, PixNerd's and PixelGen's first.

The time alone modulates its blocks, if a model does not bring others. A text is refined
by blocks of its own; every block on images then attends to the images and, unchanged,
to the refined text.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from flax import nnx
from jax import Array

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import Condition, Inputs, Output
from pixelflow_jax.models.trunk import Images, Precomputed, Tokens
from pixelflow_jax.nn.attention import JointAttention
from pixelflow_jax.nn.block import Block, BlockConfig, block_flops
from pixelflow_jax.nn.embed import TextEmbed, TimeEmbed, rotary_table
from pixelflow_jax.nn.layers import Initial
from pixelflow_jax.nn.packing import PackedText
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack

TIME_PERIOD = 10.0  # frequencies 10^(-j/128): t lies in [0, 1] and is not scaled


class TextConfig(trunk.Config, Protocol):
    """The fields that the text-to-image models have in common."""

    text_depth: int
    text_width: int
    text_length: int
    mask_text: bool


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
    problems = trunk.problems(config, height, width, also=also)
    if config.text_depth < 0:
        problems.append(f"model.text_depth={config.text_depth} must be at least 0")
    return problems


def text_flops(config: TextConfig, tokens: int) -> float:
    """Multiply-adds of the blocks and of embedding the text, for that many tokens."""
    d, length = config.width, config.text_length
    joint = block_flops(tokens, d, mlp_width(config))
    joint += length * 2 * d**2 + 2 * tokens * length * d
    refine = config.text_depth * block_flops(length, d, mlp_width(config))
    return config.depth * joint + refine + length * config.text_width * d


class RefinedText(NamedTuple):
    """What the blocks on texts make of every resolution's."""

    states: list[Array]  # [b_i, length, width]
    masks: tuple[Array | None, ...]  # bool [b_i, length]


class TextTrunk(nnx.Module):
    """Embeddings of time and text, the blocks on texts, and those on images.

    `initial` says how linear layers begin, `position_init` the positions of texts.
    `image_block` makes the blocks on images, as `nn.block.Block` is made.
    """

    def __init__(
        self,
        config: TextConfig,
        rngs: nnx.Rngs,
        precision: Precision,
        initial: Initial,
        position_init: Callable,
        image_block: Callable[..., nnx.Module] = Block,
    ):
        d = config.width
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
            position_init=position_init,
            initial=initial,
        )

        sizes = BlockConfig(
            width=d, heads=config.heads, hidden=mlp_width(config), initial=initial
        )

        def block(rngs: nnx.Rngs) -> Block:
            return Block(sizes, precision, rngs)

        def joint(rngs: nnx.Rngs) -> nnx.Module:
            return image_block(sizes, precision, rngs, JointAttention)

        depth = config.text_depth
        self.refine = Stack(block, depth, rngs, config.stack) if depth else None
        self.early, self.late = trunk.make_stacks(config, joint, rngs)

    def __call__(
        self, x: trunk.Tokens, pre: Precomputed[RefinedText]
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """The images' tokens and those after `feature_layer` blocks, [b_i, n_i, width].

        `x` are the embedded images.
        """
        text = trunk.pack_text(*pre.extra)
        return trunk.run_stacks((self.early, self.late), x, pre, context=text)

    def precompute(self, batch: tuple[Inputs, ...]) -> Precomputed[RefinedText]:
        """What time and text make; ValueError where a condition holds no text."""
        time = tuple(self.time_embed(inputs.timestep) for inputs in batch)
        cond = trunk.modulating(time, self.dtype)
        text = self.read(tuple(inputs.cond for inputs in batch), cond)
        refined = RefinedText(text.packing.split(text.tokens), text.masks)
        return trunk.precompute(time, cond, (self.early, self.late), refined)

    def read(self, conds: tuple[Condition, ...], cond: tuple[Array, ...]) -> PackedText:
        """The refined texts; `cond` modulates their blocks."""
        text = self.embed_text(conds)
        if self.refine is None:
            return text
        args = (cond, text.packing, None, None, text.masks)
        return text._replace(tokens=self.refine(text.tokens, *args))

    def embed_text(self, conds: tuple[Condition, ...]) -> PackedText:
        """The texts as the first of their blocks sees them.

        Raises ValueError where a condition holds none, or lacks a mask.
        """
        states = [trunk.text_of(cond) for cond in conds]
        masks = tuple(cond.mask if self.mask_text else None for cond in conds)
        if self.mask_text and any(mask is None for mask in masks):
            raise ValueError(
                "model.mask_text is on, but the condition holds no mask: give "
                "Condition.mask, or set model.mask_text=False."
            )
        return trunk.pack_text([self.text_embed(text) for text in states], masks)


def text_rope(rows: int, columns: int, head_width: int) -> tuple[np.ndarray, ...]:
    """Rotary table of a grid: columns span 0..rows and rows span 0..columns.

    Ends are included, so that neighbours are a little more than 1 apart; the exchanged
    extents are the official code's.
    """
    return rotary_table(rows, columns, head_width, (float(rows), float(columns)))


class TextDenoiser(nnx.Module):
    """A model of this transformer and a decoder: `embed` and `decoder` are its own."""

    trunk: TextTrunk
    decoder: Callable[..., Array]

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: Precomputed[RefinedText] | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for times in [0, 1] and texts [b_i, text_length, text_width].

        Raises ValueError where a condition holds no text, or one of another shape.
        """
        pre, images = pre or self.precompute(batch), trunk.images_of(batch)
        tokens, features = self.trunk(self.embed(images), pre)
        return Output(trunk.decode(self.decoded, images, tokens, pre), features)

    def precompute(self, batch: tuple[Inputs, ...]) -> Precomputed[RefinedText]:
        """What time and text make."""
        return self.trunk.precompute(batch)

    def embed(self, images: Images) -> Tokens:
        """The tokens of images, with the table of their places."""
        raise NotImplementedError

    def decoded(self, image: Array, tokens: Array, time: Array, cond: Array) -> Array:
        """The prediction [b, h, w, c] for one group of images."""
        return self.decoder(image, tokens, time, cond)
