"""From one projection to what short sequences attend to, in one kernel.

For images of few tokens, where a head's keys and values fit into the memory beside the
cores. Queries, keys and values are normalised, rotated and used where they are; they
are written out for the backward pass alone.
"""

import functools
from typing import Any

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.kernels import qkv_norm_rope
from pixelflow_jax.nn.kernels.backends import Backend
from pixelflow_jax.nn.kernels.choice import chosen, kernel_backend, versions
from pixelflow_jax.nn.kernels.qkv_norm_rope import Arrays
from pixelflow_jax.nn.kernels.triton import short_attention as triton
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.sharding import tensor_shards

# `forward(arrays, keep)` gives the result and, where `keep`, log2 of the sums of its
# exponentials and the queries, keys and values that it used; `backward(qkv, result,
# sums, cotangent)` the gradients of these.
KERNELS: dict[Backend, Any] = {"triton": triton}


def backend_of(
    packing: Packing,
    plain: bool,
    *,
    qkv: Array,
    heads: int,
    gains: tuple[Array, Array],
    **_: object,
) -> Backend | None:
    """Who runs the kernel for what `fused` is given; None: no one.

    `plain`: nothing is masked, nothing dropped. Raises ValueError where
    `kernels.attention="pallas"` insists on sizes that the kernel does not know.
    """
    if chosen().attention != "pallas" or tensor_shards() > 1:
        return None  # nowhere has it been measured to gain
    head_width = qkv.shape[-1] // 3 // heads
    alone = plain and len(packing.lengths) == 1 and gains[0].shape == (head_width,)
    sizes = packing.lengths[0], head_width, qkv.dtype
    return kernel_backend(
        "attention", versions(KERNELS, alone, sizes, qkv.shape), qkv.dtype
    )


def reference(
    qkv: Array,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
) -> Array:
    """`fused` as separate operations."""
    q, k, v = qkv_norm_rope.reference(
        qkv, heads=heads, gains=gains, rope=rope, bias=bias
    )
    return jax.nn.dot_product_attention(q, k, v, implementation="xla")


def fused(
    qkv: Array,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
    backend: Backend = "triton",
) -> Array:
    """Attention of each image to itself, on each device's part of the batch.

    `qkv` [b, n, 3 * width] is the projection without its `bias` [3 * width]; `gains` of
    queries and keys, [head_width] each; `rope` cos and sin [n, head_width / 2], None:
    nothing turns. Returns [b, n, heads, head_width] of qkv's type; float32 inside.
    """
    return qkv_norm_rope.on_each_device(
        functools.partial(_fused, backend),
        qkv,
        heads=heads,
        gains=gains,
        rope=rope,
        bias=bias,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(backend: Backend, arrays: Arrays) -> Array:
    return KERNELS[backend].forward(arrays, keep=False)[0]


def _forward(backend: Backend, arrays: Arrays) -> tuple:
    found = KERNELS[backend].forward(arrays, keep=True)
    out, sums, qkv = (checkpoint_name(a, "attention") for a in found)
    return out, (arrays, qkv, out, sums)


def _backward(backend: Backend, kept: tuple, cotangent: Array) -> tuple[Arrays]:
    arrays, *found = kept
    cotangents = tuple(KERNELS[backend].backward(*found, cotangent))
    spec = qkv_norm_rope.Spec(cotangent.shape[2], together=False, backend=backend)
    return (qkv_norm_rope.backward(spec, arrays, cotangents),)


_fused.defvjp(_forward, _backward)
