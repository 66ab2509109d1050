"""Damaged, joined and odd tars and parquet: what is left is read, the rest is named.

And many shards, of which few are open.
"""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.prepare import tar_members
from pixelflow_jax.data.prepare.parquet import Parquet
from pixelflow_jax.data.prepare.tar_members import Lost, Member, members
from pixelflow_jax.data.prepare.tars import Tars
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.errors import DataError, UnreadableImage
from tests.bad_input import hostile
from tests.bad_input.hostile import picture, samples, second_header


def write(path, *found, format=tarfile.PAX_FORMAT):
    """A tar of (name, content) or (name, kind of link, target)."""
    with tarfile.open(path, "w", format=format) as file:
        for name, *content in found:
            info = tarfile.TarInfo(name)
            if len(content) == 2:
                info.type, info.linkname = content
                file.addfile(info)
                continue
            data = content[0].encode() if isinstance(content[0], str) else content[0]
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def read(path, **fields):
    """Captions by name of what can be read, and the messages of what cannot."""
    source = Tars(path=str(path), **fields).open("train")
    captions, faults = {}, []
    for i in range(len(source)):
        try:
            captions[source.name(i)] = source[i]["captions"]
        except UnreadableImage as error:
            faults.append(str(error))
    return captions, faults


def keys(captions):
    return [name.partition(":")[2] for name in captions]


def test_what_follows_damage_is_read(tmp_path):
    whole = hostile.tar(tmp_path / "w.tar", samples(4)).read_bytes()
    start = second_header(tmp_path / "w.tar")
    for name, change in (("flip", b"\xff"), ("zero", bytes(512))):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(whole[:start] + change + whole[start + len(change) :])
        captions, faults = read(path)
        assert keys(captions) == ["0", "2", "3"]
        assert len(faults) == 2 and "1 has no image" in faults[0]
        assert f"bytes at {start:,} are no header" in faults[1]


def test_joined_tars_are_read_to_their_end(tmp_path):
    one, two = samples(2), [(f"x{name}", content) for name, content in samples(2)]
    parts = [hostile.tar(tmp_path / "t", part).read_bytes() for part in (one, two)]
    (tmp_path / "joined.tar").write_bytes(b"".join(parts))
    captions, faults = read(tmp_path / "joined.tar")
    assert keys(captions) == ["0", "1", "x0", "x1"] and not faults


@pytest.mark.parametrize("size", [0, 1, 300, 511])
def test_a_tar_that_was_cut_is_named(tmp_path, size):
    path = hostile.tar(tmp_path / "w.tar", samples(3))
    path.write_bytes(path.read_bytes()[: second_header(path) + size])
    captions, faults = read(path)
    assert keys(captions) == ["0"] and len(faults) == 1
    assert "cut off" in faults[0] and "is lost. Fetch it again" in faults[0]


def test_only_so_many_losses_of_one_tar_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "MAX_LOST", 3)
    deep = tarfile.TarInfo("x")
    deep.type, deep.size = tarfile.XHDTYPE, 2**40
    header = deep.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header * 50 + bytes(1024))
    found = list(members(tmp_path / "a.tar"))
    assert len(found) <= 5 and all(isinstance(part, Lost) for part in found)


def test_global_headers_and_long_names_are_no_damage(tmp_path):
    long = "d/" * 60 + "x" * 180
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = write(tmp_path / "a.tar", (f"{long}.png", picture()), format=format)
        assert [type(part) for part in members(path)] == [Member]
    with tarfile.open(path, "w", pax_headers={"comment": "of the archive"}) as file:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        file.addfile(info, io.BytesIO(b"abc"))
    assert [part.name for part in members(path)] == ["a.png"]


def test_names_with_dots_are_images_or_belong_to_one(tmp_path, caplog):
    found = [("0001.jpg", picture("JPEG")), ("0001.txt", "a")]
    for name in ("22.05", "v1.3", "Track 2.0 (clean)"):
        found += [(f"{name}.png", picture()), (f"{name}.txt", name)]
    found += [("0001.mask.png", picture()), ("0001.b.png", picture())]
    found += [("0001.b.txt", "its own")]
    captions, faults = read(write(tmp_path / "a.tar", *found))
    assert keys(captions) == ["0001", "22.05", "v1.3", "Track 2.0 (clean)", "0001.b"]
    assert list(captions.values())[1:] == [
        *(("22.05",), ("v1.3",), ("Track 2.0 (clean)",), ("its own",))
    ]
    assert not faults and "beside other images: 1 (0001.mask.png)" in caplog.text


def test_a_second_image_of_a_key_is_counted_and_the_first_taken(tmp_path):
    red, green = picture(), hostile.encoded(Image.new("RGB", (16, 16), (0, 255, 0)))
    path = write(tmp_path / "a.tar", ("a.png", red), ("a.txt", "x"), ("a.jpg", green))
    source = Tars(path=str(path)).open("train")
    assert source[0]["image"][0, 0].tolist() == [255, 0, 0]
    with pytest.raises(UnreadableImage, match=r"a.tar:a has an image twice \(.png and"):
        source[1]


def test_links_inside_a_tar_are_what_they_lead_to(tmp_path):
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    captions, faults = read(
        write(
            tmp_path / "a.tar",
            *(("d/a.png", picture()), ("d/a.txt", "a cat")),
            *(("d/b.png", hard, "d/a.png"), ("d/b.txt", soft, "a.txt")),
            *(("d/c.png", soft, "nowhere.png"), ("d/c.txt", "x")),
        )
    )
    assert captions == {"a.tar:d/a": ("a cat",), "a.tar:d/b": ("a cat",)}
    assert faults == [
        "The .png of a.tar:d/c is a link to nothing, or has holes. Pack the tar again "
        "with the files themselves."
    ]


def test_what_is_no_sample_is_passed_over(tmp_path):
    litter = [("._a.png", b"\0\5"), (".DS_Store", b"x"), ("a.cls", "1"), ("b.md", "x")]
    path = write(tmp_path / "a.tar", *litter, ("a.PNG", picture()), ("a.TXT", "x"))
    assert read(path) == ({"a.tar:a": ("x",)}, [])


def test_an_empty_text_gives_way_to_the_json_and_a_bad_one_too(tmp_path):
    for text in ("\n", b"caf\xe9"):
        found = [("a.png", picture()), ("a.txt", text), ("a.json", '{"text": "b"}')]
        assert read(write(tmp_path / "a.tar", *found)) == ({"a.tar:a": ("b",)}, [])


def test_names_in_latin_1_are_written_out(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as file:
        for name, content in (("café.png", picture()), ("café.txt", b"x")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    out = tmp_path / "out"
    assert prepare.main(["shards", "--tars", str(path), str(out)]) == 0
    assert Shards(path=str(out)).open("train")[0]["name"] == r"a.tar:caf\xe9"


def test_gifs_and_compressed_tars_are_said(tmp_path, caplog):
    gif = [("b.gif", picture("GIF")), ("b.txt", "x"), ("c.bmp", picture("BMP"))]
    write(tmp_path / "0.TAR", *gif, ("c.txt", "y"))
    (tmp_path / "1.tar.gz").write_bytes(b"\x1f\x8b")
    assert keys(read(tmp_path)[0]) == ["b", "c"]
    assert "first frame of 0.TAR:b is used" in caplog.text
    assert (
        "Compressed tars are left out, gunzip them first: 1 (1.tar.gz)" in caplog.text
    )


def test_one_bad_record_is_one_counted_record(tmp_path, monkeypatch, capsys):
    """Whatever is wrong with it, also what nobody foresaw."""
    hostile.tar(tmp_path / "a.tar", samples(3))
    config = Tars(path=str(tmp_path / "a.tar"))
    source = config.open("train")
    whole = type(source).__getitem__

    def broken(self, index):
        if index == 1:
            raise RuntimeError("of a kind that nobody foresaw")
        return whole(self, index)

    monkeypatch.setattr(type(source), "__getitem__", broken)
    command = ["shards", "--tars", config.path, str(tmp_path / "o"), "--workers", "1"]
    assert prepare.main([*command, "--max-corrupt", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "skipped: a.tar:1 cannot be used (RuntimeError: of a kind" in printed
    assert "2 images" in printed and "1 images left out" in printed


# Parquet


def test_columns_of_every_type_that_can_hold_them(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    texts, image = ["a", "b", "a"], picture()
    dictionary = arrow.array(texts).dictionary_encode()
    lists = arrow.array([[text] for text in texts])
    columns = {
        "dictionary": (arrow.array([image] * 3), dictionary),
        "large": (
            arrow.array([image] * 3, arrow.large_binary()),
            arrow.array(texts, arrow.large_string()),
        ),
        "fixed": (arrow.array([image] * 3, arrow.binary(len(image))), lists),
        "view": (
            arrow.array([image] * 3).cast(arrow.binary_view()),
            arrow.array(texts).cast(arrow.string_view()),
        ),
        "of dictionaries": (arrow.array([image] * 3).dictionary_encode(), dictionary),
        "fixed lists": (
            arrow.array([image] * 3),
            lists.cast(arrow.list_(arrow.string(), 1)),
        ),
    }
    for name, (images, captions) in columns.items():
        path = tmp_path / f"{name}.parquet"
        hostile.parquet(path, {"image": images, "caption": captions})
        source = Parquet(path=str(path)).open("train")
        assert [source[i]["captions"] for i in range(3)] == [("a",), ("b",), ("a",)]
        assert source[2]["image"].shape == (16, 16, 3)


def test_a_caption_that_is_too_long_is_one_bad_row(tmp_path):
    columns = {"image": [picture()] * 3, "caption": ["a", "b" * 5000, "c"]}
    path = hostile.parquet(tmp_path / "a.parquet", columns)
    source = Parquet(path=str(path), max_caption=1000).open("train")
    assert [source[i]["captions"] for i in (0, 2)] == [("a",), ("c",)]
    with pytest.raises(
        UnreadableImage, match=r"a.parquet\[0:1\] cannot be read \(its "
    ):
        source[1]


# Many shards


def test_few_of_many_shards_are_open(tmp_path):
    out = hostile.prepared(Numbered(30), tmp_path / "out", shards=10)
    source = Shards(path=str(out)).open("train")
    source._records._max_open = 3
    before = len(os.listdir("/proc/self/fd"))
    found = [source[i]["captions"] for i in np.random.default_rng(0).permutation(30)]
    assert len(set(found)) == 30 and source._records.open_files == 3
    assert len(os.listdir("/proc/self/fd")) <= before + 3


def test_no_more_open_files_is_not_called_damage(tmp_path, monkeypatch):
    from pixelflow_jax.data import records

    def full(*arguments, **options):
        raise RuntimeError("open() failed: Too many open files")

    out = hostile.prepared(Numbered(2), tmp_path / "out")
    source = Shards(path=str(out)).open("train")
    monkeypatch.setattr(records.array_record_module, "ArrayRecordReader", full)
    with pytest.raises(DataError, match="ulimit -n") as refused:
        source[0]
    assert not isinstance(refused.value, UnreadableImage)


class Numbered:
    """A source of images whose captions are their numbers, and its config."""

    contiguous, class_names, sizes = False, ("image",), None

    def __init__(self, length):
        self.labels = np.zeros(length, np.int32)

    def open(self, split, image_size):
        return self

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        pixels = np.full((4, 4, 3), index, np.uint8)
        facts = {"label": 0, "captions": (f"{index}",), "name": f"{index}"}
        return {"image": pixels, "origin": "", **facts}

    def read(self, index):
        return hostile.encoded(Image.fromarray(self[index]["image"]))

    def listing(self):
        yield f"{len(self)}"
