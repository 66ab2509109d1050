"""Data too small for what is asked of it is said to be, with the numbers."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.decoding import MAX_FILE_BYTES, MAX_PIXELS, SUFFIXES, WEIGHTS
from pixelflow_jax.data.fingerprint import saved_class_names
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.source import class_changes
from pixelflow_jax.errors import DataError
from tests.data.batches import open_loader

DOCS = pathlib.Path(__file__).parents[2] / "docs"


@pytest.fixture
def root(tmp_path):
    """Four images of two classes, one of them tiny."""
    for k, size in enumerate(((16, 16), (16, 16), (16, 20), (3, 2))):
        path = tmp_path / "in" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (k, 0, 0)).save(path)
    return tmp_path / "in"


def batch(source, **options):
    data = Data(source=source, image_size=16, threads=1)
    options = {"split": "train", "batch_size": 2, "seed": 0} | options
    with open_loader(data, **options) as loader:
        return next(loader), loader


def test_few_images_are_said(root, caplog):
    batch(ImageFolder(path=str(root)), batch_size=6)
    assert "There are 4 images and a batch takes 6" in caplog.text
    assert "lower batch_size" in caplog.text


def test_small_images_are_said(root, tmp_path, caplog):
    batch(ImageFolder(path=str(root)))
    small = (
        "1 of 4 looked at, images are smaller than 16 x 16 pixels, the smallest 3 x 2"
    )
    assert small in caplog.text and 'crop.small="error"' in caplog.text
    caplog.clear()
    out = tmp_path / "out"
    assert prepare.main(["shards", str(root), str(out), "--workers", "1"]) == 0
    batch(Shards(path=str(out)))
    assert "1 of 4 images are smaller than 16 x 16 pixels" in caplog.text


def test_nothing_is_said_where_there_is_enough(root, caplog):
    (root / "b" / "3.png").unlink()
    batch(ImageFolder(path=str(root)))
    batch(ImageFolder(path=str(root)), batch_size=9, repeat=False)
    assert not caplog.text


@pytest.mark.parametrize("repeat", [True, False])
def test_a_batch_of_one_is_a_batch(root, repeat):
    source = ImageFolder(path=str(root))
    whole, _ = batch(source, batch_size=2, repeat=repeat)
    options = {"batch_size": 2, "part_count": 2, "repeat": repeat}
    for index in (0, 1):  # the part that one process of two has
        one, _ = batch(source, parts=(index,), **options)
        np.testing.assert_array_equal(one["image"][0], whole["image"][index])
        assert one["label"].shape == (1,)
    assert batch(source, batch_size=1, repeat=repeat)[0]["image"].shape[0] == 1


def test_what_labels_mean_is_part_of_a_loaders_state(root):
    _, loader = batch(ImageFolder(path=str(root)))
    state = loader.state()
    assert saved_class_names(state) == ("a", "b")
    loader.check(state)
    (root / "a").rename(root / "c")
    _, other = batch(ImageFolder(path=str(root)))
    with pytest.raises(DataError, match="gone: a; new: c; label 0: 'a' -> 'b'"):
        other.check(state)
    for name in ("class_names", "records"):
        del state["fingerprint"][name]  # as earlier versions wrote it
    other.check(state)
    assert saved_class_names(state) is None


def test_changes_of_classes_are_short():
    many = tuple(f"class {k}" for k in range(1000))
    assert len(class_changes(many, many[::-1])) < 100
    assert len(class_changes(many, ("a", "b"))) < 300
    assert class_changes(("a", "b"), ("a", "b", "\x1b")) == r"new: \x1b"


def test_the_page_says_what_the_code_does():
    page = (DOCS / "images.md").read_text()
    for suffix in SUFFIXES:
        assert f"`{suffix}`" in page
    for format, weight in WEIGHTS.items():
        assert f"{format} {weight}" in page
    assert f"{MAX_PIXELS:,}" in page and f"{MAX_FILE_BYTES:,}" in page
    assert np.prod((11648, 8736)) < MAX_PIXELS  # the largest cameras
