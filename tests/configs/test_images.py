"""The template for people's own images: classes counted, a model chosen, times said."""

import importlib
import re
import shutil

import numpy as np
import pytest

import pixelflow_jax as pf
from pixelflow_jax import build
from pixelflow_jax.errors import ConfigError, DataError
from pixelflow_jax.models.interface import count
from pixelflow_jax.training.pace import Pace, spoken
from tests.training import tiny

PATH = "data.source.path"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"), 60)


def test_classes_are_counted_and_what_was_found_is_said(images, capsys):
    config = pf.load_config("images", {PATH: images})
    assert config.model.num_classes == 3 and config.model.patch == 4
    said = capsys.readouterr().err
    assert re.search(r"5\d images to train on, of 3 classes, at 64 px", said)
    assert "learns them by heart" in said


def test_images_without_folders_are_one_class(images, tmp_path):
    for number, file in enumerate(sorted(images.rglob("*.png"))):
        shutil.copy(file, tmp_path / f"{number}.png")
    config = pf.load_config("images:256", {PATH: tmp_path})
    assert config.model.num_classes == 1 and not config.data.source.labels
    assert config.model.patch == 16


@pytest.mark.parametrize(
    ("size", "patch"), [(16, 4), (64, 4), (96, 4), (128, 8), (256, 16), (512, 16)]
)
def test_the_model_is_of_the_size(images, size, patch):
    config = pf.load_config("images", {PATH: images, "data.image_size": size})
    assert config.model.patch == patch and not config.model.problems(size, size)


def test_what_is_set_by_hand_stays(images):
    changes = {PATH: images, "model.width": 96, "model.num_classes": 7}
    config = pf.load_config("images", {**changes, "data.image_size": 128})
    assert (config.model.width, config.model.patch) == (96, 4)
    assert config.model.num_classes == 7


def test_more_images_get_a_larger_model():
    ours = importlib.import_module("pixelflow_jax.configs.images")
    sizes = {}
    for size, table in ((64, ours.SMALL), (256, ours.LARGE)):
        for images in (0, 10**6):
            model = ours.denoiser(size, images, table)
            config = ours.experiment("x", size, model)
            sizes[size, images] = count(build.network(config).shapes()) / 1e6
    listed = re.findall(r"\| +(\d+) +\| ([\d.]+)M, ([\d.]+)M from", ours.__doc__)
    assert len(listed) == 2
    for size, few, many in listed:
        written = (float(few), float(many))
        found = (sizes[int(size), 0], sizes[int(size), 10**6])
        np.testing.assert_allclose(found, written, rtol=0.015)


def test_a_folder_that_is_not_there_is_one_error(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        pf.load_config("images", {PATH: tmp_path / "nowhere"})
    # Without a folder there is nothing to count, and training asks for one.
    assert pf.load_config("images").model.num_classes == 1


@pytest.mark.slow
def test_a_run_says_what_a_step_takes_and_returns_a_pipeline(images, tmp_path, capsys):
    small = {"model.width": 16, "model.heads": 2, "model.depth": 1}
    small |= {"model.feature_layer": 0, "model.decoder.width": 4}
    small |= {"steps": 13, "batch_size": 8, "data.image_size": 8, "data.threads": 1}
    small |= {"log.preview_every": 12, "log.preview_count": 2, "optimizer.warmup": 2}
    small |= {"checkpoint.every": 20, "sampling.grid.steps": 2}
    pipeline = pf.train("images", str(tmp_path / "run"), {PATH: images, **small})
    printed = "".join(capsys.readouterr())
    assert re.search(r"A step takes .* \(.* images/s\): the 2 steps left", printed)
    assert "A preview, in previews/, comes every 12 steps" in printed
    assert pipeline.step == 13 and pipeline.class_names == tiny.CLASSES
    assert pipeline("flags", steps=2).shape == (1, 8, 8, 3)
    with pytest.raises(ConfigError, match="must be a name such as 'emoji'"):
        pf.train(3, tmp_path / "other")


def test_times_are_spoken_to_two_digits():
    times = (0.0123, 0.52, 43, 100, 3600, 7000, 90_000, 10**6)
    assert [spoken(one) for one in times] == [
        *("12 ms", "0.52 seconds", "43 seconds", "1.7 minutes", "60 minutes"),
        *("1.9 hours", "25 hours", "12 days"),
    ]


def test_the_pace_is_told_once():
    pace = Pace(steps=100, batch_size=8, checkpoint_every=200, preview_every=0)
    assert not pace.is_due(50)
    pace.begin(1)
    assert not pace.is_due(10) and pace.is_due(11) and not pace.is_due(12)
    assert "the 89 steps left" in pace.words(11) and "preview" not in pace.words(11)
