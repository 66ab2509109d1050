"""From one projection to what short sequences attend to, in one kernel.

For images of few tokens, where a head's keys and values fit into the memory beside the
cores. Queries, keys and values are normalised, rotated and used where they are; they
are written out for the backward pass alone.
"""

import functools
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.kernels import qkv_norm_rope
from pixelflow_jax.nn.kernels.backends import Backend
from pixelflow_jax.nn.kernels.choice import chosen, kernel_backend, versions
from pixelflow_jax.nn.kernels.triton import short_attention as triton
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.sharding import by_device, tensor_shards

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
    parts = qkv.reshape(*qkv.shape[:2], 3, heads, -1)
    if bias is not None:
        bias = bias.reshape(3, heads, -1)

    def run(*arrays: Any) -> Array:
        return _fused(backend, Arrays(*arrays))

    return by_device(run, parts, whole=(bias, *gains, *(rope or (None, None))))


class Arrays(NamedTuple):
    """The projection `qkv` [b, n, 3, heads, head_width] without its bias.

    `bias` [3, heads, head_width] or None; gains of queries and keys [head_width];
    `cos`, `sin` [n, head_width / 2] or None.
    """

    qkv: Array
    bias: Array | None
    q_gain: Array
    k_gain: Array
    cos: Array | None
    sin: Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(backend: Backend, arrays: Arrays) -> Array:
    return KERNELS[backend].forward(arrays, keep=False)[0]


def _forward(backend: Backend, arrays: Arrays) -> tuple:
    found = KERNELS[backend].forward(arrays, keep=True)
    out, sums, qkv = (checkpoint_name(a, "attention") for a in found)
    return out, (arrays, qkv, out, sums)


def _backward(backend: Backend, kept: tuple, cotangent: Array) -> tuple[Arrays]:
    arrays, *found = kept
    cotangents = KERNELS[backend].backward(*found, cotangent)
    return (_through_norm(backend, arrays, tuple(cotangents)),)


def _through_norm(backend: Backend, arrays: Arrays, cotangents: tuple) -> Arrays:
    """The gradients of what queries, keys and values are made of."""
    b, n, _, heads, _ = arrays.qkv.shape
    row = lambda a: a.reshape(1, -1)
    flat = qkv_norm_rope.Arrays(
        arrays.qkv.reshape(b, n, 3 * heads, -1),
        None if arrays.bias is None else arrays.bias.reshape(3 * heads, -1),
        *(row(arrays.q_gain), row(arrays.k_gain)),
        *(arrays.cos, arrays.sin),
    )
    spec = qkv_norm_rope.Spec(heads, together=False, backend=backend)
    found = qkv_norm_rope.backward(spec, flat, cotangents)
    return jax.tree.map(lambda a, d: d.reshape(a.shape), arrays, Arrays(*found))


_fused.defvjp(_forward, _backward)
