"""The drawings of both splits, and what the study's judges see in them."""

import dataclasses
import functools

import numpy as np

from benchmarks.study.looking import Seen
from pixelflow_jax.data.loader import Data
from pixelflow_jax.evaluation import manifold
from pixelflow_jax.evaluation.statistics import Gaussian, gaussian_of


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A split in memory: uint8 [n, h, w, 3], and int32 labels [n]."""

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, data: Data, split: str, most: int = 0) -> "Pictures":
        """The pictures of a split as the config's crop leaves them; 0: all of them."""
        source = data.open(split)  # type: ignore[arg-type]
        size = (data.image_size, data.image_size)
        records = [source[index] for index in range(most or len(source))]
        images = [data.crop(np.asarray(one["image"]), size, None) for one in records]
        labels = [one["label"] for one in records]
        return cls(np.stack(images), np.asarray(labels, np.int32))


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the judges see in a split, and what metrics make of it."""

    seen: Seen

    @functools.cached_property
    def gaussians(self) -> Seen:
        """Mean and covariance of each judge's features."""
        return Seen(*map(gaussian_of, self.seen))  # type: ignore[arg-type]

    @property
    def gaussian(self) -> Gaussian:
        """That of EfficientNet-Lite0's."""
        return self.gaussians.lite0  # type: ignore[return-value]

    @functools.cached_property
    def near(self) -> np.ndarray:
        """The squared distance of each image to its nearest other."""
        return manifold.radii(self.seen.lite0, 1)

    @functools.cached_property
    def balls(self) -> np.ndarray:
        """The squared distance of each image to its third nearest other."""
        return manifold.radii(self.seen.lite0, manifold.ADM_K)


def epochs(count: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """Which pictures make the batches, int32 [steps, batch].

    Every epoch takes each picture once, in an order of its own.
    """
    draw = np.random.default_rng(seed)
    needed = -(-steps * batch // count)
    order = np.concatenate([draw.permutation(count) for _ in range(needed)])
    return order[: steps * batch].reshape(steps, batch).astype(np.int32)
