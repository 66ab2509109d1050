"""The kernel distance of features (KID, Bińkowski et al. 2018): unbiased in N."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.errors import EvaluationError

SUBSETS, SUBSET_SIZE, SEED = 100, 1000, 2020
Kernel = Callable[[Array, Array], Array]


class KernelDistance(NamedTuple):
    """Mean and deviation (of a population) over the subsets."""

    mean: float
    deviation: float


def polynomial(
    x: Array,
    y: Array,
    degree: int = 3,
    gamma: float | None = None,
    offset: float = 1.0,
) -> Array:
    """(gamma x . y + offset)^degree of rows [m, d] and [n, d]: [m, n].

    The usual gamma is 1 / d.
    """
    products = x @ y.T
    scaled = products / x.shape[1] if gamma is None else products * gamma
    return (scaled + offset) ** degree


def radial(sigma: float) -> Kernel:
    """The kernel exp(-|x - y|^2 / (2 sigma^2))."""

    def kernel(x: Array, y: Array) -> Array:
        squares = (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * x @ y.T
        return jnp.exp(-jnp.maximum(squares, 0) / (2 * sigma**2))

    return kernel


def kernel_distance(
    sample: np.ndarray,
    reference: np.ndarray,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    kernel: Kernel = polynomial,
) -> KernelDistance:
    """The squared maximum mean discrepancy of features [n, d], as torch-fidelity does.

    Each subset draws rows of the sample, then of the reference, without replacement,
    from one generator of a fixed seed. The sums within a set leave out the diagonal;
    the sum across takes all pairs. Raises EvaluationError where a set is smaller than
    a subset.
    """
    smaller = min(len(sample), len(reference))
    if smaller < subset_size:
        raise EvaluationError(
            f"KID compares subsets of {subset_size} images, and one of the sets has "
            f"{smaller}: draw more images, or leave KID out of --metrics."
        )
    sample, reference = (np.asarray(one, np.float32) for one in (sample, reference))
    draw = np.random.RandomState(SEED)
    values = []
    for _ in range(subsets):
        x = sample[draw.choice(len(sample), subset_size, replace=False)]
        y = reference[draw.choice(len(reference), subset_size, replace=False)]
        within_x, within_y, across = (
            np.asarray(part, np.float64).sum() for part in _row_sums(kernel, x, y)
        )
        pairs = subset_size * (subset_size - 1)
        values.append((within_x + within_y) / pairs - 2 * across / subset_size**2)
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


@functools.partial(jax.jit, static_argnums=0)  # compiled once for all sets of a size
def _row_sums(kernel: Kernel, x: Array, y: Array) -> tuple[Array, Array, Array]:
    """By row: the sums within x and within y, diagonals left out, and across."""
    off = 1.0 - jnp.eye(len(x))
    with jax.default_matmul_precision("highest"):
        within = [(kernel(one, one) * off).sum(1) for one in (x, y)]
        return within[0], within[1], kernel(x, y).sum(1)
