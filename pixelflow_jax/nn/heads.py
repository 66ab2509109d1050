"""Queries, keys and values of all heads from one projection."""

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn import heads_kernel
from pixelflow_jax.nn.embed import rotate
from pixelflow_jax.nn.heads_kernel import How, Inputs
from pixelflow_jax.nn.layers import rms_normalise
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.residual import chosen
from pixelflow_jax.sharding import by_device, tensor_shards


def split_heads(a: Array, heads: int) -> Array:
    """[..., width] to [..., heads, width / heads]."""
    return a.reshape(*a.shape[:-1], heads, -1)


def queries_keys_values(
    qkv: Array,
    packing: Packing,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
    kernels: str = "auto",
) -> tuple[Array, Array, Array]:
    """Queries and keys RMS-normalised, then rotated; values as they are.

    Packed tokens `qkv` [rows, n, 3 * width] without the projection's `bias` [3 *
    width]; `gains` of queries and keys, [head_width] each where every head is
    normalised by itself, [width] where all are together; `rope` cos and sin [n,
    head_width / 2], None: nothing turns. Returns three arrays [rows, n, heads,
    head_width] of qkv's type; float32 inside. `kernels`: as in `nn.residual.between`.
    """
    width = qkv.shape[-1] // 3
    how = How(heads, whole=len(gains[0]) == width)
    known = packing.aligned and heads_kernel.fits(packing.lengths, width // heads)
    fused = chosen(kernels, known, heads_kernel.SIZES, qkv)
    if not fused or tensor_shards() > 1:  # heads may lie on several devices
        return plainly(how, qkv, gains, rope, bias)
    how = how._replace(interpret=jax.default_backend() != "gpu")
    gains = tuple(g.reshape(-1, width // heads) for g in gains)
    if bias is not None:
        bias = bias.reshape(3 * heads, -1)

    def run(qkv: Array, *whole: Array | None) -> tuple[Array, Array, Array]:
        return heads_kernel.split(how, Inputs(qkv, *whole))

    table = rope or (None, None)
    return by_device(run, split_heads(qkv, 3 * heads), whole=(bias, *gains, *table))


def plainly(
    how: How,
    qkv: Array,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None,
) -> tuple[Array, Array, Array]:
    """`queries_keys_values` as separate operations."""
    if bias is not None:
        qkv = qkv + bias.astype(qkv.dtype)
    *pair, v = jnp.split(qkv, 3, -1)
    turned = []
    for a, gain in zip(pair, gains, strict=True):
        a = a if how.whole else split_heads(a, how.heads)
        a = (rms_normalise(a) * gain).astype(qkv.dtype)
        a = split_heads(a, how.heads) if how.whole else a
        turned.append(a if rope is None else rotate(a, *rope))
    return *turned, split_heads(v, how.heads)
