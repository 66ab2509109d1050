"""Precision and recall of k-nearest-neighbour balls, block by block on the device.

A set's manifold is the union of balls about its features, each as wide as the distance
to the k-th nearest other (Kynkäänniemi et al. 2019). All distances are squared and
float32: n_u - 2 u v + n_v, 0 for equal rows, with matrix products of full precision, of
rows from which the reference's mean is taken: that moves no distance, and where all
rows are much alike it leaves them the digits that large norms would take. No matrix of
all pairs is ever in memory, but one of `Blocks`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.errors import EvaluationError

ADM_K, PRDC_K = 3, 5
# Of the squared norms: what rounding leaves of the distance of equal rows, at most.
ROUNDED = 2.0**-18


class Blocks(NamedTuple):
    """How many rows meet how many columns at once."""

    rows: int = 4096
    columns: int = 8192


DEFAULT = Blocks()


class PRDC(NamedTuple):
    """Precision, recall, density and coverage (Naeem et al. 2020)."""

    precision: float
    recall: float
    density: float
    coverage: float


class Against(NamedTuple):
    """By query: how many balls hold it, and the squared distance to the nearest."""

    balls: np.ndarray
    nearest: np.ndarray


def precision_recall(
    sample: np.ndarray,
    reference: np.ndarray,
    k: int = ADM_K,
    *,
    clamp: float | None = None,
    blocks: Blocks = DEFAULT,
) -> tuple[float, float]:
    """ADM's precision and recall of features [n, d] and [m, d], in float32.

    Precision is the share of the sample within a ball of the reference, recall the
    other way; a ball holds its surface. `clamp`: balls wider than that percentile of
    their set's become points. Raises EvaluationError where a set has k images or fewer.
    """
    sample, reference = _centred(sample, reference)
    widths = [
        clamped(radii(rows, k, blocks=blocks), clamp) for rows in (sample, reference)
    ]
    inside = inside_balls(sample, reference, widths[1], blocks=blocks).balls
    covered = inside_balls(reference, sample, widths[0], blocks=blocks).balls
    return float((inside > 0).mean()), float((covered > 0).mean())


def prdc(
    sample: np.ndarray,
    reference: np.ndarray,
    k: int = PRDC_K,
    *,
    blocks: Blocks = DEFAULT,
) -> PRDC:
    """Precision, recall, density and coverage, as their authors' code has them.

    Unlike ADM's, a ball leaves out its surface. Density is the mean number of the
    reference's balls about a sample, over k; coverage, the share of them that hold one.
    """
    sample, reference = _centred(sample, reference)
    wide, own = (radii(rows, k, blocks=blocks) for rows in (reference, sample))
    of_sample = inside_balls(sample, reference, wide, strict=True, blocks=blocks)
    of_real = inside_balls(reference, sample, own, strict=True, blocks=blocks)
    return PRDC(
        precision=float((of_sample.balls > 0).mean()),
        recall=float((of_real.balls > 0).mean()),
        density=float(of_sample.balls.sum(dtype=np.float64) / (k * len(sample))),
        coverage=float((of_real.nearest < wide).mean()),
    )


def radii(rows: np.ndarray, k: int, *, blocks: Blocks = DEFAULT) -> np.ndarray:
    """The squared distance [n] of each row [n, d] to its k-th nearest other.

    A row is its own nearest, at index 0. Raises EvaluationError for k rows or fewer.
    """
    if len(rows) <= k:
        raise EvaluationError(
            f"The {k} nearest neighbours of an image need more than {k} images in each "
            f"set, and one has {len(rows)}: draw more, or leave precision and recall "
            "out of --metrics."
        )
    columns = _Columns.of(rows, np.zeros(len(rows), np.float32), blocks)
    parts = [
        np.asarray(_nearest(block, columns, k=k))[:count]
        for block, count in _row_blocks(rows, blocks)
    ]
    return np.concatenate(parts)


def clamped(widths: np.ndarray, percentile: float | None) -> np.ndarray:
    """Radii in which those above that percentile are 0; all of them, where None."""
    if percentile is None:
        return widths
    return np.where(widths > np.percentile(widths, percentile), 0, widths)


def inside_balls(
    queries: np.ndarray,
    centres: np.ndarray,
    widths: np.ndarray,
    *,
    strict: bool = False,
    blocks: Blocks = DEFAULT,
) -> Against:
    """Of queries [n, d]: in how many balls about `centres` [m, d] each lies.

    `widths` [m] are squared radii; `strict` leaves out the surfaces.
    """
    columns = _Columns.of(centres, widths, blocks)
    parts = [
        [np.asarray(part)[:count] for part in _inside(block, columns, strict=strict)]
        for block, count in _row_blocks(queries, blocks)
    ]
    balls, nearest = (np.concatenate(one) for one in zip(*parts, strict=True))
    return Against(balls, nearest)


def _centred(sample: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, ...]:
    """Both less the mean of the reference, float32."""
    mean = reference.mean(0, dtype=np.float64).astype(np.float32)
    return tuple(np.asarray(rows, np.float32) - mean for rows in (sample, reference))


class _Columns(NamedTuple):
    """Rows that all others meet, divided into blocks; `real` is 0 for what fills up."""

    rows: Array  # [blocks, columns, d]
    widths: Array  # [blocks, columns]
    real: Array  # [blocks, columns]

    @classmethod
    def of(cls, rows: np.ndarray, widths: np.ndarray, blocks: Blocks) -> "_Columns":
        size = min(blocks.columns, len(rows))
        count = -(-len(rows) // size)

        def divided(array: np.ndarray) -> Array:
            filled = np.zeros((count * size, *array.shape[1:]), np.float32)
            filled[: len(array)] = array
            return jnp.asarray(filled.reshape(count, size, *array.shape[1:]))

        real = np.ones(len(rows), np.float32)
        return cls(divided(rows), divided(widths), divided(real))


def _row_blocks(rows: np.ndarray, blocks: Blocks):
    """Blocks of one size, the last filled up, and how many of its rows count."""
    size = min(blocks.rows, len(rows))
    for first in range(0, len(rows), size):
        block = np.asarray(rows[first : first + size], np.float32)
        count = len(block)
        if count < size:
            block = np.concatenate([block, np.zeros((size - count, *block.shape[1:]))])
        yield block.astype(np.float32), count


def _distances(u: Array, v: Array, real: Array) -> Array:
    """Squared distances [m, n] of rows [m, d] and [n, d]; infinite to what fills up."""
    products = jnp.matmul(u, v.T, precision="highest")
    norms_u, norms_v = (jnp.sum(x * x, 1) for x in (u, v))
    norms = norms_u[:, None] + norms_v[None]
    squares = norms - 2 * products
    # Equal rows are at 0, so that balls of no width hold them.
    squares = jnp.where(squares > ROUNDED * norms, squares, 0)
    return jnp.where(real[None] > 0, squares, jnp.inf)


@functools.partial(jax.jit, static_argnames="k")
def _nearest(rows: Array, columns: _Columns, *, k: int) -> Array:
    """The (k + 1)-th smallest squared distance of each row to all columns."""

    def step(smallest: Array, column: _Columns) -> tuple[Array, None]:
        distances = _distances(rows, column.rows, column.real)
        every = jnp.concatenate([smallest, distances], 1)
        return -jax.lax.top_k(-every, k + 1)[0], None

    start = jnp.full((len(rows), k + 1), jnp.inf)
    return jax.lax.scan(step, start, columns)[0][:, k]


@functools.partial(jax.jit, static_argnames="strict")
def _inside(rows: Array, columns: _Columns, *, strict: bool) -> tuple[Array, Array]:
    """By row, the number of balls that hold it and its nearest centre."""

    def step(carry: tuple[Array, Array], column: _Columns) -> tuple:
        balls, nearest = carry
        distances = _distances(rows, column.rows, column.real)
        widths = column.widths[None]
        held = distances < widths if strict else distances <= widths
        return (
            balls + held.sum(1, dtype=jnp.int32),
            jnp.minimum(nearest, distances.min(1)),
        ), None

    count = len(rows)
    start = jnp.zeros(count, jnp.int32), jnp.full(count, jnp.inf)
    return jax.lax.scan(step, start, columns)[0]
