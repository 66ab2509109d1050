"""What is measured of a set of images: all with the project's own evaluator."""

import dataclasses

import numpy as np

from benchmarks.study.data import Reference
from pixelflow_jax.evaluation import manifold
from pixelflow_jax.evaluation.features import FEATURES, Extractor
from pixelflow_jax.evaluation.kernel_distance import kernel_distance
from pixelflow_jax.evaluation.statistics import Gaussian

KID_SUBSETS = 20


def distance_of_few(reference: Gaussian, rows: np.ndarray) -> float:
    """`statistics.frechet_distance` to the Gaussian of a few rows [n, d], n below d.

    With B = X'X / (n - 1) of centred rows X, the eigenvalues of A B that are not 0 are
    those of X A X' / (n - 1), an [n, n] matrix: a hundred times less work for 200 rows.
    """
    mean = rows.mean(0, dtype=np.float64)
    centred = (rows - mean) / np.sqrt(len(rows) - 1)
    inner = centred @ reference.covariance @ centred.T
    eigenvalues = np.linalg.eigvalsh((inner + inner.T) / 2)
    roots = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    delta = mean - reference.mean
    traces = np.trace(reference.covariance) + np.square(centred).sum()
    return float(delta @ delta + traces - 2 * roots)


@dataclasses.dataclass(frozen=True)
class Judge:
    """Compares images with the drawings that were trained on, and with those held out.

    FD-lite0 is the Fréchet distance of EfficientNet-lite0 features, which is no FID.
    """

    extractor: Extractor
    train: Reference
    heldout: Reference

    def features(self, images: np.ndarray) -> np.ndarray:
        """What the network sees in images uint8 [n, h, w, 3]."""
        return self.extractor.extract(images)[FEATURES]

    def distance(self, rows: np.ndarray) -> float:
        """FD-lite0 to the training drawings, of features [n, 1280]."""
        return distance_of_few(self.train.gaussian, rows)

    def results(self, rows: np.ndarray) -> dict[str, float]:
        """Every metric of features [n, 1280].

        `copied` is the share of images that are nearer to a training drawing than its
        nearest other drawing is: above that of the drawings held out, the network draws
        from memory.
        """
        found = {"fd_lite0": self.distance(rows)}
        found["fd_lite0_heldout"] = distance_of_few(self.heldout.gaussian, rows)
        few = min(len(rows), len(self.heldout.rows))
        found["kid_lite0_heldout"] = kernel_distance(
            rows, self.heldout.rows, subset_size=few, subsets=KID_SUBSETS
        ).mean
        for name, against in (("", self.train), ("_heldout", self.heldout)):
            pair = manifold.precision_recall(rows, against.rows)
            found |= {f"precision{name}": pair[0], f"recall{name}": pair[1]}
        return found | {"copied": self.copied(rows)}

    def copied(self, rows: np.ndarray) -> float:
        """The share nearer to a training drawing than its nearest other drawing."""
        balls = manifold.inside_balls(rows, self.train.rows, self.train.radii(1)).balls
        return float((balls > 0).mean())

    def own(self) -> dict[str, float]:
        """What the drawings held out score themselves."""
        rows = self.heldout.rows
        return {"fd_lite0": self.distance(rows), "copied": self.copied(rows)}

    def nearest(self, rows: np.ndarray) -> np.ndarray:
        """The number of the nearest training drawing of each of a few rows."""
        gaps = rows[:, None] - self.train.rows[None]
        return np.square(gaps).sum(-1).argmin(1)
