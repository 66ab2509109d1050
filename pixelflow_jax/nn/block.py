"""The transformer block with AdaLN that PixNerd and PixelGen share."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from pixelflow_jax.nn.attention import SelfAttention
from pixelflow_jax.nn.dropout import Dropout, DropoutKeys, drop_packed, group_dropouts
from pixelflow_jax.nn.embed import Rope
from pixelflow_jax.nn.kernels.adaln_residual import AdaLN, Residual, adaln_residual
from pixelflow_jax.nn.layers import BlockConfig, RMSNorm, bias_of, linear, zeros
from pixelflow_jax.nn.mlp import MLP
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Place

# The places of a block that drop; each draws from keys of its own.
PROBABILITIES, PROJECTION, HIDDEN = range(3)
# The chunks of a block's modulation.
CHUNKS = 6
SHIFT1, SCALE1, GATE1, SHIFT2, SCALE2, GATE2 = range(CHUNKS)


# A row an image, an array a group.
Conds = tuple[Float[Array, "_ width"], ...]
Modulation = tuple[Float[Array, "_ chunks"], ...]


class BlockAttention(Protocol):
    """The attention of a block, called as `SelfAttention` is."""

    out: nnx.Linear

    def __call__(
        self,
        tokens: Array,
        packing: Packing,
        rope: Rope | None,
        dropouts: tuple[Dropout, ...] | None,
        context: Any,
    ) -> Array:
        """Tokens [rows, n, width] to the same, without the bias of `out`."""
        ...


class Block(nnx.Module):
    """Transformer block with AdaLN: attention and SwiGLU MLP, both gated.

    `attend` makes the attention, which is made and called as `SelfAttention` is.
    """

    def __init__(
        self,
        config: BlockConfig,
        precision: Precision,
        rngs: nnx.Rngs,
        attend: Callable[..., BlockAttention] = SelfAttention,
    ):
        width, initial = config.width, config.initial
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.norm1 = RMSNorm(width)
        self.attention = attend(config, precision, rngs)
        self.norm2 = RMSNorm(width)
        self.mlp = MLP(
            *("swiglu", width, config.hidden, precision, rngs),
            bias=config.bias,
            initial=initial,
        )
        zero = initial.zero_modulation
        self.modulation = linear(
            *(width, 6 * width, precision, rngs),
            init=zeros if zero else initial.kernel,
            bias_init=zeros if zero else initial.bias,
        )

    def modulations(self, cond: Conds) -> Modulation:
        """What shifts, scales and gates the block, [b_i, 6 * width] a group."""
        return modulations(self.modulation, cond)

    def __call__(
        self,
        x: Float[Array, "rows n width"],
        cond: Conds,
        packing: Packing,
        rope: Rope | None,
        drop: DropoutKeys | None = None,
        context: Any = None,
        modulation: Modulation | None = None,
    ) -> Float[Array, "rows n width"]:
        """Packed tokens to the same; `cond`: one vector [b_i, width] an image.

        `drop`: this layer's dropout in training. `context` is for the attention: masks,
        or the text of a joint one. `modulation`: what `modulations(cond)` gives, if at
        hand.
        """
        at = Place(modulation or self.modulations(cond))
        x, pending = self.open(x, cond, packing, rope, drop, context, at=at)
        return self.close(x, cond, packing, at=at._replace(pending=pending))

    def open(
        self,
        x: Float[Array, "rows n width"],
        cond: Conds,
        packing: Packing,
        rope: Rope | None,
        drop: DropoutKeys | None = None,
        context: Any = None,
        *,
        at: Place,
    ) -> tuple[Float[Array, "rows n width"], Residual]:
        """The same without the last sum, which is returned, and after that of `at`."""
        step = functools.partial(adaln_residual, modulation=at.groups, packing=packing)
        first = CHUNKS * at.layer
        probabilities = group_dropouts(drop, self.attention_dropout, PROBABILITIES)
        projection = group_dropouts(drop, self.dropout, PROJECTION)
        hidden = group_dropouts(drop, self.dropout, HIDDEN)

        adaln = AdaLN(self.norm1.weight[...], first + SHIFT1, first + SCALE1)
        x, z = step(x, residual=at.pending, adaln=adaln)
        mixed = self.attention(z, packing, rope, probabilities, context)
        mixed = checkpoint_name(mixed, "attention_branch")
        residual = Residual(mixed, bias_of(self.attention.out), first + GATE1)
        residual = _dropped(residual, packing, projection)
        adaln = AdaLN(self.norm2.weight[...], first + SHIFT2, first + SCALE2)
        x, z = step(x, residual=residual, adaln=adaln)
        x = checkpoint_name(x, "residual")
        out = checkpoint_name(self.mlp(z, packing, hidden), "mlp_branch")
        return x, Residual(out, bias_of(self.mlp.down), first + GATE2)

    def close(
        self, x: Array, cond: Conds, packing: Packing, *_: Any, at: Place
    ) -> Float[Array, "rows n width"]:
        """x after the sum that is pending in `at`; other arguments are `open`'s."""
        return adaln_residual(x, at.groups, packing, at.pending)[0]


def _dropped(
    residual: Residual, packing: Packing, dropouts: tuple[Dropout, ...] | None
) -> Residual:
    """What the attention adds; where elements are dropped, the bias is among them."""
    if dropouts is None:
        return residual
    whole, bias, gate = residual
    whole = whole if bias is None else whole + bias.astype(whole.dtype)
    return Residual(drop_packed(whole, packing, dropouts), None, gate)


def modulations(layer: nnx.Linear, cond: Conds) -> Modulation:
    """What shifts, scales and gates a block, [b_i, 6 * width] a group."""
    return tuple(checkpoint_name(layer(c), "modulation") for c in cond)


def block_flops(tokens: int, width: int, hidden: int) -> float:
    """Forward multiply-adds of a block for one image of that many tokens."""
    linears = tokens * (4 * width**2 + 3 * width * hidden) + 6 * width**2
    return linears + 2 * tokens**2 * width
