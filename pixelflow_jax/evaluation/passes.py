"""One pass over a set of images, divided among the processes."""

import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from pixelflow_jax import sharding
from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.evaluation.accumulator import Accumulator, SetFeatures
from pixelflow_jax.evaluation.features import Extractor
from pixelflow_jax.evaluation.image_sets import NpzImages
from pixelflow_jax.evaluation.metrics import required
from pixelflow_jax.sampling.batches import Generated
from pixelflow_jax.sampling.stream import Stream

BATCH = 256  # images read, or looked at, together at least


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
    """Add this process' part of each batch to what it has seen.

    Small batches that follow one another are one to the networks, whose programs have a
    fixed batch, too: on a CPU images are drawn one by one.
    """
    own = sharding.MeshShape().build(jax.local_devices())
    for place, images in _together(batches):
        cuts = np.linspace(0, len(images), jax.process_count() + 1).astype(int)
        start, end = cuts[jax.process_index() : jax.process_index() + 2]
        with jax.set_mesh(own):  # extractors know nothing of the mesh of a run
            seen.add(extractors, images[start:end], place + int(start))


def _together(
    batches: Iterable[tuple[int, np.ndarray]],
) -> Iterator[tuple[int, np.ndarray]]:
    """Batches of `BATCH` images or more; fewer before a gap, and at the end."""
    first, held = 0, []
    for place, images in batches:
        if held and place != first + sum(map(len, held)):
            yield first, np.concatenate(held)
            held = []
        first = first if held else place
        held.append(images)
        if sum(map(len, held)) >= BATCH:
            yield first, np.concatenate(held)
            held = []
    if held:
        yield first, np.concatenate(held)


class WatchedDraw:
    """Draws a stream, and shows its images to the networks of metrics.

    Called like `Stream.recorded` by what writes the images. Images that an earlier
    sitting drew are read from the file that it left, by `features`: what networks saw
    then died with that process, and nothing on disk can disagree with the images.
    """

    def __init__(
        self,
        stream: Stream,
        names: Sequence[str],
        extractors: Mapping[str, Extractor],
    ):
        self._stream, self._extractors = stream, extractors
        self._seen = Accumulator(required(names))
        self._begin = stream.draw.count  # the first image that this sitting draws
        self._waiting: list[tuple[int, np.ndarray]] = []  # drawn, and not looked at
        self._seconds, self._images = 0.0, 0

    def __call__(self, start: int) -> Iterator[tuple[int, Generated]]:
        """Yield (place, images) from place `start` on, and look at them afterwards."""
        self._begin = start
        begun = None  # the first batch compiles
        for place, drawn in self._stream.recorded(start):
            yield place, drawn
            self._waiting.append((place, to_uint8(drawn.images)))
            if sum(len(images) for _, images in self._waiting) >= BATCH:
                self._look()
            if begun is not None:
                self._seconds = time.perf_counter() - begun
                self._images += len(drawn.images)
            begun = begun or time.perf_counter()

    def features(self, path: pathlib.Path) -> dict[str, SetFeatures]:
        """What was seen of all images, which `path`, an npz file, holds.

        On every process; only the first one needs the file.
        """
        self._look()
        earlier = _shared_batches(path, self._begin, self._stream.shape)
        look(self._seen, earlier, self._extractors)
        return self._seen.gathered().features(self._stream.draw.count)

    def _look(self) -> None:
        look(self._seen, self._waiting, self._extractors)
        self._waiting = []

    @property
    def seconds_per_image(self) -> float | None:
        """Of drawing and looking, in this sitting; None where it drew too little."""
        return self._seconds / self._images if self._images else None


def _shared_batches(
    path: pathlib.Path, count: int, shape: tuple[int, int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """The first `count` images of a file that one process has, on every process."""
    leads = jax.process_index() == 0
    batches = NpzImages(path).batches(BATCH) if leads and count else iter(())
    for first in range(0, count, BATCH):
        size = min(BATCH, count - first)
        if leads:
            images = next(batches)[1][:size]
        else:
            images = np.zeros((size, *shape), np.uint8)
        yield first, images if jax.process_count() == 1 else _from_first(images)


def _from_first(images: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(images))
