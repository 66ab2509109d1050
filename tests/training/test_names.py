"""What a run calls itself: odd names of its folder, and the names of its classes."""

import os

import pytest

from pixelflow_jax.errors import DataError
from pixelflow_jax.pretrained import weights
from pixelflow_jax.training.loop import train
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory):
    """A run of two steps, in a folder whose name would be a pattern elsewhere."""
    place = tmp_path_factory.mktemp("run") / "a[x]?*\\b, é"
    train(tiny.run(images, steps=2), place)
    return place


def test_a_folder_with_brackets_in_its_name_is_read_again(images, workdir):
    train(tiny.run(images, steps=3), workdir)
    assert [line["step"] for line in tiny.history(workdir)] == [1, 2, 3]
    assert weights.find(workdir).description.step == 3
    assert not [f for f in os.listdir(workdir) if f.startswith("pixelflow_jax-")]


def test_class_names_are_those_of_the_run(images, workdir):
    names = tiny.CLASSES
    saved = weights.find(workdir).description
    assert saved.class_names == names
    (images / names[2]).rename(images / "apples")  # which would be label 1
    try:
        assert weights.find(workdir).description.class_names == names
        with pytest.raises(DataError) as refused:
            train(tiny.run(images, steps=saved.step + 1), workdir)
        message = str(refused.value)
        assert "gone: plants; new: apples" in message
        assert f"label 1: {names[1]!r} -> 'apples'" in message
    finally:
        (images / "apples").rename(images / names[2])


def test_a_run_goes_on_where_its_images_were_moved_to(images, tmp_path):
    moved = tiny.write_images(tmp_path / "images")
    train(tiny.run(moved, steps=2), tmp_path / "run")
    elsewhere = moved.rename(tmp_path / "elsewhere")
    train(tiny.run(elsewhere, steps=3), tmp_path / "run")
    assert [line["step"] for line in tiny.history(tmp_path / "run")] == [1, 2, 3]
    next(elsewhere.glob("*/*.png")).rename(elsewhere / tiny.CLASSES[0] / "new.png")
    with pytest.raises(DataError, match="images were renamed"):
        train(tiny.run(elsewhere, steps=4), tmp_path / "run")
