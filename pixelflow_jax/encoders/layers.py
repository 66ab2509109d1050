"""What the text encoders' networks have in common: embeddings, attention, blocks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.encoders.interface import Attention
from pixelflow_jax.nn.attention import cudnn_fits
from pixelflow_jax.nn.stack import StackConfig, layers_of, run_layers

# cuDNN's attention takes masks and biases of lengths that this divides, at least.
CUDNN_LENGTHS = 64


def check_tokens(network: str, tokens: Array, mask: Array | None) -> None:
    """Raises ValueError where tokens and mask cannot be read."""
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"{network} reads token numbers, integers [b, n], not "
            f"{tokens.dtype} {tokens.shape}."
        )
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(
            f"The mask {mask.shape} must have the shape of the tokens, {tokens.shape}."
        )


def look_up(table: Array, tokens: Array) -> Array:
    """Rows of a table, float32 [b, n, width]; NaN for tokens beyond its end."""
    # Plain indexing takes the last row instead.
    return jnp.take(table, tokens, axis=0, mode="fill").astype(jnp.float32)


class Logits(NamedTuple):
    """What attention does to its logits before the softmax.

    `mask` bool [b, n] (True = attend); `bias` [1, heads, n, n] is added; `causal`: no
    token sees those behind it; `scale` multiplies them (None: head_width^-0.5).
    """

    mask: Array | None = None
    bias: Array | None = None
    causal: bool = False
    scale: float | None = None


def attend(
    q: Array, k: Array, v: Array, logits: Logits, implementation: Attention
) -> Array:
    """Softmax attention without a backward pass, [b, n, heads * head_width].

    `q` [b, n, heads, head_width]; `k`, `v` [b, n, kv_heads, head_width], each of whose
    heads serves as many heads of queries in a row. "auto" is cuDNN's flash attention
    where it fits and there is no bias, else XLA; the softmax is float32.
    """
    b, n = q.shape[:2]
    mask, bias = logits.mask, logits.bias
    if implementation == "auto":
        # With a bias it is faster, but not yet compared with XLA on a GPU.
        fits = cudnn_fits(q) and n % CUDNN_LENGTHS == 0 and bias is None
        implementation = "cudnn" if fits else "xla"
    if mask is not None:
        mask = mask.astype(bool)[:, None, None, :]
    if implementation == "cudnn":  # takes a full mask, and a bias of q's type
        mask = None if mask is None else jnp.broadcast_to(mask, (b, 1, n, n))
        bias = None if bias is None else bias.astype(q.dtype)
    mixed = jax.nn.dot_product_attention(
        *(q, k, v, bias, mask),
        scale=logits.scale,
        is_causal=logits.causal,
        implementation=implementation,
    )
    return mixed.reshape(b, n, -1)


def gated_mlp(params: dict, x: Array, activation: Callable[[Array], Array]) -> Array:
    """down(activation(gate x) * up x), all but the activation in x's type."""
    gate, up = (x @ params[name]["kernel"] for name in ("gate", "up"))
    hidden = activation(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return hidden.astype(x.dtype) @ params["down"]["kernel"]


def run_blocks(
    block: Callable[[dict, Array], Array], blocks: dict, x: Array, stack: StackConfig
) -> Array:
    """All blocks in sequence, by a scan over their leading axis or written out."""
    return run_layers(block, blocks if stack.scan else layers_of(blocks), x, stack)
