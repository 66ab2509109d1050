"""What lets images look at a text: its embedding, and attention to both at once."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.attention import attend_packed
from pixelflow_jax.nn.dropout import Dropout
from pixelflow_jax.nn.heads import queries_keys_values, split_heads
from pixelflow_jax.nn.layers import RMSNorm, bias_of, linear, product, torch_default
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision


class Text(NamedTuple):
    """The embedded texts of all groups as one array, and how to take it apart."""

    packing: Packing
    tokens: Array  # [rows, tokens, width]
    masks: tuple[Array | None, ...]  # bool [b_i, length] a group; None: all is text


class TextEmbed(nnx.Module):
    """A linear layer and an RMS norm; the learnt places are added afterwards.

    `place_init` initialises the places [length, width].
    """

    def __init__(
        self,
        inputs: int,
        length: int,
        width: int,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        place_init: Callable,
        init: Callable = torch_default,
        bias_init: Callable | None = None,
    ):
        inits = {"init": init, "bias_init": bias_init}
        self.proj = linear(inputs, width, precision, rngs, **inits)
        self.norm = RMSNorm(width)
        self.position = nnx.Param(place_init(rngs.params(), (length, width)))

    def __call__(self, states: Array) -> Array:
        """States [b, length, inputs] to tokens [b, length, width].

        Raises ValueError for another length or width than the model's.
        """
        length, inputs = len(self.position[...]), self.proj.in_features
        if states.shape[1:] != (length, inputs):
            raise ValueError(
                f"This model reads texts of exactly {length} tokens of width {inputs}, "
                f"not {states.shape[1]} of {states.shape[2]}: pad or cut texts to "
                "model.text_length, with states of model.text_width."
            )
        normal = self.normal(states)
        return (normal.astype(jnp.float32) + self.position[...]).astype(normal.dtype)

    def normal(self, states: Array) -> Array:
        """The same without places."""
        return self.norm(self.proj(states))


class JointAttention(nnx.Module):
    """Attention of images to themselves and their text, which is not changed by it.

    Queries and keys are RMS-normalised, the text's keys with the images' weights; only
    the images' turn. `bias` gives one to the projections to queries, keys and values.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        precision: Precision,
        rngs: nnx.Rngs,
        implementation: str = "auto",
        *,
        bias: bool = False,
        init: Callable = torch_default,
        bias_init: Callable | None = None,
        kernels: str = "auto",
    ):
        self.kernels = kernels
        self.heads = heads
        self.implementation = implementation
        inits = {"init": init, "bias_init": bias_init}
        self.qkv = linear(width, 3 * width, precision, rngs, bias=bias, **inits)
        self.text_kv = linear(width, 2 * width, precision, rngs, bias=bias, **inits)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.out = linear(width, width, precision, rngs, **inits)

    def __call__(
        self,
        tokens: Array,
        packing: Packing,
        rope: tuple[Array, Array],
        dropouts: tuple[Dropout, ...] | None,
        text: Text,
    ) -> Array:
        """Tokens [rows, n, width] to the same, without bias, as `SelfAttention`."""
        q, k, v = queries_keys_values(
            checkpoint_name(product(self.qkv, tokens), "qkv"),
            packing,
            heads=self.heads,
            gains=(self.q_norm.weight[...], self.k_norm.weight[...]),
            rope=rope,
            bias=bias_of(self.qkv),
            kernels=self.kernels,
        )
        fused = checkpoint_name(self.text_kv(text.tokens), "qkv")
        text_k, text_v = (split_heads(a, self.heads) for a in jnp.split(fused, 2, -1))
        keys = _behind(packing, k, text.packing, self.k_norm(text_k))
        values = _behind(packing, v, text.packing, text_v)
        sources = Packing.of(keys)
        how = {"implementation": self.implementation, "dropouts": dropouts}
        ends = (sources.join(keys), sources.join(values), packing, sources)
        masks = _widened(text.masks, packing)
        mixed = attend_packed(q, *ends, masks=masks, **how)
        return product(self.out, mixed)


def _behind(packing: Packing, a: Array, text: Packing, b: Array) -> list[Array]:
    """Each group's images with their texts behind them."""
    pairs = zip(packing.split(a), text.split(b), strict=True)
    return [jnp.concatenate(pair, 1) for pair in pairs]


def _widened(
    masks: tuple[Array | None, ...], packing: Packing
) -> tuple[Array | None, ...]:
    """Masks of texts as masks of images and texts; images are attended to in full."""
    return tuple(
        None if mask is None else jnp.pad(mask, ((0, 0), (n, 0)), constant_values=True)
        for mask, n in zip(masks, packing.lengths, strict=True)
    )
