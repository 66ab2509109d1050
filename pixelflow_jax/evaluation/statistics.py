"""Mean and covariance of features in float64, gathered piece by piece.

Pieces are joined by the pairwise update of Chan, Golub & LeVeque (1983): how the rows
were divided, or in what order they came, changes the result by about 1e-12.
"""

from typing import NamedTuple

import numpy as np

from pixelflow_jax.errors import EvaluationError

# Rows that wait for one matrix product: small batches would be bound by memory.
PENDING_ROWS = 2048


class Gaussian(NamedTuple):
    """What a Fréchet distance compares: a mean [d] and a covariance [d, d], float64."""

    mean: np.ndarray
    covariance: np.ndarray


class Statistics:
    """Count, mean and scatter (the sum of outer products about the mean) of rows."""

    def __init__(self, width: int):
        self.count = 0
        self._mean = np.zeros(width)
        self._scatter = np.zeros((width, width))
        self._pending: list[np.ndarray] = []

    @property
    def width(self) -> int:
        """The number of columns."""
        return len(self._mean)

    def add(self, rows: np.ndarray) -> None:
        """Add rows [n, width].

        Raises EvaluationError where a value is not finite, ValueError for another
        width.
        """
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"rows of shape {rows.shape}, not [n, {self.width}]")
        if not np.isfinite(rows).all():
            raise EvaluationError(
                f"Features of {len(rows)} images hold values that are not finite, so "
                "no distance can be computed: look for a damaged weight file, or for "
                "images that are not numbers."
            )
        self._pending.append(np.array(rows, np.float64))
        self.count += len(rows)
        if sum(map(len, self._pending)) >= PENDING_ROWS:
            self._flush()

    def merge(self, other: "Statistics") -> None:
        """Add all rows of another, which stays as it was."""
        self._flush()
        counted = self.count
        count, mean, scatter = other.moments()
        self._join(counted, count, mean, scatter)
        self.count = counted + count

    def moments(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Count, mean [d] and scatter [d, d]: all there is, for `from_moments`."""
        self._flush()
        return self.count, self._mean, self._scatter

    @classmethod
    def from_moments(
        cls, count: int, mean: np.ndarray, scatter: np.ndarray
    ) -> "Statistics":
        """The statistics that `moments` described."""
        made = cls(len(mean))
        made.count = int(count)
        made._mean, made._scatter = mean.astype(np.float64), scatter.astype(np.float64)
        return made

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance (divided by N - 1).

        Raises EvaluationError below two rows.
        """
        count, mean, scatter = self.moments()
        if count < 2:
            raise EvaluationError(
                f"A covariance needs two images or more, not {count}: give more images."
            )
        return Gaussian(mean.copy(), scatter / (count - 1))

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = np.concatenate(self._pending)
        self._pending = []
        mean = rows.mean(0)
        centred = rows - mean
        self._join(self.count - len(rows), len(rows), mean, centred.T @ centred)

    def _join(
        self, before: int, count: int, mean: np.ndarray, scatter: np.ndarray
    ) -> None:
        """Add `count` rows of that mean and scatter to the `before` that are there."""
        if not count:
            return
        total = before + count
        delta = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(delta, delta * (before * count / total))
        self._mean = self._mean + delta * (count / total)


def gaussian_of(rows: np.ndarray) -> Gaussian:
    """Mean and unbiased covariance of rows [n, d]."""
    statistics = Statistics(rows.shape[1])
    statistics.add(rows)
    return statistics.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance of two Gaussians (Heusel et al. 2017).

    |mean_a - mean_b|^2 + tr A + tr B - 2 tr (A B)^(1/2), where the last trace is the
    sum of the roots of the eigenvalues of A^(1/2) B A^(1/2), which are those of A B.
    That holds for covariances of any rank, so nothing is added to the diagonals. Equal
    Gaussians give 0 to about 1e-13, of either sign. Raises EvaluationError where the
    widths differ or a number is not finite.
    """
    if a.mean.shape != b.mean.shape:
        raise EvaluationError(
            f"Features of {a.mean.shape[0]} and of {b.mean.shape[0]} numbers cannot be "
            "compared: the reference was made with another network. Make one with "
            "`pixelflow evaluate reference`."
        )
    parts = [np.asarray(part, np.float64) for part in (*a, *b)]
    if not all(np.isfinite(part).all() for part in parts):
        raise EvaluationError(
            "The statistics of the images or of the reference hold numbers that are "
            "not finite: download the reference again, or look at the images."
        )
    mean_a, covariance_a, mean_b, covariance_b = parts
    delta = mean_a - mean_b
    roots = _root_trace(covariance_a, covariance_b)
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    return float(delta @ delta + traces - 2 * roots)


def _root_trace(a: np.ndarray, b: np.ndarray) -> float:
    """The trace of (A B)^(1/2) of two positive semi-definite matrices."""
    values, vectors = np.linalg.eigh(a)
    kept = values > 0
    # Columns of A^(1/2) up to a rotation, which changes no eigenvalue below.
    root = vectors[:, kept] * np.sqrt(values[kept])
    inner = root.T @ b @ root
    eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
    return float(np.sqrt(np.clip(eigenvalues, 0, None)).sum())
