"""Folders, shards and TFDS: what is read, and every complaint about what is not."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.source import decode_image, in_holdout
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.errors import DataError, UnreadableImage


def write_image(path, seed=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Three classes of 4, 3 and 2 images, one nested, one with a caption."""
    root = tmp_path / "photos"
    for name, count in (("cat", 4), ("dog", 3), ("emu", 2)):
        for number in range(count):
            write_image(root / name / f"{number}.png", seed=hash_free(name, number))
    (root / "cat" / "0.txt").write_text(" a sleepy cat\n")
    write_image(root / "dog" / "deep" / "er" / "x.JPEG", seed=99)
    (root / ".hidden").mkdir()
    (root / "notes").mkdir()
    (root / "notes" / "readme.md").write_text("no image")
    return root


def hash_free(name, number):
    return 10 * "cat dog emu".split().index(name) + number


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


# Decoding


def test_transparency_goes_over_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 128))
    for kind in (image, image.convert("LA")):
        pixels = decode_image(encoded(kind, "PNG"), "x")
        assert pixels.shape == (1, 2, 3) and (pixels[0, 0] == 255).all()
    half = decode_image(encoded(image, "PNG"), "x")[0, 1]
    np.testing.assert_allclose(half, [227, 127, 127], atol=1)


def test_palettes_grey_and_cmyk_become_rgb():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 255, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    pixels = decode_image(encoded(palette, "PNG"), "x")
    np.testing.assert_array_equal(pixels, [[[255, 255, 0], [0, 0, 255]]])
    clear = decode_image(encoded(palette, "PNG", transparency=1), "x")
    np.testing.assert_array_equal(clear, [[[255, 255, 0], [255, 255, 255]]])
    grey = decode_image(encoded(Image.new("L", (1, 1), 77), "PNG"), "x")
    np.testing.assert_array_equal(grey, [[[77, 77, 77]]])
    deep = Image.fromarray(np.full((1, 1), 257 * 100, np.uint16))
    np.testing.assert_array_equal(
        decode_image(encoded(deep, "PNG"), "x"), [[[100] * 3]]
    )
    cmyk = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), "x")
    assert cmyk.shape == (8, 8, 3) and cmyk.min() > 250


def test_orientation_is_respected():
    image = Image.new("RGB", (16, 8), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 8, 8))  # black on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise: black on top
    pixels = decode_image(encoded(image, "JPEG", exif=exif, quality=95), "x")
    assert pixels.shape == (16, 8, 3)
    assert pixels[:7].max() < 40 and pixels[9:].min() > 215


def test_damage_names_the_record():
    whole = encoded(Image.effect_noise((64, 64), 90), "PNG")
    for broken in (whole[: len(whole) // 2], b"", b"no image", whole[:20]):
        with pytest.raises(UnreadableImage, match="^7.png cannot be decoded"):
            decode_image(broken, "7.png")


# Folders


def test_folder_reads_classes_captions_and_pixels(folder):
    source = ImageFolder(path=str(folder)).open("train")
    assert source.class_names == ("cat", "dog", "emu")
    assert len(source) == 10 and list(source.labels) == [0] * 4 + [1] * 4 + [2] * 2
    first = source[0]
    assert first["name"] == "cat/0.png" and first["captions"] == ("a sleepy cat",)
    np.testing.assert_array_equal(
        first["image"], write_image(folder / "cat" / "0.png", hash_free("cat", 0))
    )
    assert source[1]["captions"] == ("cat",)
    assert source[7]["name"] == "dog/deep/er/x.JPEG" and source[7]["label"] == 1
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])


def test_folder_without_labels_is_one_class(folder):
    source = ImageFolder(path=str(folder), labels=False).open("train")
    assert source.class_names == ("image",) and set(source.labels) == {0}
    assert source[1] | {"image": 0} == {
        "image": 0,
        "label": 0,
        "captions": ("",),
        "name": "cat/1.png",
        "origin": str(folder / "cat" / "1.png"),
    }


def test_folder_holdout_depends_on_the_relative_path(folder, tmp_path):
    moved = tmp_path / "elsewhere"
    config = ImageFolder(path=str(folder), holdout=0.4)
    names = {s: names_of(config.open(s)) for s in ("train", "test")}
    assert names["test"] and not set(names["train"]) & set(names["test"])
    assert len(names["train"]) + len(names["test"]) == 10
    assert all(in_holdout(name, 0.4) for name in names["test"])
    folder.rename(moved)
    config = ImageFolder(path=str(moved), holdout=0.4)
    assert names_of(config.open("test")) == names["test"]


def names_of(source):
    return [source[i]["name"] for i in range(len(source))]


def test_holdout_hash_never_changes():
    held_out = [k for k in range(100) if in_holdout(f"image-{k}", 0.05)]
    assert held_out == [9, 15, 32, 52, 80, 97]


def test_folder_leaves_out_images_without_a_class(folder, caplog):
    write_image(folder / "stray.png")
    source = ImageFolder(path=str(folder)).open("train")
    assert len(source) == 10 and "1 images lie outside the class folders" in caplog.text


def test_folder_complaints(folder, tmp_path):
    flat, empty = tmp_path / "flat", tmp_path / "empty"
    write_image(flat / "a.png")
    empty.mkdir()

    def complaint(split="train", **fields):
        with pytest.raises(DataError) as error:
            ImageFolder(**fields).open(split)
        return str(error.value)

    assert "labels=False (--no-labels)" in complaint(path=str(flat))
    assert "holds no images" in complaint(path=str(empty))
    assert "does not exist" in complaint(path=str(tmp_path / "nowhere"))
    assert "is a file, not a folder" in complaint(path=str(flat / "a.png"))
    assert "set holdout" in complaint("test", path=str(folder))
    assert "below 1, not 2" in complaint(path=str(folder), holdout=2)


def test_a_file_that_vanishes_is_unreadable(folder):
    source = ImageFolder(path=str(folder)).open("train")
    (folder / "cat" / "2.png").unlink()
    with pytest.raises(UnreadableImage, match="cat/2.png cannot be read.*permissions"):
        source[2]


# Shards


@pytest.fixture
def shards(folder, tmp_path):
    out = tmp_path / "shards"
    options = ["--shards", "3", "--workers", "1", "--holdout", "0.4"]
    assert prepare.main(["shards", str(folder), str(out), *options]) == 0
    return out


def test_shards_give_back_what_went_in(folder, shards):
    for split in ("train", "test"):
        before = ImageFolder(path=str(folder), holdout=0.4).open(split)
        after = Shards(path=str(shards)).open(split)
        assert after.class_names == before.class_names and len(after) == len(before)
        expected = {before[i]["name"]: before[i] for i in range(len(before))}
        assert len(pickle.dumps(after)) == len([after[0], pickle.dumps(after)][1])
        for i in range(len(after)):
            record = pickle.loads(pickle.dumps(after))[i]
            wanted = expected.pop(record["name"])
            np.testing.assert_array_equal(record["image"], wanted["image"])
            assert record | {"image": 0} == wanted | {"image": 0}
            assert after.labels[i] == record["label"]


def test_shards_are_dealt_out_in_turn(folder, shards):
    before = names_of(ImageFolder(path=str(folder), holdout=0.4).open("train"))
    after = names_of(Shards(path=str(shards)).open("train"))
    assert after == [name for first in range(3) for name in before[first::3]]


def test_a_single_folder_and_a_test_path_open_too(shards):
    train = Shards(path=str(shards / "train"), test_path=str(shards / "test"))
    whole = Shards(path=str(shards))
    for split in ("train", "test"):
        assert names_of(train.open(split)) == names_of(whole.open(split))
    with pytest.raises(DataError, match="has no test split: set test_path"):
        Shards(path=str(shards / "train")).open("test")


def test_damaged_shards_are_named_at_open(shards):
    config = Shards(path=str(shards))
    name = "shard-00001-of-00003.array_record"
    file = shards / "train" / name
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(
        DataError, match=f"{name} has {len(content) - 100} bytes instea"
    ):
        config.open("train")
    file.unlink()
    with pytest.raises(DataError, match=f"1 of 3 shards.*{name} is missing"):
        config.open("train")
    file.write_bytes(content)
    assert len(config.open("train"))
    index = shards / "train" / "dataset.json"
    text = index.read_text()
    index.write_text(json.dumps(json.loads(text) | {"version": 9}))
    with pytest.raises(DataError, match="version 9 and this program reads version 2"):
        config.open("train")
    index.write_text(text[:50])
    with pytest.raises(DataError, match="dataset.json is damaged"):
        config.open("train")
    index.unlink()
    with pytest.raises(DataError, match="not a finished folder of shards.*continues"):
        config.open("train")


def test_a_flipped_byte_inside_a_shard_is_an_unreadable_image(shards):
    file = sorted((shards / "train").glob("*.array_record"))[0]
    source = Shards(path=str(shards)).open("train")
    whole = names_of(source)
    data = bytearray(file.read_bytes())
    start = data.index(b"IDAT") + 20
    data[start : start + 40] = bytes(40)
    file.write_bytes(bytes(data))
    source = Shards(path=str(shards)).open("train")
    outcomes = []
    for i in range(len(source)):
        try:
            outcomes.append(source[i]["name"])
        except UnreadableImage:
            outcomes.append(None)
    assert None in outcomes
    assert all(
        found in (None, name) for found, name in zip(outcomes, whole, strict=True)
    )


# TFDS


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny data set in TFDS's own ArrayRecord format; 6 and 3 images, 2 classes."""
    tfds = pytest.importorskip(
        "tensorflow_datasets", reason="needs pixelflow_jax[tfds]"
    )
    pytest.importorskip("importlib_resources", reason="writing needs it")
    root = tmp_path_factory.mktemp("tfds")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        """Two classes of noise."""

        VERSION = tfds.core.Version("1.2.0")
        MODULE_PATH = root

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "file_name": tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._examples(0, 6), "validation": self._examples(6, 9)}

        def _generate_examples(self):
            raise NotImplementedError

        def _examples(self, first, last):
            for k in range(first, last):
                file = root / "images" / f"{k}.png"
                write_image(file, seed=k, size=(8, 6 + k))
                row = {"image": str(file), "label": k % 2, "file_name": f"{k}.png"}
                yield k, row

    builder = Tiny(data_dir=str(root / "data"), file_format="array_record")
    builder.download_and_prepare()
    return root


def test_tfds_round_trip(prepared):
    config = Tfds(name="tiny", data_dir=str(prepared / "data"))
    found = []
    for split, count in (("train", 6), ("test", 3)):
        opened = config.open(split)
        assert len(pickle.dumps(opened)) == len([opened[0], pickle.dumps(opened)][1])
        source = pickle.loads(pickle.dumps(opened))
        assert source.class_names == ("cat", "dog") and len(source) == count
        found += [source[i] for i in range(count)]
    assert sorted(r["name"] for r in found) == [f"{k}.png" for k in range(9)]
    for record in found:
        k = int(record["name"][:-4])
        assert record["label"] == k % 2 and record["captions"] == (
            ("cat", "dog")[k % 2],
        )
        expected = np.asarray(Image.open(prepared / "images" / record["name"]))
        np.testing.assert_array_equal(record["image"], expected)


def test_tfds_damage_is_an_unreadable_image(prepared):
    source = Tfds(name="tiny", data_dir=str(prepared / "data")).open("train")
    assert source[0]["image"].shape[1] == 8
    with pytest.raises(UnreadableImage, match=r"Record train\[99\] in .* is damaged"):
        source[99]


def test_tfds_complaints(prepared, tmp_path, monkeypatch):
    data = str(prepared / "data")

    def complaint(split="train", **fields):
        with pytest.raises(DataError) as error:
            Tfds(**{"name": "tiny", "data_dir": data} | fields).open(split)
        return str(error.value)

    assert "--file_format=array_record" in complaint(name="absent")
    assert "set test_split to one of" in complaint("test", test_split="dev")
    assert "set image_key to one of" in complaint(image_key="picture")
    assert "no class label: set label_key" in complaint(label_key="file_name")
    other = tmp_path / "tiny" / "1.0.0"
    other.mkdir(parents=True)
    (other / "dataset_info.json").write_text('{"fileFormat": "tfrecord"}')
    assert "stored as tfrecord" in complaint(data_dir=str(tmp_path))
    for name in ("big", "small"):
        (tmp_path / "many" / name / "1.0.0").mkdir(parents=True)
        (tmp_path / "many" / name / "1.0.0" / "dataset_info.json").write_text("{}")
    several = complaint(name="many", data_dir=str(tmp_path))
    assert "several configs (big, small)" in several and "many/big" in several
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install 'pixelflow_jax[tfds]'" in complaint()


def test_tfds_takes_the_newest_version(tmp_path):
    from pixelflow_jax.data.tfds import find_prepared

    for version in ("9.0.0", "10.0.0", "2.0.0"):
        folder = tmp_path / "d" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text('{"fileFormat": "array_record"}')
    assert find_prepared("d", str(tmp_path)).name == "10.0.0"
    assert find_prepared("d/9.0.0", str(tmp_path)).name == "9.0.0"
