"""Drawing and looking are one pass, and go on after a kill."""

import pathlib

import jax
import numpy as np
import pytest

from pixelflow_jax import build
from pixelflow_jax.evaluation import passes
from pixelflow_jax.evaluation.passes import WatchedDraw
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.output import Described, write_samples
from tests.evaluation.pixels import Pixels
from tests.training import tiny

NAMES, COUNT = ["fd_lite0", "pr_lite0"], 12


class Killed(Exception):
    """What a kill looks like from within."""


class Counting(Pixels):
    """Counts the images that it was shown, and may be killed."""

    def __init__(self, last: int = COUNT):
        super().__init__()
        self.last, self.shown, self.parts = last, 0, []

    def extract(self, images: np.ndarray) -> dict[str, np.ndarray]:
        if self.shown >= self.last:
            raise Killed
        self.shown += len(images)
        self.parts.append(len(images))
        return super().extract(images)


@pytest.fixture(scope="module")
def stream():
    config = tiny.experiment("unused")
    params = jax.jit(build.network(config).init)(jax.random.key(0))
    pipeline = Pipeline(config=config, params=params, class_names=tiny.CLASSES, step=6)
    return pipeline.stream([i % 3 for i in range(COUNT)], seed=2)


def sitting(stream, folder: pathlib.Path, network: Counting) -> dict:
    """What a sitting sees; it goes on with what is in the folder."""
    about = Described(
        shape=stream.shape,
        digest=stream.draw.digest,
        names=stream.draw.names,
        columns=3,
        png=False,
    )
    watched = WatchedDraw(stream, NAMES, {"lite0": network})
    paths = write_samples(folder, watched, about)
    return watched.features(paths["npz"])


def test_each_image_is_looked_at_once_while_it_is_drawn(stream, tmp_path):
    network = Counting()
    whole = sitting(stream, tmp_path / "whole", network)["lite0"]
    assert network.shown == COUNT == whole.count
    # What is drawn needs no network to be looked at again from its file.
    again = sitting(stream, tmp_path / "whole", network := Counting())["lite0"]
    assert network.shown == COUNT
    np.testing.assert_array_equal(again.rows["features"], whole.rows["features"])


def test_images_that_are_drawn_one_by_one_are_looked_at_together(
    stream, tmp_path, monkeypatch
):
    monkeypatch.setattr(passes, "BATCH", COUNT)
    assert stream.draw.per_device == 1
    sitting(stream, tmp_path / "one", network := Counting())
    assert network.parts == [COUNT]
    images = np.zeros((COUNT, 8, 8, 3), np.uint8)
    parts = [(0, images[:3]), (3, images[3:4]), (6, images[6:]), (4, images[4:6])]
    joined = passes._together(iter(parts))
    assert [(first, len(one)) for first, one in joined] == [(0, 4), (6, 6), (4, 2)]


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_killed_draw_is_measured_as_one_that_was_not(
    stream, tmp_path, after, monkeypatch
):
    monkeypatch.setattr(passes, "BATCH", 1)  # looked at as they are drawn
    whole = sitting(stream, tmp_path / "whole", Counting())["lite0"]
    with pytest.raises(Killed):
        sitting(stream, tmp_path / "killed", Counting(last=after))
    network = Counting()
    found = sitting(stream, tmp_path / "killed", network)["lite0"]
    assert network.shown == COUNT
    np.testing.assert_array_equal(found.rows["features"], whole.rows["features"])
    one, other = found.gaussians["features"], whole.gaussians["features"]
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-12)
    np.testing.assert_allclose(one.covariance, other.covariance, rtol=1e-9, atol=1e-15)
    files = [
        (tmp_path / name / "samples.npz").read_bytes() for name in ("whole", "killed")
    ]
    assert files[0] == files[1]
