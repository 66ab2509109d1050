"""Three epochs are the same samples in the same order, however they are read."""

import collections

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from tests.data.batches import open_loader

IMAGES, BATCH, EPOCHS = 44, 12, 3  # epochs end within batches
BATCHES = IMAGES * EPOCHS // BATCH
WORKERS = [0, pytest.param(2, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for k in range(IMAGES):
        pixels = np.full((4, 4, 3), k, np.uint8)
        (root / f"{k % 3}").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(root / f"{k % 3}" / f"{k:02d}.png")
    return ImageFolder(path=str(root))


def read(source, count, workers=0, start=0, parts=(0,), part_count=1) -> np.ndarray:
    """The numbers of the images in `count` batches from `start` on; [count, b]."""
    data = Data(source=source, image_size=4, workers=workers, threads=3)
    options = {"batch_size": BATCH, "seed": 5, "parts": parts, "part_count": part_count}
    numbers = []
    with open_loader(data, start=start, **options) as loader:
        for _ in range(count):
            batch = next(loader)
            found = np.rint((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int)
            np.testing.assert_array_equal(found % 3, batch["label"])
            numbers.append(found)
    return np.stack(numbers)


@pytest.fixture(scope="module")
def expected(source):
    return read(source, BATCHES)


def test_every_epoch_holds_every_image_once(expected):
    epochs = expected.reshape(EPOCHS, IMAGES)
    for epoch in epochs:
        assert collections.Counter(epoch.tolist()) == dict.fromkeys(range(IMAGES), 1)
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_and_workers_change_nothing(source, expected, processes, workers):
    shares = [
        read(source, BATCHES, workers, parts=(index,), part_count=processes)
        for index in range(processes)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), expected)


@pytest.mark.parametrize("workers", WORKERS)
def test_resumed_anywhere_by_other_processes(source, expected, workers):
    """Several sittings, each of another number of processes, end and begin anywhere.

    Once with workers, of which 14 are started, each of which imports anew.
    """
    rng = np.random.default_rng(0)
    for _ in range(1 if workers else 6):
        borders = sorted(rng.choice(np.arange(1, BATCHES), 2, replace=False))
        ends = [*map(int, borders), BATCHES]
        found, start = [], 0
        for end, processes in zip(ends, rng.permutation([1, 2, 4]), strict=True):
            shares = [
                read(source, end - start, workers, start, (index,), int(processes))
                for index in range(int(processes))
            ]
            found.append(np.concatenate(shares, axis=1))
            start = end
        np.testing.assert_array_equal(np.concatenate(found), expected)
