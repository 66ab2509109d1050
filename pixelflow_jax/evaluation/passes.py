"""One pass over a set of images, divided among the processes."""

from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from pixelflow_jax import sharding
from pixelflow_jax.evaluation.accumulator import Accumulator, SetFeatures
from pixelflow_jax.evaluation.features import Extractor
from pixelflow_jax.evaluation.metrics import required


def set_features(
    batches: Iterable[tuple[int, np.ndarray]],
    names: Sequence[str],
    extractors: Mapping[str, Extractor],
    count: int | None = None,
) -> dict[str, SetFeatures]:
    """What metrics need of images that come as (place, uint8 batch), `count` in all.

    Every process is given all images, looks at its part of each batch, and gets the
    features of all.
    """
    seen = Accumulator(required(names))
    look(seen, batches, extractors)
    return seen.gathered().features(count)


def look(
    seen: Accumulator,
    batches: Iterable[tuple[int, np.ndarray]],
    extractors: Mapping[str, Extractor],
) -> None:
    """Add this process' part of each batch to what it has seen."""
    own = sharding.MeshShape().build(jax.local_devices())
    for place, images in batches:
        cuts = np.linspace(0, len(images), jax.process_count() + 1).astype(int)
        start, end = cuts[jax.process_index() : jax.process_index() + 2]
        with jax.set_mesh(own):  # extractors know nothing of the mesh of a run
            seen.add(extractors, images[start:end], place + int(start))
