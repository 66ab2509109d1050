"""The k-th batch depends on the data, the seed and k, and on nothing else."""

import hashlib
import importlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from pixelflow_jax import config_overrides
from pixelflow_jax.data.encoded import EncodedSource
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.transforms import CenterCrop, RandomCrop
from pixelflow_jax.errors import DataError, UnreadableImage
from tests.data.batches import open_loader

COUNT, SIZE = 21, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Image k is 4 x 4: k in the red channel, a left-to-right ramp in the green."""
    root = tmp_path_factory.mktemp("images")
    for k in range(COUNT):
        write_marked(root / f"{k:03d}.png", k)
    return root


def write_marked(path, k):
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 0] = k
    pixels[..., 1] = np.arange(SIZE) * 10
    Image.fromarray(pixels).save(path)


def make_data(root, **fields):
    fields = {"image_size": SIZE, "threads": 2} | fields
    return Data(source=ImageFolder(path=str(root), labels=False), **fields)


def numbers(batch):
    """Which images a batch holds."""
    return np.round((batch["image"][:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()


def mirrored(batch):
    return (batch["image"][:, 0, 0, 1] > batch["image"][:, 0, -1, 1]).tolist()


def take(data, count, **options):
    options = {"split": "train", "batch_size": 8, "seed": 3} | options
    with open_loader(data, **options) as loader:
        return [next(loader) for _ in range(count)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_batches_are_normalised_images_and_labels(folder):
    (batch,) = take(make_data(folder), 1)
    assert set(batch) == {"image", "label"}
    assert batch["image"].shape == (8, SIZE, SIZE, 3)
    assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32
    assert batch["image"].min() == -1 and (batch["label"] == 0).all()


@pytest.mark.parametrize(
    ("size", "digest"),
    [(4, "d0f6967bca338a46"), (3, "eb0599a365b0efc5")],
    ids=["whole", "random crops"],
)
def test_batches_are_those_of_earlier_versions(folder, size, digest):
    """Order, crops and mirroring, so that a run goes on as it began."""
    crop = RandomCrop(scale=4 / 3) if size == 3 else CenterCrop()
    found = hashlib.sha256()
    for batch in take(make_data(folder, image_size=size, crop=crop), 9):
        found.update(np.round((batch["image"] + 1) * 127.5).astype(np.uint8).tobytes())
    assert found.hexdigest()[:16] == digest


@pytest.mark.parametrize("fields", [{"threads": 1}, {"threads": 8, "prefetch": 5}])
def test_threads_do_not_change_the_order(folder, fields):
    expected = take(make_data(folder), 9)
    assert_same(take(make_data(folder, **fields), 9), expected)


@pytest.mark.parametrize(("workers", "start"), [(1, 0), (2, 5)])
def test_workers_do_not_change_the_order(folder, workers, start):
    expected = take(make_data(folder), 9)
    data = make_data(folder, workers=workers)
    assert_same(take(data, 9 - start, start=start), expected[start:])


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("repeat", [True, False])
def test_processes_share_the_same_global_batch(folder, processes, repeat):
    data = make_data(folder)
    expected = take(data, 3, repeat=repeat)
    parts = [
        take(data, 3, repeat=repeat, parts=(i,), part_count=processes)
        for i in range(processes)
    ]
    joined = [
        {key: np.concatenate([part[k][key] for part in parts]) for key in expected[k]}
        for k in range(3)
    ]
    assert_same(joined, expected)


@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("parts", [(0, 1, 4, 5), (0, 3)])
def test_parts_that_lie_apart_are_rows_of_the_same_batch(folder, parts, repeat):
    """Of a host whose devices are no neighbours in the mesh."""
    data, size = make_data(folder), 16 // 8
    whole = take(data, 2, batch_size=16, repeat=repeat)
    mine = take(data, 2, batch_size=16, parts=parts, part_count=8, repeat=repeat)
    rows = [part * size + i for part in parts for i in range(size)]
    assert_same(mine, [{k: a[rows] for k, a in batch.items()} for batch in whole])


def test_no_process_reads_images_of_another(folder, monkeypatch):
    """The pass is one batch of 24; its last three rows are the first ones again."""
    read, fetch = [], EncodedSource.__getitem__
    note = lambda self, number: read.append(number) or fetch(self, number)
    monkeypatch.setattr(EncodedSource, "__getitem__", note)
    seen = []
    for parts in ((0, 3), (1, 2)):
        read.clear()
        options = {"batch_size": 24, "repeat": False, "shuffle": False}
        take(make_data(folder), 1, parts=parts, part_count=4, **options)
        seen.append(sorted(read))
    assert seen == [[0, 0, 1, 1, 2, 2, 3, 4, 5, 18, 19, 20], [*range(6, 18)]]


@pytest.mark.parametrize("start", [0, 1, 6, 40])
def test_resuming_equals_never_stopping(folder, start):
    data = make_data(folder)
    with open_loader(data, split="train", batch_size=8, seed=3) as loader:
        for _ in range(start):
            next(loader)
        state = json.loads(json.dumps(loader.state()))
        expected = [next(loader) for _ in range(3)]
    with open_loader(
        data, split="train", batch_size=8, seed=3, start=state["next_batch"]
    ) as loader:
        loader.check(state)
        assert_same([next(loader) for _ in range(3)], expected)
        assert loader.state()["next_batch"] == start + 3


def test_every_epoch_holds_every_image_in_a_new_order(folder):
    batches = take(make_data(folder), 9, batch_size=7)
    epochs = [sum(map(numbers, batches[k : k + 3]), []) for k in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(COUNT))] * 3
    assert epochs[0] != epochs[1] != epochs[2] != list(range(COUNT))
    other = take(make_data(folder), 3, batch_size=7, seed=4)
    assert sum(map(numbers, other), []) != epochs[0]


def test_without_shuffling_the_order_is_the_source_order(folder):
    batches = take(make_data(folder), 6, batch_size=7, shuffle=False)
    assert sum(map(numbers, batches), []) == 2 * list(range(COUNT))


def test_flips_are_random_and_repeatable(folder):
    batches = take(make_data(folder), 40)
    flips = sum(map(mirrored, batches), [])
    assert 110 < sum(flips) < 210  # of 320
    again = take(make_data(folder, threads=1), 40)
    assert flips == sum(map(mirrored, again), [])
    assert flips != sum(map(mirrored, take(make_data(folder), 40, seed=4)), [])
    # The same image is mirrored in some epochs and not in others.
    of_image_5 = {
        flip
        for batch in batches
        for k, flip in zip(numbers(batch), mirrored(batch), strict=True)
        if k == 5
    }
    assert of_image_5 == {True, False}
    assert not any(sum(map(mirrored, take(make_data(folder, flip=False), 9)), []))


@pytest.mark.parametrize("shuffle", [True, False])
def test_one_pass_covers_the_split_once_and_weighs_the_rest_zero(folder, shuffle):
    options = {"split": "train", "batch_size": 8, "seed": 0, "shuffle": shuffle}
    with open_loader(make_data(folder), **options, repeat=False) as loader:
        assert loader.num_batches == 3
        batches = list(loader)
        assert next(loader, None) is None
    assert len(batches) == 3
    assert all(set(b) == {"image", "label", "weight"} for b in batches)
    assert not any(sum(map(mirrored, batches), []))
    found = np.array(sum(map(numbers, batches), []))
    weight = np.concatenate([b["weight"] for b in batches])
    assert weight.dtype == np.float32
    assert sorted(found[weight == 1]) == list(range(COUNT))
    assert weight.tolist() == [1.0] * 21 + [0.0] * 3
    assert found[21:].tolist() == found[:3].tolist()  # wrapped around
    with open_loader(make_data(folder), **options, repeat=False, start=2) as loader:
        assert_same(list(loader), batches[2:])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_data_sets_fill_batches_of_any_size(tmp_path, count):
    for k in range(count):
        write_marked(tmp_path / f"{k}.png", k)
    batches = take(make_data(tmp_path), 3)
    found = sum(map(numbers, batches), [])
    for first in range(0, 24 - count, count):
        assert sorted(found[first : first + count]) == list(range(count))


def test_classes_are_known_without_a_loader(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        write_marked(tmp_path / name / "x.png", 0)
    data = Data(source=ImageFolder(path=str(tmp_path)), image_size=SIZE)
    assert data.class_names == ("a", "b", "c") and data.num_classes == 3
    assert data.open("train") is data.open("train")
    data.source.labels = False  # as the command line may do after the first use
    assert data.class_names == ("image",)


# Unreadable images


@pytest.fixture
def damaged(tmp_path):
    """Images 0 to 9 of which 3 and 4 are cut short."""
    for k in range(10):
        write_marked(tmp_path / f"{k:03d}.png", k)
    for k in (3, 4):
        file = tmp_path / f"{k:03d}.png"
        file.write_bytes(file.read_bytes()[:40])
    return tmp_path


def test_the_next_readable_image_takes_the_place(damaged, caplog):
    data = make_data(damaged, max_corrupt=0.5)
    with open_loader(
        data, split="train", batch_size=5, seed=0, shuffle=False, repeat=False
    ) as loader:
        assert numbers(next(loader)) == [0, 1, 2, 5, 5]
        assert numbers(next(loader)) == [5, 6, 7, 8, 9]
        assert loader.corrupt == 3  # 3, then 4 in its place, then 4 in its own
    lines = [r.getMessage() for r in caplog.records if "Unreadable" in r.getMessage()]
    assert len(lines) == 2 and "003.png" in lines[0] and "004.png" in lines[1]


def test_replacing_does_not_depend_on_the_batch_size(damaged):
    data = make_data(damaged, max_corrupt=1.0)
    small = sum(map(numbers, take(data, 20, batch_size=2)), [])
    large = sum(map(numbers, take(data, 2, batch_size=20)), [])
    assert small == large and not {3, 4} & set(small)


def test_too_many_unreadable_images_end_the_run(damaged):
    data = make_data(damaged)
    with open_loader(data, split="train", batch_size=10, seed=0) as loader:
        with pytest.raises(DataError) as error:
            for _ in range(20):
                next(loader)
        assert 7 <= loader.state()["next_batch"] <= 10  # not before 100 were seen
        assert next(loader, None) is None
    text = str(error.value)
    assert "cannot be used, more than max_corrupt=1.0%" in text
    assert "003.png" in text and "raise max_corrupt" in text


def test_small_images_count_as_unreadable_under_error(tmp_path):
    write_marked(tmp_path / "0.png", 0)
    Image.new("RGB", (3, 9), (255, 0, 0)).save(tmp_path / "1.png")
    data = make_data(tmp_path, crop=CenterCrop(small="error"), max_corrupt=1.0)
    (batch,) = take(data, 1, shuffle=False)
    assert numbers(batch) == [0] * 8
    data.crop.small, data.image_size = "upscale", SIZE
    (batch,) = take(data, 1, shuffle=False)
    assert numbers(batch) == [0, 255] * 4


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_ends_at_once(tmp_path, workers):
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"junk")
    data = make_data(tmp_path, workers=workers, max_corrupt=1.0)
    with pytest.raises(DataError, match="100 records in a row.*decoded.*mounted"):
        take(data, 1)


def test_other_failures_are_explained(folder):
    class Broken:
        def __call__(self, image, size, rng):
            raise RuntimeError("out of luck")

    with pytest.raises(DataError, match="Reading batch 2 failed.*out of luck"):
        take(make_data(folder, crop=Broken()), 1, start=2)


# Settings


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({}, {"part_count": 3}, "batch_size 8 must be a positive multiple of the 3"),
        ({}, {"batch_size": 0}, "batch_size 0 must be"),
        (
            {},
            {"parts": (2,), "part_count": 2},
            r"parts \(2,\) must ascend and lie below",
        ),
        ({}, {"parts": (1, 0), "part_count": 2}, r"parts \(1, 0\) must ascend"),
        ({}, {"seed": -1}, "seed must be at least 0"),
        ({}, {"seed": 2**32}, "seed must be at least 0 and below"),
        ({}, {"start": -1}, "start=-1 must be a whole"),
        ({}, {"split": "valid"}, "no split 'valid'"),
        (
            {"workers": -1, "image_size": 0},
            {},
            "image_size=0 .*; data.workers=-1",
        ),
        ({"threads": 0}, {}, "threads=0 must be"),
        ({"max_corrupt": 2.0}, {}, "max_corrupt=2.0 must be"),
        ({"crop": CenterCrop(small="x")}, {}, "CenterCrop.small is 'x'"),
    ],
)
def test_wrong_settings_are_named(folder, fields, options, message):
    with pytest.raises(DataError, match=message):
        take(make_data(folder, **fields), 1, **options)


def test_a_checkpoint_of_other_data_is_refused(folder):
    data = make_data(folder)
    with open_loader(data, split="train", batch_size=8, seed=3) as loader:
        state = loader.state()
        loader.check(state)
    with open_loader(data, split="train", batch_size=4, seed=9) as loader:
        with pytest.raises(DataError) as error:
            loader.check(state)
    text = str(error.value)
    assert "batch_size was 8 and is 4" in text and "seed was 3 and is 9" in text
    assert "length" not in text and "image_size" not in text


def test_a_loader_can_change_the_number_of_processes(folder):
    data = make_data(folder)
    with open_loader(data, split="train", batch_size=8, seed=3) as loader:
        state = loader.state()
    with open_loader(
        data, split="train", batch_size=8, seed=3, part_count=4, parts=(1,)
    ) as loader:
        loader.check(state)


def test_a_closed_loader_yields_nothing(folder):
    loader = open_loader(make_data(folder), split="train", batch_size=2, seed=0)
    next(loader)
    loader.close()
    loader.close()
    assert next(loader, None) is None


def test_the_command_line_overrides_every_node():
    importlib.import_module("pixelflow_jax.config_io")  # how flags read a choice
    changes = ["--config.source.path=/b", "--config.source.labels=false"]
    changes += ["--config.source.max_pixels=99", "--config.crop.small=error"]
    changes += ["--config.workers=3", "--config.max_corrupt=0.2"]
    data = config_overrides.apply(Data(source=ImageFolder(path="a")), changes)
    assert data.source == ImageFolder(path="/b", labels=False, max_pixels=99)
    assert data.crop.small == "error"
    assert data.workers == 3 and data.max_corrupt == 0.2


SCRIPT = """
import sys
from pixelflow_jax.data.encoded import EncodedSource
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.plan import Batching

def main():
    source = ImageFolder(path=sys.argv[1], labels=False)
    data = Data(source=source, image_size=4, workers=1)
    with data.loader(Batching(split="train", batch_size=3, seed=0)) as loader:
        print("batch", next(loader)["image"].shape)

{guard}main()
"""


@pytest.mark.parametrize("guarded", [True, False])
def test_workers_in_a_plain_script(folder, tmp_path, guarded):
    """Flags that nobody parsed do no harm; a missing guard is explained."""
    script = tmp_path / "script.py"
    guard = 'if __name__ == "__main__":\n    ' if guarded else ""
    script.write_text(SCRIPT.format(guard=guard))
    result = subprocess.run(
        [sys.executable, str(script), str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env={"PYTHONPATH": str(next(p for p in sys.path if is_checkout(p)))},
    )
    if guarded:
        assert result.stdout == "batch (3, 4, 4, 3)\n" and result.returncode == 0
        assert "Traceback" not in result.stderr
    else:
        assert result.returncode != 0
        assert "the script lacks `if __name__ == '__main__':`" in result.stderr


def is_checkout(path):
    from pathlib import Path

    return (Path(path or ".") / "pixelflow_jax" / "data" / "loader.py").is_file()


def test_unreadable_images_are_data_errors():
    assert issubclass(UnreadableImage, DataError) and issubclass(DataError, ValueError)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_memory_is_used_again_only_where_nobody_refers_to_it(folder, workers):
    data = make_data(folder, workers=workers)
    options = {"split": "train", "batch_size": 4, "seed": 0}
    with open_loader(data, **options) as loader:
        expected = [next(loader)["image"].copy() for _ in range(24)]
    with open_loader(data, **options) as loader:
        whole = [next(loader)["image"] for _ in range(6)]
        views = [next(loader)["image"][1:, :, ::-1] for _ in range(6)]
        arrays = [jnp.asarray(next(loader)["image"]) for _ in range(6)]  # no copies
        placed = [jax.device_put(next(loader)["image"]) for _ in range(6)]
        places = {next(loader)["image"].ctypes.data for _ in range(20)}
    assert len(places) < 10
    for k in range(6):
        np.testing.assert_array_equal(whole[k], expected[k])
        np.testing.assert_array_equal(views[k], expected[6 + k][1:, :, ::-1])
        np.testing.assert_array_equal(arrays[k], expected[12 + k])
        np.testing.assert_array_equal(placed[k], expected[18 + k])
