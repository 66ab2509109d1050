"""Embeddings of times, classes and token positions."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pixelflow_jax.nn.layers import linear
from pixelflow_jax.nn.precision import Precision


def sinusoid(t: Array, width: int, period: float) -> Array:
    """Sinusoidal time features [cos, sin] with frequencies period^(-j / (width / 2)).

    `t` [...] gives float32 [..., width]; t is used unscaled (PixNerd's period is 10,
    not the usual 10,000, because its t lies in [0, 1]).
    """
    half = width // 2
    frequencies = jnp.exp(-np.log(period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class TimeEmbed(nnx.Module):
    """Linear-SiLU-Linear on 256 sinusoidal features of the time."""

    features = 256

    def __init__(self, width: int, period: float, precision: Precision, rngs: nnx.Rngs):
        small = nnx.initializers.normal(0.02)
        self.period = period
        self.hidden = linear(self.features, width, precision, rngs, init=small)
        self.out = linear(width, width, precision, rngs, init=small)

    def __call__(self, clock: Array) -> Array:
        """Times [b] to embeddings [b, width]."""
        features = sinusoid(clock, self.features, self.period)
        return self.out(jax.nn.silu(self.hidden(features)))


class ClassEmbed(nnx.Module):
    """A table of class embeddings whose last row is the null class."""

    def __init__(self, num_classes: int, width: int, rngs: nnx.Rngs):
        table = nnx.initializers.normal(0.02)(rngs.params(), (num_classes + 1, width))
        self.table = nnx.Param(table)

    def __call__(self, labels: Array) -> Array:
        """Labels [b] in [0, num_classes] to embeddings [b, width], float32."""
        return self.table[...][labels]


def rotary_table(
    rows: int, columns: int, head_width: int, extent: float
) -> tuple[np.ndarray, np.ndarray]:
    """PixNerd's 2D rotary table: cos, sin float32 [rows * columns, head_width / 2].

    Any grid spans 0..extent in both directions, ends included. Pair 2k of a head turns
    by x * w_k and pair 2k + 1 by y * w_k, w_k = 10000^(-4k / head_width): column and
    row are interleaved, one frequency at a time. `head_width` must be divisible by 4.
    """
    if head_width % 4:
        raise ValueError(
            f"2D rotary embedding needs a head width divisible by 4, not {head_width}: "
            "change width or heads."
        )
    x = np.linspace(0, extent, columns, dtype=np.float32)
    y = np.linspace(0, extent, rows, dtype=np.float32)
    w = 10000.0 ** (-np.arange(0, head_width, 4, dtype=np.float32) / head_width)
    grid = np.stack(np.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2)
    angles = (grid * w[:, None]).reshape(rows * columns, head_width // 2)
    return np.cos(angles), np.sin(angles)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn adjacent pairs of the last axis: (a, b) -> (a cos - b sin, a sin + b cos).

    `x` [..., n, heads, head_width]; `cos`, `sin` [n, head_width / 2]. Computed in
    float32, returned in x's type.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)
