"""Attention of short sequences on Hopper GPUs by our own kernels.

Where a head's queries, keys and values fit into the memory beside the cores, forward
and backward pass each read and write every number once. cuDNN's backward pass takes
several times as long as its bytes ask for at 256 tokens, and pads 288 to 384.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention import SIZES, supports
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention_backward import backward
from pixelflow_jax.nn.kernels.mosaic_gpu.short_attention_forward import forward
from pixelflow_jax.sharding import by_device, shard_count, tensor_shards

ASKED = 'kernels.attention="short"'
OLDEST = (0, 11, 2)  # jax whose Mosaic knows all that the kernels use


def attend(q: Array, k: Array, v: Array, length: int | None = None) -> Array:
    """`nn.attention.attend` by the kernels, on each device's part of images and heads.

    The result and what the backward pass needs beside it are called "attention" for
    `nn.stack`.
    """
    run = functools.partial(_attend, q.shape[1] if length is None else length)
    return by_device(run, q, k, v, tensor=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(length: int, q: Array, k: Array, v: Array) -> Array:
    return forward(q, k, v, length)[0]


def _forward(length: int, *arrays: Array) -> tuple:
    found = forward(*arrays, length)
    out, sums = (checkpoint_name(a, "attention") for a in found)
    return out, (arrays, out, sums)


def _backward(length: int, kept: tuple, cotangent: Array) -> tuple:
    return backward(*kept, cotangent, length)


_attend.defvjp(_forward, _backward)


def gains(q: Array, k: Array) -> bool:
    """Whether there is a Hopper GPU, the kernels take these, and fill the GPU.

    In bfloat16 alone, which is what has been measured. A program has one head of one
    image: for fewer of them than multiprocessors, cuDNN divides a head. Where a batch
    does not divide over the devices, each would compute all of it.
    """
    known = q.dtype == jnp.bfloat16 and not _unknown(q, k)
    if not known or missing() or len(q) % shard_count():
        return False
    programs = len(q) * q.shape[2] / (shard_count() * tensor_shards())
    return programs >= backends.multiprocessors()


def _unknown(q: Array, k: Array) -> str:
    """What the kernels do not know of these; empty where they know them."""
    _, n, heads, width = q.shape
    if q.shape == k.shape and supports(n, width, q.dtype):
        return ""
    return f"{n} {q.dtype} queries and {k.shape[1]} keys, {heads} heads of {width}"


def missing() -> str:
    """Why these kernels cannot run here; empty where they can."""
    if not backends.is_hopper():
        return "there is no Hopper GPU (H100, H200)"
    if jax.__version_info__ < OLDEST:
        return f"jax {jax.__version__} is older than {'.'.join(map(str, OLDEST))}"
    return backends.missing("mosaic_gpu")


def check(q: Array, k: Array, mask: Any, drop: Any) -> None:
    """Raises ValueError for what the kernels cannot do, or where they cannot run."""
    if mask is not None or drop is not None:
        raise ValueError(
            f"{ASKED} knows neither masks nor dropout of probabilities: set "
            'kernels.attention="auto", or model.mask_text=False or '
            "model.attention_dropout=0 if that is there."
        )
    if missing():
        raise ValueError(
            f'{ASKED} cannot be had: {missing()}. Set kernels.attention="auto".'
        )
    if _unknown(q, k):
        raise ValueError(
            f"{ASKED} needs {SIZES}, not {_unknown(q, k)}: set "
            'kernels.attention="auto".'
        )
