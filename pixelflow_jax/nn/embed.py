"""Embeddings of times, classes, texts and token positions."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Real, Shaped

from pixelflow_jax.nn.layers import TORCH, Initial, Initializer, RMSNorm, linear
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.nn.precision import Precision

# cos and sin of the angles by which pairs of a head's numbers turn, a row a token.
Rope = tuple[Float[Array, "tokens pairs"], Float[Array, "tokens pairs"]]
Table = Float[np.ndarray, "_ _"]  # a row a token


def sinusoid(
    t: Real[Array, "*axes"], width: int, period: float, closed: bool = False
) -> Float[Array, "*axes {width}"]:
    """Sinusoidal time features [cos, sin] with frequencies period^(-j / (width / 2)).

    In float32; t is used unscaled (PixNerd's period is 10, not the usual 10,000,
    because its t lies in [0, 1]). `closed`: the frequencies end in 1 / period itself,
    so that j is divided by width / 2 - 1 (PixelFlow).
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
        bias_init: Initializer | None = None,
    ):
        layer = functools.partial(
            linear,
            precision=precision,
            rngs=rngs,
            init=nnx.initializers.normal(0.02),
            bias_init=bias_init,
        )
        self.period = period
        self.closed = closed
        self.hidden = layer(self.features, width)
        self.out = layer(width, width)

    def __call__(self, timestep: Real[Array, " b"]) -> Float[Array, "b width"]:
        """The embeddings of times, or of other numbers."""
        features = sinusoid(timestep, self.features, self.period, self.closed)
        return self.out(jax.nn.silu(self.hidden(features)))


class ClassEmbed(nnx.Module):
    """A table of class embeddings whose last row is the null class."""

    def __init__(self, num_classes: int, width: int, rngs: nnx.Rngs):
        table = nnx.initializers.normal(0.02)(rngs.params(), (num_classes + 1, width))
        self.table = nnx.Param(table)

    def __call__(
        self, labels: Int[Array | np.ndarray, " b"]
    ) -> Float[Array, "b width"]:
        """The float32 embeddings of labels in [0, num_classes]."""
        return self.table[...][labels]


class TextEmbed(nnx.Module):
    """A linear layer and an RMS norm; learnt positions are added afterwards.

    `position_init` initialises the positions [length, width].
    """

    def __init__(
        self,
        inputs: int,
        length: int,
        width: int,
        precision: Precision,
        rngs: nnx.Rngs,
        *,
        position_init: Initializer,
        initial: Initial = TORCH,
    ):
        init, bias_init = initial.kernel, initial.bias
        self.proj = linear(
            inputs, width, precision, rngs, init=init, bias_init=bias_init
        )
        self.norm = RMSNorm(width)
        self.position = nnx.Param(position_init(rngs.params(), (length, width)))

    def __call__(
        self, states: Float[Array, "b length inputs"]
    ) -> Float[Array, "b length width"]:
        """The states of a text as tokens.

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

    def normal(
        self, states: Float[Array, "b length inputs"]
    ) -> Float[Array, "b length width"]:
        """The same without positions."""
        return self.norm(self.proj(states))


def rotary_table(
    rows: int,
    columns: int,
    head_width: int,
    extent: float | tuple[float, float] | None,
    halves: bool = False,
    row_first: bool = False,
) -> tuple[Table, Table]:
    """2D rotary table: cos, sin float32 [rows * columns, head_width / 2].

    Any grid spans 0..extent in both directions, ends included; a pair of extents is for
    the column and for the row. Where `extent` is None, positions are the integers 0, 1,
    ... instead. Frequencies are w_k = 10000^(-4k / head_width). Column x and row y are
    interleaved, pair 2k of a head turning by x * w_k and pair 2k + 1 by y * w_k
    (PixNerd), or, with `halves`, the first half of the pairs turns by x and the second
    by y (PixelFlow). `row_first` exchanges x and y (PixelGen, in halves). `head_width`
    must be divisible by 4.
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


def identity_rope(table: tuple[Table, Table], count: int) -> tuple[Table, Table]:
    """A rotary table with `count` tokens before the others that do not turn."""
    cos, sin = table
    ahead = ((count, 0), (0, 0))
    return np.pad(cos, ahead, constant_values=1), np.pad(sin, ahead)


def sincos_table(rows: int, columns: int, width: int) -> Table:
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
    images: Sequence[Float[Array, "_ _ _ channels"]], patch: int, dtype: DTypeLike
) -> tuple[Packing, Float[Array, "rows n numbers"]]:
    """The patches of images, packed: a token holds patch^2 * channels numbers."""
    patches = [patchify(image.astype(dtype), patch) for image in images]
    flat = [p.reshape(*p.shape[:2], -1) for p in patches]
    packing = Packing.of(flat)
    return packing, packing.join(flat)


def pack_tables(
    packing: Packing, tables: Sequence[tuple[np.ndarray | Array, ...]]
) -> tuple[Shaped[Array, "tokens _"], ...]:
    """One tuple of tables [n_i, d] a group, as a tuple of tables for packed tokens."""
    return tuple(
        packing.tile([jnp.asarray(table) for table in same])
        for same in zip(*tables, strict=True)
    )


def rotate(
    x: Float[Array, "*axes n heads head_width"],
    cos: Float[Array | np.ndarray, "n head_width/2"],
    sin: Float[Array | np.ndarray, "n head_width/2"],
) -> Float[Array, "*axes n heads head_width"]:
    """Turn adjacent pairs of the last axis: (a, b) -> (a cos - b sin, a sin + b cos).

    Computed in float32, returned in x's type.
    """
    x32 = x.astype(jnp.float32)
    pairs = x32.reshape(*x.shape[:-1], -1, 2)
    # Exchanged rather than taken apart: one pass over memory, forward and backward.
    exchanged = pairs[..., ::-1].reshape(x.shape)
    cos = jnp.repeat(cos, 2, -1)[:, None, :]
    sin = jnp.stack([-sin, sin], -1).reshape(len(sin), 1, -1)
    return (x32 * cos + exchanged * sin).astype(x.dtype)


def rotate_halves(
    x: Float[Array, "*axes n heads head_width"],
    cos: Float[Array | np.ndarray, "n head_width/2"],
    sin: Float[Array | np.ndarray, "n head_width/2"],
) -> Float[Array, "*axes n heads head_width"]:
    """`rotate`, but a pair is a number of the first half and its like of the second.

    The layout of GPT-NeoX, Llama and Qwen.
    """
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)
    return turned.astype(x.dtype)
