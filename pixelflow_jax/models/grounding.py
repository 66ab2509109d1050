"""What denoisers share that look at their noisy image through a frozen encoder.

Yu et al. 2026, "PixelDiT2: Representation-Grounded Pixel Diffusion Transformers". What
the encoder makes of a patch becomes part of the condition of that patch's token, so
that shifts, scales and gates are each token's own.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import FrozenNetwork, Inputs
from pixelflow_jax.nn.attention import SelfAttention
from pixelflow_jax.nn.block import (
    HIDDEN,
    PROJECTION,
    Block,
    BlockAttention,
    BlockConfig,
    block_flops,
)
from pixelflow_jax.nn.decoder import Patches
from pixelflow_jax.nn.dropout import DropoutKeys, drop_packed, group_dropouts
from pixelflow_jax.nn.embed import Table, TimeEmbed, rotary_table
from pixelflow_jax.nn.layers import (
    TORCH,
    RMSNorm,
    bias_of,
    gated,
    linear,
    modulate,
    zeros,
)
from pixelflow_jax.nn.mlp import MLP
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.patch import unpatchify
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Stack
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov3 import DinoV3

TIME_PERIOD = 10.0  # as PixNerd's, and every token grid spans 0..16
ROPE_EXTENT = 16.0
GROUNDING = "grounding"  # the name of the frozen encoder
LAST = -1  # the encoder's block whose tokens are looked at

Vit = DinoV2 | DinoV3


class Config(trunk.Config, Protocol):
    """The fields that the configs of grounded denoisers have in common."""

    encoder: Vit
    ground_depth: int
    ground_heads: int
    single_silu: bool

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU MLP."""
        ...


def vit_of(config: Config) -> Vit:
    """The encoder, for patches like the model's."""
    return dataclasses.replace(config.encoder, base_patch=config.patch)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """The config's encoder as a frozen network."""

    vit: Vit

    def load(self) -> dict:
        """Its parameters (numpy); WeightsError where its file cannot be read."""
        return self.vit.load("model.encoder.weights")

    def shapes(self) -> dict:
        """The same as shapes."""
        return self.vit.shapes()


def frozen_networks(config: Config) -> dict[str, FrozenNetwork]:
    """The encoder, by its name."""
    return {GROUNDING: Encoder(vit_of(config))}


def encoder_params(frozen_params: dict | None) -> dict:
    """The encoder's parameters among all; ValueError where they are not there."""
    if not frozen_params or GROUNDING not in frozen_params:
        raise ValueError(
            "This model looks at its images through a frozen encoder: give "
            f"frozen_params[{GROUNDING!r}]."
        )
    return frozen_params[GROUNDING]


def problems(config: Config, height: int, width: int) -> list[str]:
    """What is wrong with the fields of the grounding, where no others are wrong."""
    seen = vit_of(config).problems(height, width)
    wrong = [f"model.encoder: {one}" for one in seen]
    if config.channels != 3:
        wrong.append("model.channels must be 3: the encoder looks at RGB images")
    if config.ground_heads and config.width % (4 * config.ground_heads):
        wrong.append(
            f"model.ground_heads={config.ground_heads} must divide model.width="
            f"{config.width} into heads whose width is a multiple of 4"
        )
    return wrong


def flops(config: Config, tokens: int) -> float:
    """Multiply-adds of the encoder and of adapting what it gives, for one image."""
    n, d, vit = tokens, config.width, config.encoder.sizes
    seen = n * vit.depth * (4 * vit.width**2 + 2 * vit.width * vit.hidden)
    seen += 2 * vit.depth * n**2 * vit.width + n * d * (vit.width + d)
    return seen + config.ground_depth * block_flops(n, d, config.mlp_width)


class TokenBlock(nnx.Module):
    """The transformer block with AdaLN, whose modulation is each token's own.

    It begins as the identity. `attend` makes the attention, which is made and called as
    `SelfAttention` is. Of the rates in `sizes` it knows `dropout`, as `Block` does.
    """

    def __init__(
        self,
        sizes: BlockConfig,
        precision: Precision,
        rngs: nnx.Rngs,
        attend: Callable[..., BlockAttention] = SelfAttention,
    ):
        width, self.dropout = sizes.width, sizes.dropout
        self.norm1 = RMSNorm(width)
        self.attention = attend(sizes, precision, rngs)
        self.norm2 = RMSNorm(width)
        self.mlp = MLP("swiglu", width, sizes.hidden, precision, rngs)
        self.modulation = linear(
            *(width, 6 * width, precision, rngs), init=zeros, bias_init=zeros
        )

    def __call__(
        self,
        x: Float[Array, "rows n width"],
        cond: Float[Array, "rows n width"],
        packing: Packing,
        rope: tuple[Array, Array],
        drop: DropoutKeys | None = None,
        context: Any = None,
    ) -> Float[Array, "rows n width"]:
        """Packed tokens to the same, each under its condition.

        `drop`: this layer's dropout in training; `context` is for the attention, such
        as the text of a joint one.
        """
        chunks = jnp.split(self.modulation(jax.nn.silu(cond)), 6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks
        projection = group_dropouts(drop, self.dropout, PROJECTION)
        hidden = group_dropouts(drop, self.dropout, HIDDEN)
        z = modulate(self.norm1(x), shift1, scale1)
        mixed = self.attention(z, packing, rope, None, context)
        mixed = drop_packed(_biased(mixed, self.attention.out), packing, projection)
        x = gated(x, gate1, mixed)
        out = self.mlp(modulate(self.norm2(x), shift2, scale2), packing, hidden)
        return gated(x, gate2, _biased(out, self.mlp.down))


def _biased(branch: Array, layer: nnx.Linear) -> Array:
    bias = bias_of(layer)
    return branch if bias is None else branch + bias.astype(branch.dtype)


def block_table(rows: int, columns: int, head_width: int) -> tuple[Table, Table]:
    """The rotary table of a grid."""
    return rotary_table(rows, columns, head_width, ROPE_EXTENT)


class Grounding(nnx.Module):
    """From the encoder's tokens to what is added to every token's condition."""

    def __init__(self, config: Config, rngs: nnx.Rngs, precision: Precision):
        d = config.width
        self.vit, self.patch = vit_of(config), config.patch
        self.single_silu = config.single_silu
        self.dtype = precision.dtype
        heads = config.ground_heads or config.heads
        self.table = functools.partial(block_table, head_width=d // heads)
        begins = TORCH._replace(zero_modulation=True)
        sizes = BlockConfig(
            width=d, heads=heads, hidden=config.mlp_width, initial=begins
        )
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

    def modulate_time(self, timestep: Array) -> Array:
        """What modulates the blocks, [b, width], at timesteps [b]."""
        return trunk.modulating((self.time_embed(timestep),), self.dtype)[0]

    def condition(
        self, params: dict, inputs: Inputs, total: Array, time: Array
    ) -> Float[Array, "b n width"]:
        """What modulates each token, from the sum `total` [b, width] of all embeddings.

        `Condition.grounding` says which images are looked at (None: all); `time` is
        what `modulate_time` gives.
        """
        seen = self(params, inputs.image, time)
        if inputs.cond.grounding is not None:
            seen = jnp.where(inputs.cond.grounding[:, None, None], seen, 0)
        cond = total[:, None] + seen.astype(jnp.float32)
        return (cond if self.single_silu else jax.nn.silu(cond)).astype(self.dtype)


class TokenFinal(nnx.Module):
    """A norm, modulated by each token's condition, and a linear layer to pixels."""

    def __init__(self, config: Patches, rngs: nnx.Rngs, precision: Precision):
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
