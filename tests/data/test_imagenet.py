"""`prepare imagenet` on generated files that are laid out as the official ones."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.prepare import imagenet
from pixelflow_jax.data.prepare.imagenet import ImageNet
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.errors import DataError
from tests.data import official_imagenet as official

TRUE_CLASSES = [official.SYNSETS[number][0] for number in official.TRUTH]


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return official.write_tars(tmp_path_factory.mktemp("official"))


def run(source, out, *flags) -> int:
    arguments = ["imagenet", str(source), str(out), "--check", "none", "--workers", "1"]
    return prepare.main([*arguments, *flags])


def contents(out, split) -> dict:
    source = Shards(path=str(out)).open(split)
    assert source.class_names == official.NAMES
    return {source.stored(k).name: source.stored(k) for k in range(len(source))}


def check(out) -> None:
    """All images, as they are, each with its class."""
    train, test = contents(out, "train"), contents(out, "test")
    names = {}
    for label, (wnid, files) in enumerate(official.train_files().items()):
        assert label == official.WNIDS.index(wnid)
        names |= {name: (label, content) for name, content in files.items()}
    found = {n.rpartition("/")[2]: (r.label, r.image) for n, r in train.items()}
    assert found == names
    assert all(r.captions == (official.NAMES[r.label],) for r in train.values())
    labels = {n.rpartition("/")[2]: record.label for n, record in test.items()}
    expected = map(official.WNIDS.index, TRUE_CLASSES)
    assert labels == dict(zip(official.validation_files(), expected, strict=True))


def test_from_the_official_tars(tars, tmp_path):
    assert run(tars, tmp_path) == 0
    check(tmp_path)


@pytest.mark.slow
def test_in_processes(tars, tmp_path):
    assert run(tars, tmp_path, "--workers", "2", "--shards", "4") == 0
    check(tmp_path)


def write_classes(folder) -> None:
    for wnid, files in official.train_files().items():
        official.unpack(folder / wnid, files)


@pytest.mark.parametrize("layout", ["class tars", "sorted", "flat", "kaggle"])
def test_from_what_is_made_of_them(tmp_path, layout):
    source = tmp_path / "source"
    data = source / ("ILSVRC/Data/CLS-LOC" if layout == "kaggle" else "")
    if layout == "class tars":
        inner = official.train_files().items()
        packed = {f"{wnid}.tar": official.packed(files) for wnid, files in inner}
        official.unpack(data / "train", packed)
    else:
        write_classes(data / "train")
    validation = official.validation_files()
    if layout == "sorted":
        for wnid, (name, content) in zip(TRUE_CLASSES, validation.items(), strict=True):
            official.unpack(data / "val" / wnid, {name: content})
    else:
        official.unpack(data / "val", validation)
    words = "".join(f"{w} {words}\n" for w, words in official.SYNSETS.values())
    if layout == "kaggle":
        stems = [name.removesuffix(".JPEG") for name in validation]
        pairs = zip(stems, TRUE_CLASSES, strict=True)
        rows = [f"{stem},{wnid} 1 2 3 4\n" for stem, wnid in pairs]
        table = "".join(["ImageId,PredictionString\n", *reversed(rows)])
        (source / "LOC_val_solution.csv").write_text(table)
        (source / "LOC_synset_mapping.txt").write_text(words)
    else:
        (source / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(official.kit())
    assert run(source, tmp_path / "out") == 0
    check(tmp_path / "out")


def test_what_is_odd_is_read_by_what_it_is(tars, tmp_path):
    assert run(tars, tmp_path, "--size", "24") == 0
    source = Shards(path=str(tmp_path)).open("train")
    for k in range(len(source)):
        number, image = k, source[k]["image"]
        assert image.shape == (24, 24, 3)
        expected = official.pixels(number)
        if official.KINDS.get(number) == "turned":
            expected = np.rot90(expected, -1)
        tall, wide = expected.shape[:2]
        top, left = (tall - 24) // 2, (wide - 24) // 2
        middle = expected[top : top + 24, left : left + 24].astype(float)
        assert abs(image - middle).max() < 12, official.KINDS.get(number)


def test_a_stopped_one_goes_on(tars, tmp_path, monkeypatch):
    written, write = [], imagenet.Named.captions

    def stop(self, index):
        written.append(index)
        if len(written) == 8:
            raise KeyboardInterrupt
        return write(self, index)

    flags = ("--shards", "4")
    monkeypatch.setattr(imagenet.Named, "captions", stop)
    assert run(tars, tmp_path, *flags) == 130
    before = {f: f.stat().st_mtime_ns for f in tmp_path.glob("train/shard-*")}
    assert 0 < len(before) < 4
    monkeypatch.setattr(imagenet.Named, "captions", write)
    assert run(tars, tmp_path, *flags) == 0
    check(tmp_path)
    assert all(file.stat().st_mtime_ns == then for file, then in before.items())


def test_what_is_missing_is_named(tars, tmp_path, capsys):
    source = ImageNet(path=str(tars))
    with pytest.raises(DataError, match="12 images of 3 classes; ImageNet has 1,281"):
        source.open("train")
    with pytest.raises(DataError, match="neither ILSVRC2012_img_train.tar nor a"):
        ImageNet(path=str(tmp_path)).open("train")
    assert run(tmp_path, tmp_path / "out") == 1
    official.unpack(tmp_path / "val", official.validation_files())
    write_classes(tmp_path / "train")
    with pytest.raises(DataError, match="Nothing in .* tells the classes"):
        ImageNet(path=str(tmp_path), check="none").open("test")
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    assert run(tmp_path, tmp_path / "out") == 0
    assert "No validation images" in capsys.readouterr().out
    names = Shards(path=str(tmp_path / "out")).open("train").class_names
    assert names == tuple(official.WNIDS)


def cut(path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def spoil_inner(path) -> None:
    """A header in the second tar."""
    content = bytearray(path.read_bytes())
    at = content.index(b"n02012849_3.JPEG")
    content[at : at + 100] = b"\xff" * 100
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [lambda p: cut(p, p.stat().st_size * 2 // 3), spoil_inner, lambda p: cut(p, 0)],
)
def test_damaged_tars_are_refused(tmp_path, damage):
    official.write_tars(tmp_path)
    damage(tmp_path / "ILSVRC2012_img_train.tar")
    with pytest.raises(DataError, match="damaged"):
        ImageNet(path=str(tmp_path), check="none").open("train")


def test_an_image_that_cannot_be_read_is_an_error(tmp_path, capsys):
    write_classes(tmp_path / "source" / "train")
    bad = next((tmp_path / "source" / "train").glob("*/*.JPEG"))
    cut(bad, bad.stat().st_size // 2)
    assert run(tmp_path / "source", tmp_path / "out") == 1
    assert bad.name in capsys.readouterr().err


def test_md5(tars, monkeypatch):
    def allow(md5: str) -> None:
        known = imagenet.Official("ILSVRC2012_img_train.tar", md5, ("train",), 12)
        monkeypatch.setitem(imagenet.SPLITS, "train", known)

    monkeypatch.setattr(imagenet, "CLASSES", 3)
    content = (tars / "ILSVRC2012_img_train.tar").read_bytes()
    allow(hashlib.md5(content).hexdigest())
    assert len(ImageNet(path=str(tars), check="md5").open("train")) == 12
    allow("0" * 32)
    assert len(ImageNet(path=str(tars)).open("train")) == 12
    with pytest.raises(DataError, match="was published"):
        ImageNet(path=str(tars), check="md5").open("train")


def test_the_generated_files_are_as_odd_as_meant():
    kinds = {"png": ("PNG", "RGB"), "cmyk": ("JPEG", "CMYK"), "jpeg": ("JPEG", "RGB")}
    for kind, expected in kinds.items():
        with Image.open(official.io.BytesIO(official.encoded(1, kind))) as image:
            assert (image.format, image.mode) == expected
