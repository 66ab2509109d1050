"""A run goes on with the data that it began with, wherever they lie, or not at all."""

import shutil

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.prepare.shard_writer import (
    Encoding,
    ShardOptions,
    write_shards,
)
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.errors import DataError
from tests.data.batches import open_loader


def write(path, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for k in range(12):
        write(tmp_path / "images" / "abc"[k % 3] / f"{k:02d}.png")
    return tmp_path / "images"


def state_of(source):
    with open_loader(Data(source=source, image_size=8), batch_size=2, seed=0) as loader:
        return loader.state()


def check(source, state, *allowed):
    with open_loader(Data(source=source, image_size=8), batch_size=2, seed=0) as loader:
        loader.check(state, allowed)


def refusal(source, state) -> str:
    with pytest.raises(DataError) as refused:
        check(source, state)
    return str(refused.value)


def swap(one, other):
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


CHANGES = {
    "a class renamed, its label kept": (
        lambda root: (root / "b").rename(root / "bb"),
        "gone: b; new: bb; label 1: 'b' -> 'bb'",
    ),
    "a class renamed, others moved": (
        lambda root: (root / "a").rename(root / "z"),
        "gone: a; new: z; label 0: 'a' -> 'b'",
    ),
    "a class added": (lambda root: write(root / "aa" / "0.png"), "new: aa"),
    "a class removed": (lambda root: shutil.rmtree(root / "b"), "gone: b"),
    "an image renamed": (
        lambda root: (root / "b" / "01.png").rename(root / "b" / "99.png"),
        "images were renamed",
    ),
    "an image added": (lambda root: write(root / "b" / "02.png"), "was 12 and is 13"),
    "an image removed": (lambda root: (root / "b" / "01.png").unlink(), "is 11"),
    "an image moved to another class": (
        lambda root: (root / "b" / "01.png").rename(root / "c" / "01.png"),
        "images were renamed",
    ),
    "all images replaced under their names": (
        lambda root: [write(path, 32) for path in root.glob("*/*.png")],
        "images were renamed, added, removed or replaced",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_data_are_refused(root, name):
    source = ImageFolder(path=str(root))
    state = state_of(source)
    change, said = CHANGES[name]
    change(root)
    message = refusal(source, state)
    assert said in message and "checkpoint.allow" in message
    check(source, state, "data")  # meant


def test_classes_that_are_swapped_are_seen(tmp_path):
    """As many images under the same names: the labels alone are others."""
    for k in range(4):
        write(tmp_path / "ab"[k % 2] / f"{k // 2}.png", 8 + 8 * (k % 2))
    source = ImageFolder(path=str(tmp_path))
    state = state_of(source)
    swap(tmp_path / "a", tmp_path / "b")
    assert "images were" in refusal(source, state)


def test_only_what_is_named_is_allowed(root):
    source = ImageFolder(path=str(root))
    state = state_of(source)
    write(root / "b" / "02.png")
    check(source, state, "data.length", "data.records")
    with pytest.raises(DataError, match="data.records"):
        check(source, state, "data.length")


def test_the_same_data_elsewhere_are_the_same(root, tmp_path):
    state = state_of(ImageFolder(path=str(root)))
    moved = tmp_path / "moved"
    root.rename(moved)
    check(ImageFolder(path=str(moved)), state)
    copied = shutil.copytree(moved, tmp_path / "copied")
    (copied / "notes.txt").write_text("beside the images")
    (copied / "a" / ".hidden.png").write_bytes(b"")
    check(ImageFolder(path=str(copied)), state)


def test_shards(root, tmp_path):
    def prepare(out, shards=2):
        source = ImageFolder(path=str(root)).open("train")
        options = ShardOptions(shards=shards)
        write_shards(
            {"train": source}, out, Encoding(size=8), description="", options=options
        )
        return Shards(path=str(out))

    state = state_of(prepare(tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "elsewhere")
    check(Shards(path=str(tmp_path / "elsewhere")), state)
    check(prepare(tmp_path / "again"), state)
    assert "images were" in refusal(prepare(tmp_path / "three", 3), state)
    swap(root / "a", root / "b")
    write(root / "a" / "01.png", 16)
    assert "images were" in refusal(prepare(tmp_path / "other"), state)


class Numbers:
    """A source from outside, with no more than it must have."""

    class_names, sizes = ("image",), None

    def __init__(self, names):
        self.names = names

    def open(self, split, image_size):
        return self

    def __repr__(self):
        return f"Numbers({self.names})"

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        image = np.zeros((8, 8, 3), np.uint8)
        facts = {"label": 0, "captions": ("",), "name": self.names[index]}
        return {"image": image, "origin": "", **facts}


def test_of_other_sources_a_few_records_are_compared():
    state = state_of(Numbers("abcdefghijkl"))
    check(Numbers("abcdefghijkl"), state)
    assert "images were" in refusal(Numbers("xbcdefghijkl"), state)


def test_states_of_earlier_versions_go_on(root):
    source = ImageFolder(path=str(root))
    state = state_of(source)
    del state["fingerprint"]["records"], state["fingerprint"]["class_names"]
    check(source, state)
