"""Shards and stored features of version 0.1 are read, bit for bit as they were then."""

import json
import pathlib

import numpy as np
import pytest

from pixelflow_jax.data.features import Features
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.transforms import CenterCrop, RandomCrop
from tests.data.batches import open_loader

FILES = pathlib.Path(__file__).parents[1] / "files" / "v1"
SHARDS = str(FILES / "shards")


@pytest.fixture(scope="module")
def expected():
    """What the code of then made of them: arrays by name, and facts of the data."""
    facts = json.loads((FILES / "expected.json").read_text())
    with np.load(FILES / "expected.npz") as arrays:
        return dict(arrays), facts["data"]


def assert_equal(array, expected):
    wide = np.asarray(array)
    wide = wide.astype(np.float32) if wide.dtype == "bfloat16" else wide
    assert wide.dtype == expected.dtype
    np.testing.assert_array_equal(wide, expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_records_are_what_they_were(expected, split):
    source = Shards(path=SHARDS).open(split)
    known = expected[1][split]
    assert list(source.class_names) == known["class_names"]
    assert source.labels.tolist() == known["labels"]
    numbers = range(len(source))
    assert [list(source.captions(i)) for i in numbers] == known["captions"]
    assert [source[i]["name"] for i in numbers] == known["names"]
    assert [source[i]["label"] for i in numbers] == known["labels"]


@pytest.mark.parametrize(
    ("name", "size", "count", "options"),
    [
        ("train", 16, 2, {"split": "train", "captions": True}),
        ("crop", 12, 1, {"split": "train"}),
        ("test", 16, 1, {"split": "test", "shuffle": False, "repeat": False}),
    ],
)
def test_batches_are_what_they_were(expected, name, size, count, options):
    crop = RandomCrop() if name == "crop" else CenterCrop()
    data = Data(source=Shards(path=SHARDS), image_size=size, crop=crop, threads=1)
    encoder = Features(SHARDS) if options.pop("captions", False) else None
    options |= {"batch_size": 4, "seed": 1}
    arrays, _ = expected
    with open_loader(data, caption_encoder=encoder, **options) as loader:
        for number in range(count):
            batch = next(loader)
            prefix = f"batch/{name}/{number}/"
            known = {k for k in arrays if k.startswith(prefix)}
            assert {prefix + key for key in batch} == known
            for key, array in batch.items():
                assert_equal(array, arrays[prefix + key])


def test_features_are_what_they_were(expected):
    arrays, facts = expected
    known = facts["features"]
    features = Features(SHARDS)
    assert features.length == known["length"]
    assert features.padding == known["padding"]
    assert features.identity == known["identity"]
    for key, array in features(known["texts"]).items():
        assert_equal(array, arrays[f"features/{key}"])
    states, mask = features.empty()
    assert_equal(states, arrays["features/empty"])
    assert_equal(mask, arrays["features/empty_mask"])
