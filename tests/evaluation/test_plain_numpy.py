"""Metrics against plain NumPy in float64, at options that no recording has."""

import functools

import numpy as np
import pytest
import scipy.linalg

from pixelflow_jax.evaluation.inception_score import (
    adm_inception_score,
    jit_inception_score,
)
from pixelflow_jax.evaluation.kernel_distance import (
    SEED,
    kernel_distance,
    polynomial,
    radial,
)
from pixelflow_jax.evaluation.manifold import (
    Blocks,
    clamped,
    prdc,
    precision_recall,
    radii,
)
from pixelflow_jax.evaluation.statistics import (
    Statistics,
    frechet_distance,
    gaussian_of,
)

TYPES = (np.float16, np.float32, np.float64)


def rows(count: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Features that no two programs round differently: of few bits."""
    draw = np.random.default_rng(seed)
    return np.round(draw.normal(shift, 1, (count, width)) * 16) / 16


def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All squared distances [n, m], by differences."""
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def widths_of(a: np.ndarray, k: int) -> np.ndarray:
    return np.sort(squares(a, a), 1)[:, k]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("k", [1, 2, 7])
def test_precision_and_recall(k, kind):
    sample, real = rows(9, 5, 0, 0.5), rows(13, 5, 1)
    across = squares(sample, real)
    expected = (
        (across <= widths_of(real, k)).any(1).mean(),
        (across.T <= widths_of(sample, k)).any(1).mean(),
    )
    given = sample.astype(kind), real.astype(kind)
    for blocks in (Blocks(), Blocks(4, 3), Blocks(1, 1)):
        assert precision_recall(*given, k, blocks=blocks) == pytest.approx(expected)
    np.testing.assert_allclose(radii(given[0], k), widths_of(sample, k), rtol=1e-5)
    with pytest.raises(ValueError, match="need more than 9 images"):
        precision_recall(*given, 9)


def test_equal_images_lie_in_each_other_s_balls_of_no_width():
    """As many are equal as are neighbours: all radii are 0, and so are distances."""
    real = np.repeat(rows(6, 300, 0, 3.0) / 3, 5, 0)
    assert precision_recall(real[::-1], real, 3) == (1.0, 1.0)
    assert precision_recall(real[:5], real, 3) == (1.0, 5 / 30)
    assert (radii(real, 3) == 0).all()


@pytest.mark.parametrize("k", [1, 5])
def test_prdc(k):
    sample, real = rows(11, 4, 2, 0.3), rows(8, 4, 3)
    across = squares(real, sample)
    wide, own = widths_of(real, k), widths_of(sample, k)
    found = prdc(sample, real, k)
    inside = across < wide[:, None]
    assert found.precision == pytest.approx(inside.any(0).mean())
    assert found.recall == pytest.approx((across < own).any(1).mean())
    assert found.density == pytest.approx(inside.sum(0).mean() / k)
    assert found.coverage == pytest.approx((across.min(1) < wide).mean())


@pytest.mark.parametrize("percentile", [0, 25, 100])
def test_wide_balls_become_points(percentile):
    sample, real = rows(10, 3, 4), rows(12, 3, 5)
    wide = widths_of(real, 3)
    wide = wide * (wide <= np.percentile(wide, percentile))
    expected = (squares(sample, real) <= wide).any(1).mean()
    found = precision_recall(sample, real, 3, clamp=percentile)[0]
    assert found == pytest.approx(expected)
    assert (clamped(wide, None) == wide).all()


def mmd(kernel, sample, real, subsets: int, size: int) -> tuple[float, float]:
    """Mean and deviation of the unbiased estimate over drawn subsets."""
    draw, values = np.random.RandomState(SEED), []
    for _ in range(subsets):
        x = sample[draw.choice(len(sample), size, replace=False)]
        y = real[draw.choice(len(real), size, replace=False)]
        within = sum(
            kernel(one[i], one[j])
            for one in (x, y)
            for i in range(size)
            for j in range(size)
            if i != j
        )
        across = sum(kernel(a, b) for a in x for b in y)
        values.append(within / (size * (size - 1)) - 2 * across / size**2)
    return float(np.mean(values)), float(np.std(values))


KERNELS = {
    "usual": (polynomial, lambda a, b: (a @ b / 6 + 1) ** 3),
    "others": (
        functools.partial(polynomial, degree=2, gamma=0.25, offset=0.5),
        lambda a, b: (0.25 * (a @ b) + 0.5) ** 2,
    ),
    "radial": (radial(2.0), lambda a, b: np.exp(-((a - b) ** 2).sum() / 8)),
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_distances(name, kind):
    sample, real = rows(9, 6, 6), rows(7, 6, 7, 0.5)
    kernel, plain = KERNELS[name]
    options = {"subsets": 3, "subset_size": 7}  # all of the smaller set
    expected = mmd(plain, sample, real, *options.values())
    given = sample.astype(kind), real.astype(kind)
    found = kernel_distance(*given, kernel=kernel, **options)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def score(logits: np.ndarray, parts: list[np.ndarray]) -> tuple[float, float]:
    found = []
    for part in parts:
        p = np.exp(logits[part]) / np.exp(logits[part]).sum(1, keepdims=True)
        found.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    return float(np.mean(found)), float(np.std(found))


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("size", [1, 4, 10, 23, 24])
def test_inception_scores_of_parts_of_any_size(size, kind):
    logits = rows(23, 11, 8) * 2
    places = np.arange(23)
    parts = [places[i : i + size] for i in range(0, 23, size)]
    found = adm_inception_score(logits.astype(kind), size)
    assert found == pytest.approx(score(logits, parts), rel=1e-9)
    if size < 24:  # as many parts
        order = np.random.RandomState(2020).permutation(23)
        parts = [order[i * 23 // size : (i + 1) * 23 // size] for i in range(size)]
        found = jit_inception_score(logits.astype(kind), size)
        assert found == pytest.approx(score(logits, parts), rel=1e-9)


@pytest.mark.parametrize(("count", "width"), [(2, 7), (5, 7), (40, 7), (4, 1)])
def test_frechet_distances_of_any_rank(count, width):
    sample, real = rows(count, width, 9, 0.3), rows(6, width, 10)
    covariances = [np.atleast_2d(np.cov(one.T)) for one in (sample, real)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1] + 0j)
    delta = sample.mean(0) - real.mean(0)
    expected = delta @ delta + sum(map(np.trace, covariances)) - 2 * np.trace(root).real
    found = frechet_distance(gaussian_of(sample), gaussian_of(real))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    swapped = frechet_distance(gaussian_of(real), gaussian_of(sample))
    assert swapped == pytest.approx(found, rel=1e-7)


@pytest.mark.parametrize("kind", TYPES)
def test_statistics_of_any_type_and_of_single_images(kind):
    given = rows(9, 4, 11).astype(kind)
    seen = Statistics(4)
    for one in given:
        seen.add(one[None])
    mean, covariance = seen.gaussian()
    exact = given.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(exact, rowvar=False), rtol=1e-10)
