"""The drawings of both splits, and what EfficientNet-lite0 sees in them."""

import dataclasses
import functools

import numpy as np

from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.transforms import normalise
from pixelflow_jax.evaluation import manifold
from pixelflow_jax.evaluation.features import FEATURES, Extractor
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

    def signed(self) -> np.ndarray:
        """float32 in [-1, 1]."""
        return normalise(self.images)


@dataclasses.dataclass(frozen=True)
class Reference:
    """Features [n, 1280] of a split, and what metrics make of them."""

    rows: np.ndarray

    @classmethod
    def of(cls, pictures: Pictures, extractor: Extractor) -> "Reference":
        """What the network sees in a split."""
        return cls(extractor.extract(pictures.images)[FEATURES])

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance."""
        return gaussian_of(self.rows)

    def radii(self, k: int) -> np.ndarray:
        """The squared distance of each image to its k-th nearest other."""
        return manifold.radii(self.rows, k)


def epochs(count: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """Which pictures make the batches, int32 [steps, batch].

    Every epoch takes each picture once, in an order of its own.
    """
    draw = np.random.default_rng(seed)
    needed = -(-steps * batch // count)
    order = np.concatenate([draw.permutation(count) for _ in range(needed)])
    return order[: steps * batch].reshape(steps, batch).astype(np.int32)
