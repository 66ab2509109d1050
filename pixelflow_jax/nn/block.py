"""The transformer block with AdaLN that PixNerd and PixelGen share."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.attention import SelfAttention
from pixelflow_jax.nn.dropout import DropoutKeys, group_drops, packed
from pixelflow_jax.nn.layers import (
    RMSNorm,
    bias_of,
    fused_xavier,
    linear,
    torch_default,
    xavier,
)
from pixelflow_jax.nn.mlp import MLP
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.residual import between

# The places of a block that drop; each draws from keys of its own.
PROBABILITIES, PROJECTION, HIDDEN = range(3)
# The chunks of a block's modulation.
SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 = range(6)


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
    values. `attend` makes the attention, called as `SelfAttention` is. `kernels`: see
    `nn.residual.between`.
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
        kernels: str = "auto",
    ):
        self.kernels = kernels
        init = {"init": initial.kernel, "bias_init": initial.bias}
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.norm1 = RMSNorm(width)
        self.attention = attend(
            width,
            heads,
            precision,
            rngs,
            attention,
            bias=bias,
            kernels=kernels,
            **init,
        )
        self.norm2 = RMSNorm(width)
        self.mlp = MLP(
            "swiglu",
            width,
            hidden,
            precision,
            rngs,
            bias=bias,
            first_init=initial.gate_up,
            **init,
        )
        if initial.zero_modulation:
            init = {"init": zeros, "bias_init": zeros}
        self.modulation = linear(width, 6 * width, precision, rngs, **init)

    def modulations(self, cond: tuple[Array, ...]) -> tuple[Array, ...]:
        """What shifts, scales and gates the block, [b_i, 6 * width] a group."""
        return modulations(self.modulation, cond)

    def __call__(
        self,
        x: Array,
        cond: tuple[Array, ...],
        packing: Packing,
        rope: tuple[Array, Array] | None,
        drop: DropoutKeys | None = None,
        beside: object = None,
        modulation: tuple[Array, ...] | None = None,
    ) -> Array:
        """Tokens [rows, n, d]; `cond`: one vector [b_i, d] an image, a group each.

        `drop`: this layer's dropout in training. `beside` is for the attention: masks,
        or the text of a joint one. `modulation`: what `modulations(cond)` gives, if at hand.
        """
        modulation = modulation or self.modulations(cond)
        step = functools.partial(
            between, modulation=modulation, packing=packing, kernels=self.kernels
        )
        after = group_drops(drop, self.dropout, PROJECTION)
        inside = group_drops(drop, self.dropout, HIDDEN)
        dropouts = group_drops(drop, self.attention_dropout, PROBABILITIES)
        x, z = step(x, gain=self.norm1.weight[...], shift=SHIFT1, scale=SCALE1)
        mixed = self.attention(z, packing, rope, dropouts, beside)
        mixed = checkpoint_name(mixed, "attention_branch")
        added = {"branch": mixed, "bias": bias_of(self.attention.out), "gate": GATE1}
        if after is not None:
            dropped = packed(after, packing)(mixed + added["bias"].astype(mixed.dtype))
            added |= {"branch": dropped, "bias": None}
        normed = {"gain": self.norm2.weight[...], "shift": SHIFT2, "scale": SCALE2}
        x, z = step(x, **added, **normed)
        x = checkpoint_name(x, "residual")
        made = self.mlp(z, packing, inside, self.kernels)
        made = checkpoint_name(made, "mlp_branch")
        return step(x, branch=made, bias=bias_of(self.mlp.down), gate=GATE2)[0]


def modulations(layer: nnx.Linear, cond: tuple[Array, ...]) -> tuple[Array, ...]:
    """What shifts, scales and gates a block, [b_i, 6 * width] a group."""
    return tuple(checkpoint_name(layer(c), "modulation") for c in cond)


def block_flops(tokens: int, width: int, hidden: int) -> float:
    """Forward multiply-adds of a block for one image of that many tokens."""
    linears = tokens * (4 * width**2 + 3 * width * hidden) + 6 * width**2
    return linears + 2 * tokens**2 * width
