"""Attention over token sequences, one function for every backend."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.embed import rotate
from pixelflow_jax.nn.layers import RMSNorm, linear
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    implementation: str = "auto",
) -> Array:
    """Softmax attention with scale head_width^-0.5.

    `q` [b, n, heads, head_width], `k`, `v` [b, m, heads, head_width], `mask` boolean
    [b, m] (True = attend) or None; returns q's shape and type, softmax in float32.
    `implementation` "auto" takes cuDNN's flash attention where it is available and
    right, XLA elsewhere; "xla" and "cudnn" insist.
    """
    if implementation == "auto":
        implementation = "cudnn" if _cudnn_fits(q, mask) else "xla"
    if implementation not in ("xla", "cudnn"):
        raise ValueError(
            f'attention must be "auto", "xla" or "cudnn", not "{implementation}".'
        )
    if mask is not None:
        mask = mask[:, None, None, :]
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, implementation=implementation
    )


def _cudnn_fits(q: Array, mask: Array | None) -> bool:
    """cuDNN needs a GPU, half precision and head widths that are multiples of 8.

    Masks are left to XLA: cuDNN's masked backward pass has known faults.
    """
    head_width = q.shape[-1]
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = head_width % 8 == 0 and head_width <= 128
    return jax.default_backend() == "gpu" and half and fits and mask is None


class SelfAttention(nnx.Module):
    """Multi-head self-attention with RMS-normalised, then rotated, queries and keys."""

    def __init__(
        self,
        width: int,
        heads: int,
        precision: Precision,
        rngs: nnx.Rngs,
        implementation: str = "auto",
    ):
        self.heads = heads
        self.implementation = implementation
        self.qkv = linear(width, 3 * width, precision, rngs, bias=False)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.out = linear(width, width, precision, rngs)

    def __call__(
        self, tokens: Array, packing: Packing, rope: tuple[Array, Array]
    ) -> Array:
        """Tokens [rows, n, width] to the same; each image attends to itself alone."""
        qkv = checkpoint_name(self.qkv(tokens), "qkv")
        heads = (*tokens.shape[:-1], self.heads, -1)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, -1))
        q = rotate(self.q_norm(q), *rope)
        k = rotate(self.k_norm(k), *rope)
        groups = zip(*(packing.split(a) for a in (q, k, v)), strict=True)
        mixed = packing.join(
            [attend(*group, implementation=self.implementation) for group in groups]
        )
        mixed = checkpoint_name(mixed.reshape(tokens.shape), "attention")
        return self.out(mixed)
