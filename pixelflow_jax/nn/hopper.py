"""Attention on Hopper GPUs by our own kernels.

Of short sequences a head's queries, keys and values fit into the memory beside the
cores: forward and backward pass each read and write every number once. cuDNN's backward
pass takes several times as long as its bytes ask for at 256 tokens, and pads 288 to
384. Of long sequences, heads whose width cuDNN pads are multiplied as they are, but for
8 lanes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.kernels import backends, choice, qkv_norm_rope
from pixelflow_jax.nn.kernels.mosaic_gpu import (
    few_heads_attention,
    long_attention,
    long_attention_backward,
    long_attention_forward,
    short_attention,
    short_attention_backward,
    short_attention_forward,
)
from pixelflow_jax.nn.kernels.mosaic_gpu.steps import ROWS, Sizes
from pixelflow_jax.sharding import by_device, shard_count, tensor_shards

ASKED = 'kernels.attention="hopper"'
# What "auto" takes them for: sizes at which they have been timed.
SHORT_WIDTHS, LONGEST_SHORT = (40, 64, 72), 304
LONG_WIDTHS, SHORTEST_LONG = (72,), 1024
FEW_WIDTHS, SHORTEST_FEW = (72,), 256  # up to the same length, of few heads
PROGRAMS = 2  # or more that share a head, where there are few
BY_US = "auto", "mosaic"  # of `kernels.blocks`: norm and rotation are inside
BUSY = 0.75  # of all rounds of tiles, where a third less is lost again


def attend(q: Array, k: Array, v: Array, length: int | None = None) -> Array:
    """`nn.attention.attend` by the kernels, on each device's part of images and heads.

    The result and what the backward pass needs beside it are called "attention" for
    `nn.stack`.
    """
    run = functools.partial(_attend, q.shape[1] if length is None else length)
    return by_device(run, q, k, v, tensor=2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(length: int, q: Array, k: Array, v: Array) -> Array:
    return _find(length, q, k, v)[0]


def _forward(length: int, *arrays: Array) -> tuple:
    out, sums = _find(length, *arrays)
    return out, (arrays, out, sums)


def _backward(length: int, kept: tuple, cotangent: Array) -> tuple:
    arrays, out, sums = kept
    return _gradients(length, arrays, out, sums, cotangent)


_attend.defvjp(_forward, _backward)


def attend_projected(qkv: Array, **given: Any) -> Array:
    """Attention from a projection on: `qkv_norm_rope`, and `attend` to its results.

    `given` as of `qkv_norm_rope.on_each_device`. Values are read where the projection
    has left them: nobody copies them, unless a bias is to be learnt.
    """
    return qkv_norm_rope.on_each_device(_attend_projected, qkv, **given)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_projected(spec: qkv_norm_rope.Spec, arrays: qkv_norm_rope.Arrays) -> Array:
    if arrays.cos is not None and _turns(spec, arrays):
        # Where nobody asks for gradients, nobody needs queries and keys themselves.
        return _turning(short_attention_forward.forward_projected, spec, arrays)
    q, k = qkv_norm_rope.queries_and_keys(spec, arrays)
    return _find(q.shape[1], q, k, arrays.qkv, arrays.bias)[0]


def _turning(
    attend: Callable[..., Array], spec: qkv_norm_rope.Spec, arrays: qkv_norm_rope.Arrays
) -> Array:
    """What a kernel gives that norms and turns heads by itself."""
    both: Any = arrays.cos, arrays.sin
    angles = jnp.stack(both, -1).reshape(len(both[0]), -1)  # side by side
    gains = arrays.q_gain[0], arrays.k_gain[0]
    return attend(spec.heads, arrays.qkv, gains, angles, arrays.bias)


def _turns(spec: qkv_norm_rope.Spec, arrays: qkv_norm_rope.Arrays) -> bool:
    """Whether the forward pass can norm and turn heads by itself, by any angles."""
    if not _is_short(arrays.qkv) or spec.together:
        return False
    _, n, _, width = arrays.qkv.shape
    each_by_itself = arrays.q_gain.shape[0] == arrays.k_gain.shape[0] == 1
    return each_by_itself and short_attention.turns(Sizes(n, n, width))


def _forward_projected(
    spec: qkv_norm_rope.Spec, arrays: qkv_norm_rope.Arrays
) -> tuple[Array, tuple]:
    if arrays.bias is None:
        heads = *qkv_norm_rope.queries_and_keys(spec, arrays), arrays.qkv
    else:
        # The backward pass wants values with their bias.
        heads = qkv_norm_rope.queries_keys_and_values(spec, arrays)
    out, sums = _find(heads[0].shape[1], *heads)
    return out, (arrays, heads, out, sums)


def _backward_projected(
    spec: qkv_norm_rope.Spec, kept: tuple, cotangent: Array
) -> tuple[qkv_norm_rope.Arrays]:
    arrays, heads, out, sums = kept
    gradients = _gradients(out.shape[1], heads, out, sums, cotangent)
    return qkv_norm_rope.gradients(spec, arrays, gradients)


_attend_projected.defvjp(_forward_projected, _backward_projected)


Apart = Callable[[int, dict[str, Any]], Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_few(apart: Apart, heads: int, arrays: dict[str, Any]) -> Array:
    """Attention from a projection on for few heads, while nobody asks for gradients.

    `arrays` are arguments of `qkv_norm_rope.on_each_device`. Else `apart(heads,
    arrays)` computes it, which gives the same [b, n, width].
    """
    run = functools.partial(_turning, few_heads_attention.attend)
    mixed = qkv_norm_rope.on_each_device(run, heads=heads, **arrays)
    return mixed.reshape(*mixed.shape[:2], -1)


def _forward_few(apart: Apart, heads: int, arrays: dict[str, Any]) -> tuple:
    return jax.vjp(functools.partial(apart, heads), arrays)


def _backward_few(apart: Apart, heads: int, pull: Callable, cotangent: Array) -> tuple:
    return pull(cotangent)


attend_few.defvjp(_forward_few, _backward_few)


def _find(
    length: int, q: Array, k: Array, v: Array, bias: Array | None = None
) -> tuple[Array, Array]:
    """What queries find, and log2 of the sums of their exponentials.

    `bias`: what values lack, of projections.
    """
    if _is_short(q):
        found = short_attention_forward.forward(q, k, v, length, bias)
    else:
        found = long_attention_forward.forward(q, k, v, bias=bias)
    out, sums = (checkpoint_name(a, "attention") for a in found)
    return out, sums


def _gradients(
    length: int, arrays: tuple, out: Array, sums: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    """Those of queries, keys and values."""
    given = arrays, out, sums, cotangent
    if _is_short(out):
        return short_attention_backward.backward(*given, length)
    return long_attention_backward.backward(*given)


def gains(q: Any, k: Any, length: int | None = None) -> bool:
    """Whether there is a Hopper GPU, the kernels are known to gain, and fill the GPU.

    In bfloat16 and at sizes that have been timed alone. Of short sequences these have a
    head of an image for each multiprocessor; of long ones the last round of tiles is to
    leave few multiprocessors without work.
    Where a batch does not divide over the devices, each would compute all of it.
    """
    if q.dtype != jnp.bfloat16 or _unknown(q, k, length) or backends.missing_hopper():
        return False
    if q.shape[0] % shard_count():
        return False
    heads = q.shape[0] * q.shape[2] / (shard_count() * tensor_shards())
    cores = backends.multiprocessors()
    _, n, _, width = q.shape
    if _is_short(q):
        timed = n <= LONGEST_SHORT and width in SHORT_WIDTHS
        return timed and heads >= cores
    groups = heads * n / (ROWS * long_attention_forward.PLAN.warpgroups)
    timed = n >= SHORTEST_LONG and width in LONG_WIDTHS
    return timed and backends.busy(groups, cores) >= BUSY


def gains_few(heads: int, arrays: dict[str, Any]) -> bool:
    """Whether `attend_few` is known to gain for its `arrays`.

    In bfloat16, at sizes that have been timed, where two programs or more can share a
    head, and heads are normed by themselves and turned.
    """
    qkv = arrays["qkv"]
    b, n, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3 // heads
    asked = choice.chosen()
    if asked.attention not in ("auto", "hopper") or asked.blocks not in BY_US:
        return False
    timed = SHORTEST_FEW <= n <= LONGEST_SHORT and width in FEW_WIDTHS
    known = few_heads_attention.supports(n, width, qkv.dtype)
    turned = arrays["rope"] is not None
    if not (timed and known and turned) or len(arrays["gains"][0]) != width:
        return False
    if qkv.dtype != jnp.bfloat16 or backends.missing_hopper():
        return False
    if b % shard_count() or tensor_shards() > 1:
        return False
    return PROGRAMS * heads * b // shard_count() <= backends.multiprocessors()


def _is_short(q: Any) -> bool:
    return short_attention.supports(q.shape[1], q.shape[-1], q.dtype)


def _unknown(q: Any, k: Any, length: int | None) -> str:
    """What the kernels do not know of these; empty where they know them."""
    _, n, heads, width = q.shape
    hidden = length is not None and length != n
    is_long = long_attention.supports(n, width, q.dtype) and not hidden
    if q.shape == k.shape and (_is_short(q) or is_long):
        return ""
    words = f"{n} {q.dtype} queries and {k.shape[1]} keys, {heads} heads of {width}"
    return f"{words}, looked at as far as {length}" if hidden else words


def check(q: Array, k: Array, mask: Any, drop: Any, length: int | None = None) -> None:
    """Raises ValueError for what the kernels cannot do, or where they cannot run."""
    if mask is not None or drop is not None:
        raise ValueError(
            f"{ASKED} knows neither masks nor dropout of probabilities: set "
            'kernels.attention="auto", or model.mask_text=False or '
            "model.attention_dropout=0 if that is there."
        )
    missing = backends.missing_hopper()
    if missing:
        raise ValueError(
            f'{ASKED} cannot be had: {missing}. Set kernels.attention="auto".'
        )
    if _unknown(q, k, length):
        raise ValueError(
            f"{ASKED} needs {short_attention.SIZES}; or {long_attention.SIZES}; not "
            f'{_unknown(q, k, length)}: set kernels.attention="auto".'
        )
