"""Attention on GPUs by cuDNN: where it is available and right, and how it is called."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.kernels.choice import is_half_on_gpu


def cudnn_fits(q: Array | jax.ShapeDtypeStruct) -> bool:
    """Whether there is a GPU, half precision and a head width that cuDNN can take.

    `q` [..., head_width] is a query, or its shape and type.
    """
    head_width = q.shape[-1]
    return is_half_on_gpu(q.dtype) and head_width % 8 == 0 and head_width <= 128


def check(mask: Array | None, drop: Callable | None) -> None:
    """Raises ValueError for what cuDNN's attention gets wrong, or cannot do."""
    if mask is not None:
        raise ValueError(
            'kernels.attention="cudnn" has faults under masks, in its backward pass: '
            'set kernels.attention="auto", or model.mask_text=False if that is there.'
        )
    if drop is not None:
        raise ValueError(
            'kernels.attention="cudnn" cannot drop probabilities: set '
            'kernels.attention="auto" or model.attention_dropout=0.'
        )
    if jax.default_backend() != "gpu":
        raise ValueError(
            'attention="cudnn" needs a GPU, and there is none: set it to "auto".'
        )


def attend(q: Array, k: Array, v: Array, length: int | None = None) -> Array:
    """`nn.attention.attend` by cuDNN, without masks."""
    if length is not None:
        return _attend_first(q, k, v, (length, length))
    if q.shape[1] % 2 or k.shape[1] % 2:
        return _attend_padded(q, k, v)
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def _attend_padded(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's attention for odd lengths, which it refuses: padded, true ones given.

    To a multiple of 128: its backward pass has known faults for other padded lengths.
    """
    lengths = q.shape[1], k.shape[1]
    q, k, v = (
        jnp.pad(a, ((0, 0), (0, -a.shape[1] % 128), (0, 0), (0, 0))) for a in (q, k, v)
    )
    return _attend_first(q, k, v, lengths)[:, : lengths[0]]


def _attend_first(q: Array, k: Array, v: Array, lengths: tuple[int, int]) -> Array:
    """cuDNN's attention of the first queries to the first keys, as many as given."""
    queries, keys = (jnp.full(len(q), length, jnp.int32) for length in lengths)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=queries,
        key_value_seq_lengths=keys,
        implementation="cudnn",
    )
