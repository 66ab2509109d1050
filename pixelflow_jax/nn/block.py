"""The transformer block with AdaLN that PixNerd and PixelGen share."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.attention import SelfAttention
from pixelflow_jax.nn.dropout import Dropping, group_drops, packed_drop
from pixelflow_jax.nn.layers import (
    RMSNorm,
    SwiGLU,
    fused_xavier,
    gated,
    linear,
    modulate,
    torch_default,
    xavier,
)
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision

# The places of a block that drop; each draws from keys of its own.
PROBABILITIES, PROJECTION, HIDDEN = range(3)


class Initial(NamedTuple):
    """How a block's linear layers begin.

    `gate_up` initialises the MLP's first two matrices; `bias` None is PyTorch's
    default. With `zero_modulation` the block begins as the identity.
    """

    kernel: Callable
    gate_up: Callable
    bias: Callable | None
    zero_modulation: bool


zeros = nnx.initializers.zeros
TORCH = Initial(torch_default, torch_default, None, zero_modulation=False)
# The official JiT draws gate and up as one matrix, which narrows the bound.
XAVIER = Initial(xavier, fused_xavier(1 / 2), zeros, zero_modulation=True)


class Block(nnx.Module):
    """Transformer block with AdaLN: attention and SwiGLU MLP, both gated.

    `hidden` is the MLP's width, `bias` gives biases to the projection to queries, keys
    and values and to the MLP. `attention_dropout` is the rate of the attention
    probabilities, `dropout` that of the attention's output and of the MLP's hidden
    values. `attend` makes the attention, called as `SelfAttention` is.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        attention: str = "auto",
        bias: bool = False,
        initial: Initial = TORCH,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        attend: Callable[..., nnx.Module] = SelfAttention,
    ):
        init = {"init": initial.kernel, "bias_init": initial.bias}
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.norm1 = RMSNorm(width)
        self.attention = attend(
            width, heads, precision, rngs, attention, bias=bias, **init
        )
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(
            width,
            hidden,
            precision,
            rngs,
            bias=bias,
            gate_up_init=initial.gate_up,
            **init,
        )
        if initial.zero_modulation:
            init = {"init": zeros, "bias_init": zeros}
        self.modulation = linear(width, 6 * width, precision, rngs, **init)

    def __call__(
        self,
        x: Array,
        cond: tuple[Array, ...],
        packing: Packing,
        rope: tuple[Array, Array] | None,
        drop: Dropping | None = None,
        beside: object = None,
    ) -> Array:
        """Tokens [rows, n, d]; `cond`: one vector [b_i, d] an image, a group each.

        `drop`: this layer's dropout in training. `beside` is for the attention: masks,
        or the text of a joint one.
        """
        chunks = [jnp.split(self.modulation(c), 6, -1) for c in cond]
        spread = [packing.spread(list(v)) for v in zip(*chunks, strict=True)]
        shift1, scale1, gate1, shift2, scale2, gate2 = spread
        after = packed_drop(drop, self.dropout, PROJECTION, packing)
        inside = packed_drop(drop, self.dropout, HIDDEN, packing)
        drops = group_drops(drop, self.attention_dropout, PROBABILITIES)
        z = modulate(self.norm1(x), shift1, scale1)
        mixed = after(self.attention(z, packing, rope, drops, beside))
        mixed = checkpoint_name(mixed, "branch")
        x = checkpoint_name(gated(x, gate1, mixed), "residual")
        z = modulate(self.norm2(x), shift2, scale2)
        return gated(x, gate2, checkpoint_name(self.mlp(z, inside), "branch"))


def block_flops(tokens: int, width: int, hidden: int) -> float:
    """Forward multiply-adds of a block for one image of that many tokens."""
    linears = tokens * (4 * width**2 + 3 * width * hidden) + 6 * width**2
    return linears + 2 * tokens**2 * width
