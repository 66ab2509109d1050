"""Batches of several shapes: a pure function of seed and number, like all others."""

import json

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.buckets import Buckets
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.transforms import CenterCrop, RandomCrop, center_crop
from pixelflow_jax.errors import ConfigError, DataError, UnreadableImage
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.validate import validate
from tests.data.batches import open_loader
from tests.training import tiny

SHAPES = ((8, 8), (6, 10), (10, 6))
SQUARES, WIDE, TALL = 12, 6, 3
BUCKETS = Buckets(sizes=SHAPES)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Images whose red channel is their number, of three aspects: 12, 6 and 3."""
    root = tmp_path_factory.mktemp("photos")
    sizes = [(20, 20)] * SQUARES + [(30, 18)] * WIDE + [(18, 30)] * TALL
    for k, size in enumerate(sizes):
        Image.new("RGB", size, (10 * k, 0, 0)).save(root / f"{k:02d}.png")
    out = tmp_path_factory.mktemp("shards")
    command = ["shards", str(root), str(out), "--no-labels", "--size", "12"]
    assert prepare.main([*command, "--keep-aspect", "--workers", "1"]) == 0
    return out


def make_data(shards, **fields):
    source = Shards(path=str(shards))
    fields = {"image_size": 8, "buckets": BUCKETS, "threads": 2} | fields
    return Data(source=source, **fields)


def take(data, count, **options):
    options = {"split": "train", "batch_size": 4, "seed": 3} | options
    with open_loader(data, **options) as loader:
        return [next(loader) for _ in range(count)]


def numbers(batch):
    red = (batch["image"][:, 0, 0, 0] + 1) * 127.5
    return np.round(red / 10).astype(int).tolist()


def shape(batch):
    return batch["image"].shape[1:3]


def group(k):
    """Which of SHAPES image k belongs to."""
    return (k >= SQUARES) + (k >= SQUARES + WIDE)


def test_every_batch_is_of_one_shape_in_proportion_to_the_data(shards):
    batches = take(make_data(shards), 210)
    for batch in batches:
        assert all(SHAPES[group(k)] == shape(batch) for k in numbers(batch))
    counts = [[shape(b) for b in batches].count(s) for s in SHAPES]
    expected = [SQUARES * 10, WIDE * 10, TALL * 10]
    assert np.abs(np.array(counts) - expected).max() <= 2
    # In every stretch, too: no shape waits for long.
    assert all(SHAPES[2] in [shape(b) for b in batches[i : i + 9]] for i in range(200))


def test_an_epoch_of_a_shape_holds_each_of_its_images_once(shards):
    batches = take(make_data(shards), 60)
    for number, wanted in enumerate(SHAPES):
        seen = [k for b in batches if shape(b) == wanted for k in numbers(b)]
        members = [k for k in range(21) if group(k) == number]
        for first in range(0, len(seen) - len(members), len(members)):
            assert sorted(seen[first : first + len(members)]) == members
        assert seen[: len(members)] != members  # shuffled


def test_workers_processes_and_resuming_change_nothing(shards):
    expected = take(make_data(shards), 14)
    data = make_data(shards, threads=1)
    parts = [take(data, 14, parts=(i,), part_count=2) for i in (0, 1)]
    for k, batch in enumerate(expected):
        joined = np.concatenate([part[k]["image"] for part in parts])
        np.testing.assert_array_equal(joined, batch["image"])
    later = take(make_data(shards, workers=2), 6, start=8)
    for one, other in zip(later, expected[8:], strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    other = take(data, 14, seed=4)
    assert [numbers(b) for b in other] != [numbers(b) for b in expected]


def test_one_pass_covers_everything_once(shards):
    options = {"split": "train", "batch_size": 4, "seed": 0, "repeat": False}
    data = make_data(shards)
    with open_loader(data, **options, shuffle=False) as loader:
        assert loader.num_batches == 3 + 2 + 1
        batches = list(loader)
    kept = [
        k
        for batch in batches
        for k, weight in zip(numbers(batch), batch["weight"], strict=True)
        if weight
    ]
    assert kept == list(range(21))
    assert [sum(b["weight"]) for b in batches] == [4, 4, 4, 4, 2, 3]
    halves = []
    for i in (0, 1):
        options |= {"parts": (i,), "part_count": 2}
        with open_loader(data, **options, shuffle=False, start=4) as loader:
            halves.append(list(loader))
    weights = [np.concatenate([h[k]["weight"] for h in halves]) for k in (0, 1)]
    assert [w.tolist() for w in weights] == [[1, 1, 0, 0], [1, 1, 1, 0]]


def test_images_are_cropped_to_their_shape_with_least_loss():
    """The crop keeps one side whole and takes the middle of the other."""
    image = np.zeros((20, 40, 3), np.uint8)
    image[..., 0] = np.arange(40) * 6
    cut = CenterCrop()(image, (10, 18), None)
    assert cut.shape == (10, 18, 3)
    expected = image[::2, 2:-2:2, 0].astype(int)
    assert np.abs(cut[..., 0].astype(int) - expected).max() <= 4
    np.testing.assert_array_equal(cut, center_crop(image, 10, 18))
    rng = np.random.default_rng(0)
    lefts = {
        RandomCrop(scale=1.0)(image, (20, 36), rng)[0, 0, 0] // 6 for _ in range(99)
    }
    assert lefts == {0, 1, 2, 3, 4}
    assert RandomCrop()(image, (8, 16), rng).shape == (8, 16, 3)


def test_the_nearest_aspect_wins_and_then_the_nearest_area():
    buckets = Buckets(sizes=((64, 64), (32, 32), (48, 80), (80, 48)))
    sizes = np.array(
        [[500, 500], [33, 34], [480, 800], [300, 520], [900, 500], [100, 120]]
    )
    assert buckets.assign(sizes, 64).tolist() == [0, 1, 2, 2, 3, 0]
    # By ratio, so that tall and wide count alike.
    simple = Buckets(sizes=((8, 8), (16, 8), (8, 16)))
    assert simple.assign(np.array([[145, 100], [100, 145]]), 8).tolist() == [1, 2]


def test_generated_shapes_have_the_area_of_the_square():
    shapes = Buckets(multiple=16, max_ratio=2.0).shapes(256)
    assert (256, 256) in shapes and len(set(shapes)) == len(shapes) > 8
    for height, width in shapes:
        assert height % 16 == width % 16 == 0
        assert max(height, width) <= 2 * min(height, width)
        assert 256**2 - 16 * height < height * width <= 256**2
    assert all((width, height) in shapes for height, width in ((192, 336), (176, 352)))
    assert Buckets(multiple=8, max_ratio=1.0).shapes(64) == ((64, 64),)


def test_an_unreadable_image_is_replaced_by_one_of_its_shape(shards, monkeypatch):
    source = make_data(shards).open("train")
    read = type(source).__getitem__

    def broken(self, index):
        if index in (14, 20):
            raise UnreadableImage(f"{index} is broken")
        return read(self, index)

    monkeypatch.setattr(type(source), "__getitem__", broken)
    options = {"shuffle": False, "repeat": False}
    batches = take(make_data(shards, max_corrupt=1.0), 6, **options)
    assert numbers(batches[3]) == [12, 13, 15, 15]
    assert numbers(batches[5]) == [18, 19, 18, 18]


def test_shapes_without_images_and_sources_without_sizes(shards, tmp_path):
    data = make_data(shards, buckets=Buckets(sizes=(*SHAPES, (2, 30))))
    assert [s.shape for s in data.open_buckets("train")] == list(SHAPES)
    Image.new("RGB", (9, 9)).save(tmp_path / "0.png")
    folder = ImageFolder(path=str(tmp_path), labels=False)
    with pytest.raises(DataError, match="ImageFolder does not know.*--keep-aspect"):
        take(Data(source=folder, image_size=8, buckets=BUCKETS), 1)


def test_sizes_lie_in_the_index(shards):
    source = Shards(path=str(shards)).open("train")
    assert source.sizes.dtype == np.int32 and len(source.sizes) == 21
    for i in (0, 13, 20):
        assert source[i]["image"].shape[:2] == tuple(source.sizes[i])
        assert min(source.sizes[i]) == 12
    index = json.loads((shards / "train" / "dataset.json").read_text())
    assert index["image_size"] == 12


def test_other_buckets_are_other_data(shards):
    with open_loader(make_data(shards), split="train", batch_size=4, seed=3) as loader:
        saved = json.loads(json.dumps(loader.state()))
        loader.check(saved)
    other = make_data(shards, buckets=Buckets(sizes=SHAPES[:2]))
    with open_loader(other, split="train", batch_size=4, seed=3) as loader:
        with pytest.raises(DataError, match="buckets was .*10, 6.* and is"):
            loader.check(saved)


@pytest.mark.parametrize(
    ("buckets", "words"),
    [
        (Buckets(sizes=((8, 8), (8, 12))), r"model.patch=8 does not divide"),
        (Buckets(sizes=((8, 0),)), r"sizes\[0\]\[1\]=0 must be a whole"),
        (Buckets(sizes=((8, 8), (8, 8))), "names a shape twice"),
        (Buckets(multiple=0), "multiple=0 must be a whole number from 1"),
        (Buckets(max_ratio=0.5), "max_ratio=0.5 must be a finite number from 1"),
        (Buckets(multiple=64), "multiple=64 is too large for image_size=8"),
    ],
)
def test_shapes_that_do_not_work_are_refused(shards, buckets, words):
    config = tiny.experiment("", data=make_data(shards, buckets=buckets))
    with pytest.raises(ConfigError, match=words):
        validate(config)
    if "patch" not in words:
        with pytest.raises(DataError, match=words):
            take(config.data, 1)


def test_buckets_survive_json(shards):
    config = tiny.experiment("", data=make_data(shards))
    assert Experiment.from_dict(json.loads(json.dumps(config.to_dict()))) == config
