"""From one projection to normalised and rotated queries, keys and values.

The kernel reads and writes every number of the projection once, forward and backward,
and takes what the gradients of gains and biases sum over the tokens on the way.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.embed import rotate
from pixelflow_jax.nn.kernels.backends import Backend
from pixelflow_jax.nn.kernels.choice import kernel_backend, versions
from pixelflow_jax.nn.kernels.mosaic_tpu import qkv_norm_rope as mosaic_tpu
from pixelflow_jax.nn.kernels.triton import qkv_norm_rope as triton
from pixelflow_jax.nn.layers import rms_norm, split_heads
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.sharding import by_device, tensor_shards

PARTS, VALUE = 3, 2  # queries, keys, values; these are neither normalised nor turned
# `forward(spec, arrays)` gives queries, keys and values; `backward(spec, arrays,
# cotangents)` the gradient of `qkv` and the sums over all tokens for gains and biases
# [parts, gains and biases, heads, head_width].
KERNELS: dict[Backend, Any] = {"triton": triton, "mosaic_tpu": mosaic_tpu}


def qkv_norm_rope(
    qkv: Array,
    packing: Packing,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
) -> tuple[Array, Array, Array]:
    """Queries and keys RMS-normalised, then rotated; values as they are.

    Packed tokens `qkv` [rows, n, 3 * width] without the projection's `bias` [3 *
    width]; `gains` of queries and keys, [head_width] each where every head is
    normalised by itself, [width] where all are together; `rope` cos and sin [n,
    head_width / 2], None: nothing turns. Returns three arrays [rows, n, heads,
    head_width] of qkv's type; float32 inside.
    """
    backend = backend_of(qkv, packing, heads)
    compute = functools.partial(fused, backend=backend) if backend else reference
    return compute(qkv, heads=heads, gains=gains, rope=rope, bias=bias)


def backend_of(qkv: Array, packing: Packing, heads: int) -> Backend | None:
    """Who runs the kernel for a projection [rows, n, 3 * width]; None: no one."""
    sizes = packing.lengths, heads, qkv.shape[-1] // 3 // heads
    known = versions(KERNELS, packing.aligned, sizes, qkv.shape)
    backend = kernel_backend("blocks", known, qkv.dtype)
    # Of matrices that are split over devices, heads lie here and there.
    return backend if tensor_shards() == 1 else None


def reference(
    qkv: Array,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
) -> tuple[Array, Array, Array]:
    """`qkv_norm_rope` as separate operations."""
    if bias is not None:
        qkv = qkv + bias.astype(qkv.dtype)
    q, k, v = jnp.split(qkv, 3, -1)

    def norm_rope(a: Array, gain: Array) -> Array:
        together = len(gain) == a.shape[-1]
        a = rms_norm(a if together else split_heads(a, heads), gain)
        a = split_heads(a, heads) if together else a
        return a if rope is None else rotate(a, *rope)

    return norm_rope(q, gains[0]), norm_rope(k, gains[1]), split_heads(v, heads)


def fused(qkv: Array, **given: Any) -> tuple[Array, Array, Array]:
    """`qkv_norm_rope` as one kernel; `given` as of `on_each_device`."""
    return on_each_device(_fused, qkv, **given)


def on_each_device(
    function: Callable[["Spec", "Arrays"], Any],
    qkv: Array,
    *,
    heads: int,
    gains: tuple[Array, Array],
    rope: tuple[Array, Array] | None,
    bias: Array | None = None,
    backend: Backend = "triton",
) -> Any:
    """`function` of what the kernels take, on each device's part of the batch.

    The rest are arguments of `qkv_norm_rope`, and who runs the kernel.
    """
    width = qkv.shape[-1] // 3
    spec = Spec(heads, len(gains[0]) == width, backend)
    rows = tuple(gain.reshape(-1, width // heads) for gain in gains)
    if bias is not None:
        bias = bias.reshape(3 * heads, -1)

    def run(*arrays: Any) -> Any:
        return function(spec, Arrays(*arrays))

    whole = (bias, *rows, *(rope or (None, None)))
    return by_device(run, split_heads(qkv, 3 * heads), whole=whole)


class Spec(NamedTuple):
    """`together`: queries and keys are normalised over all heads at once."""

    heads: int
    together: bool
    backend: Backend


class Arrays(NamedTuple):
    """The projection `qkv` [b, n, 3 * heads, head_width] without its bias.

    `bias` [3 * heads, head_width] or None; gains of queries and keys, [heads,
    head_width] or [1, head_width] for all heads; `cos`, `sin` [n, head_width / 2] or
    None.
    """

    qkv: Array
    bias: Array | None
    q_gain: Array
    k_gain: Array
    cos: Array | None
    sin: Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(spec: Spec, arrays: Arrays) -> tuple[Array, Array, Array]:
    return queries_keys_and_values(spec, arrays)


def queries_keys_and_values(spec: Spec, arrays: Arrays) -> tuple[Array, Array, Array]:
    """All three, [b, n, heads, head_width]; not to be differentiated."""
    q, k, v = KERNELS[spec.backend].forward(spec, arrays)
    return q, k, v


def queries_and_keys(spec: Spec, arrays: Arrays) -> tuple[Array, Array]:
    """The same without values, which are as they are but for their bias.

    By Triton alone: those who read values from the projection are kernels for GPUs.
    """
    q, k = triton.forward(spec, arrays, VALUE)
    return q, k


def _forward(spec: Spec, arrays: Arrays) -> tuple:
    return _fused(spec, arrays), arrays


def gradients(spec: Spec, arrays: Arrays, cotangents: tuple) -> tuple[Arrays]:
    """Those of `arrays`, from those of queries, keys and values."""
    dqkv, sums = KERNELS[spec.backend].backward(spec, arrays, cotangents)
    dbias = None
    if arrays.bias is not None:
        dbias = sums[:, 1].reshape(arrays.bias.shape).astype(arrays.bias.dtype)
    no_angles = (
        a if a is None else jnp.zeros_like(a) for a in (arrays.cos, arrays.sin)
    )
    gains = (arrays.q_gain, arrays.k_gain)
    pairs = zip(sums[:VALUE, 0], gains, strict=True)
    dgains = (d if len(a) > 1 else d.sum(0, keepdims=True) for d, a in pairs)
    return (Arrays(dqkv, dbias, *dgains, *no_angles),)


_fused.defvjp(_forward, gradients)
