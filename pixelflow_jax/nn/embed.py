"""Embeddings of times, classes, texts and token positions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pixelflow_jax.nn.layers import TORCH, Initial, RMSNorm, linear
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.nn.precision import Precision


def sinusoid(t: Array, width: int, period: float, closed: bool = False) -> Array:
    """Sinusoidal time features [cos, sin] with frequencies period^(-j / (width / 2)).

    `t` [...] gives float32 [..., width]; t is used unscaled (PixNerd's period is 10,
    not the usual 10,000, because its t lies in [0, 1]). `closed`: the frequencies end
    in 1 / period itself, so that j is divided by width / 2 - 1 (PixelFlow).
    """
    half = width // 2
    # At t = 999 the last bit of a frequency shows, so numpy rounds where the official
    # code does; XLA would rather multiply by 1 / half.
    j = np.arange(half, dtype=np.float32)
    exponents = np.float32(-np.log(period)) * j / np.float32(half - closed)
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class TimeEmbed(nnx.Module):
    """Linear-SiLU-Linear on 256 sinusoidal features of the time, or of another number.

    `closed` is `sinusoid`'s; `bias_init` is PyTorch's default unless given.
    """

    features = 256

    def __init__(
        self,
        width: int,
        period: float,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        closed: bool = False,
        bias_init: Callable | None = None,
    ):
        init = {"init": nnx.initializers.normal(0.02), "bias_init": bias_init}
        self.period = period
        self.closed = closed
        self.hidden = linear(self.features, width, precision, rngs, **init)
        self.out = linear(width, width, precision, rngs, **init)

    def __call__(self, timestep: Array) -> Array:
        """Times [b] to embeddings [b, width]."""
        features = sinusoid(timestep, self.features, self.period, self.closed)
        return self.out(jax.nn.silu(self.hidden(features)))


class ClassEmbed(nnx.Module):
    """A table of class embeddings whose last row is the null class."""

    def __init__(self, num_classes: int, width: int, rngs: nnx.Rngs):
        table = nnx.initializers.normal(0.02)(rngs.params(), (num_classes + 1, width))
        self.table = nnx.Param(table)

    def __call__(self, labels: Array) -> Array:
        """Labels [b] in [0, num_classes] to embeddings [b, width], float32."""
        return self.table[...][labels]


class TextEmbed(nnx.Module):
    """A linear layer and an RMS norm; the learnt places are added afterwards.

    `place_init` initialises the places [length, width].
    """

    def __init__(
        self,
        inputs: int,
        length: int,
        width: int,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        place_init: Callable,
        initial: Initial = TORCH,
    ):
        inits = {"init": initial.kernel, "bias_init": initial.bias}
        self.proj = linear(inputs, width, precision, rngs, **inits)
        self.norm = RMSNorm(width)
        self.position = nnx.Param(place_init(rngs.params(), (length, width)))

    def __call__(self, states: Array) -> Array:
        """States [b, length, inputs] to tokens [b, length, width].

        Raises ValueError for another length or width than the model's.
        """
        length, inputs = len(self.position[...]), self.proj.in_features
        if states.shape[1:] != (length, inputs):
            raise ValueError(
                f"This model reads texts of exactly {length} tokens of width {inputs}, "
                f"not {states.shape[1]} of {states.shape[2]}: pad or cut texts to "
                "model.text_length, with states of model.text_width."
            )
        normal = self.normal(states)
        return (normal.astype(jnp.float32) + self.position[...]).astype(normal.dtype)

    def normal(self, states: Array) -> Array:
        """The same without places."""
        return self.norm(self.proj(states))


def rotary_table(
    rows: int,
    columns: int,
    head_width: int,
    extent: float | tuple[float, float] | None,
    halves: bool = False,
    row_first: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """2D rotary table: cos, sin float32 [rows * columns, head_width / 2].

    Any grid spans 0..extent in both directions, ends included; a pair is for the column
    and for the row. Where `extent` is None, positions are the integers 0, 1, ...
    instead. Frequencies are w_k =
    10000^(-4k / head_width). Column x and row y are interleaved, pair 2k of a head
    turning by x * w_k and pair 2k + 1 by y * w_k (PixNerd), or, with `halves`, the
    first half of the pairs turns by x and the second by y (PixelFlow). `row_first`
    exchanges x and y (PixelGen, in halves). `head_width` must be divisible by 4.
    """
    if head_width % 4:
        raise ValueError(
            f"2D rotary embedding needs a head width divisible by 4, not {head_width}: "
            "change width or heads."
        )
    ends = extent if isinstance(extent, tuple) else (extent, extent)
    x, y = (
        np.linspace(0, n - 1 if end is None else end, n, dtype=np.float32)
        for n, end in zip((columns, rows), ends, strict=True)
    )
    w = 10000.0 ** (-np.arange(0, head_width, 4, dtype=np.float32) / head_width)
    grid = np.stack(np.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2)
    angles = grid * w[:, None]  # [n, frequencies, 2]
    if row_first:
        angles = angles[..., ::-1]
    if halves:
        angles = angles.swapaxes(1, 2)
    angles = angles.reshape(rows * columns, head_width // 2)
    return np.cos(angles), np.sin(angles)


def identity_rope(
    table: tuple[np.ndarray, np.ndarray], count: int
) -> tuple[np.ndarray, ...]:
    """A rotary table with `count` tokens before the others that do not turn."""
    cos, sin = table
    ahead = ((count, 0), (0, 0))
    return np.pad(cos, ahead, constant_values=1), np.pad(sin, ahead)


def sincos_table(rows: int, columns: int, width: int) -> np.ndarray:
    """Additive 2D position table, float32 [rows * columns, width]; width in fours.

    The first half of the width is for the column and the second for the row; each is
    [sin, cos] of the integer position times 10000^(-k / (width / 4)). PixelGen, as in
    MAE (He et al. 2022).
    """
    w = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width // 4))

    def waves(n: int) -> np.ndarray:
        angles = np.arange(n, dtype=np.float64)[:, None] * w
        return np.concatenate([np.sin(angles), np.cos(angles)], -1)

    x, y = np.tile(waves(columns), (rows, 1)), np.repeat(waves(rows), columns, 0)
    return np.concatenate([x, y], -1).astype(np.float32)


def pack_patches(
    images: tuple[Array, ...], patch: int, dtype: jnp.dtype
) -> tuple[Packing, Array]:
    """The patches of images [b_i, h_i, w_i, c], packed: [rows, n, patch^2 * c]."""
    patches = [patchify(image.astype(dtype), patch) for image in images]
    flat = [p.reshape(*p.shape[:2], -1) for p in patches]
    packing = Packing.of(flat)
    return packing, packing.join(flat)


def pack_tables(
    packing: Packing, tables: list[tuple[np.ndarray, ...]]
) -> tuple[Array, ...]:
    """One tuple of tables [n_i, d] a group, as a tuple of tables for packed tokens."""
    return tuple(
        packing.tile([jnp.asarray(table) for table in same])
        for same in zip(*tables, strict=True)
    )


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turn adjacent pairs of the last axis: (a, b) -> (a cos - b sin, a sin + b cos).

    `x` [..., n, heads, head_width]; `cos`, `sin` [n, head_width / 2]. Computed in
    float32, returned in x's type.
    """
    x32 = x.astype(jnp.float32)
    pairs = x32.reshape(*x.shape[:-1], -1, 2)
    # Exchanged rather than taken apart: one pass over memory, forward and backward.
    exchanged = pairs[..., ::-1].reshape(x.shape)
    cos = jnp.repeat(cos, 2, -1)[:, None, :]
    sin = jnp.stack([-sin, sin], -1).reshape(len(sin), 1, -1)
    return (x32 * cos + exchanged * sin).astype(x.dtype)


def rotate_halves(x: Array, cos: Array, sin: Array) -> Array:
    """`rotate`, but a pair is a number of the first half and its like of the second.

    The layout of GPT-NeoX, Llama and Qwen.
    """
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
    return turned.astype(x.dtype)
