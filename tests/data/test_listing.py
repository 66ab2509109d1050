"""Odd names, links and files: read, or named and counted; never left out in silence."""

import json
import os
import socket

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.captions import clean, from_json, from_text, lines
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.listing import list_folder
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import portable, printable


def draw(*paths):
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Image.new("RGB", (8, 8), (255, 0, 0)).save(path, format="PNG")


def names(root, **fields):
    source = ImageFolder(path=str(root), **fields).open("train")
    return [source.name(i) for i in range(len(source))]


def listed(root, alias_classes=True):
    return list_folder(root, alias_classes=alias_classes).images


# Links


def test_links_that_lead_back_multiply_nothing(tmp_path, caplog):
    draw(tmp_path / "a" / "x.png", tmp_path / "b" / "y.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to(".")
    (tmp_path / "a" / "other").symlink_to("../b")
    (tmp_path / "b" / "other").symlink_to("../a")
    (tmp_path / "all").symlink_to(".")
    assert names(tmp_path) == ["a/x.png", "b/y.png"]
    assert names(tmp_path, labels=False) == ["a/x.png", "b/y.png"]
    assert "links to folders that are listed already: 5 (a/other, a/self" in caplog.text


def test_links_to_other_places_are_followed_once(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    draw(outside / "z.png", outside / "deep" / "w.png", root / "a" / "x.png")
    (outside / "deep" / "loop").symlink_to(outside)
    (root / "a" / "more").symlink_to(outside)
    (root / "a" / "again").symlink_to(outside / "deep")
    found = listed(root)
    assert found == ["a/again/w.png", "a/more/z.png", "a/x.png"] or found == [
        *("a/more/deep/w.png", "a/more/z.png", "a/x.png")
    ]


def test_a_link_can_be_a_class(tmp_path):
    outside, root = tmp_path / "outside", tmp_path / "root"
    draw(outside / "z.png", root / "cat" / "x.png")
    (root / "kitty").symlink_to("cat")
    (root / "owl").symlink_to(outside)
    assert names(root) == ["cat/x.png", "kitty/x.png", "owl/z.png"]
    assert names(root, labels=False) == ["cat/x.png", "owl/z.png"]


# Files that are no images


def test_pipes_and_sockets_are_left_out(tmp_path, caplog, monkeypatch):
    draw(tmp_path / "a" / "x.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    monkeypatch.chdir(tmp_path / "a")  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        (tmp_path / "a" / "link.png").symlink_to("pipe.png")
        assert names(tmp_path) == ["a/x.png"]
    assert "pipes, sockets or devices: 3" in caplog.text


def test_a_link_to_nothing_is_one_unreadable_image(tmp_path, capsys):
    draw(tmp_path / "in" / "a" / "x.png")
    (tmp_path / "in" / "a" / "z.png").symlink_to("nowhere.png")
    command = ["shards", str(tmp_path / "in"), str(tmp_path / "out"), "--workers", "1"]
    assert prepare.main([*command, "--max-corrupt", "0.5"]) == 0
    assert "skipped: a/z.png cannot be read" in capsys.readouterr().out


def test_other_formats_are_counted_and_companions_are_not(tmp_path, caplog):
    draw(tmp_path / "a" / "x.png", tmp_path / "a" / "y.JFIF", tmp_path / "a" / "z.dib")
    for name in ("1.heic", "2.HEIC", "3.jxl", "x.json", "x.txt", "readme.md", "what"):
        (tmp_path / "a" / name).write_bytes(b"x")
    assert names(tmp_path) == ["a/x.png", "a/y.JFIF", "a/z.dib"]
    assert ".heic: 2 (a/" in caplog.text and ".jxl: 1 (a/3.jxl)" in caplog.text
    assert "without suffix: 1 (a/what)" in caplog.text
    assert "json" not in caplog.text and "readme" not in caplog.text


def test_labels_do_not_shift_in_silence(tmp_path):
    for name in "abc":
        draw(tmp_path / name / "x.png")
    (tmp_path / "empty").mkdir()
    assert ImageFolder(path=str(tmp_path)).open("train").class_names == tuple("abc")
    (tmp_path / "b" / "x.png").rename(tmp_path / "b" / "x.tga")
    with pytest.raises(DataError, match=r"class folder 'b' .* 1 \(b/x.tga\)"):
        ImageFolder(path=str(tmp_path)).open("train")
    draw(tmp_path / "b" / "y.png")  # unreadable images keep their class
    (tmp_path / "b" / "y.png").write_bytes(b"junk")
    command = ["shards", str(tmp_path), str(tmp_path / "o"), "--workers", "1"]
    assert prepare.main([*command, "--max-corrupt", "0.5"]) == 0
    source = Shards(path=str(tmp_path / "o")).open("train")
    assert source.class_names == tuple("abc") and source.labels.tolist() == [0, 2]


# Names


def test_names_that_are_not_utf8_are_written_out(tmp_path, capsys):
    root = tmp_path / "in"
    draw(root / "a" / "x.png")
    folder = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(folder)
    (root / "a" / "x.png").rename(os.fsdecode(folder + b"/\xff.png"))
    draw(root / "a" / "x.png")
    command = ["shards", str(root), str(tmp_path / "out"), "--workers", "1"]
    assert prepare.main([*command, "--holdout", "0.1"]) in (0, 1)
    assert prepare.main([*command, "--overwrite"]) == 0
    source = Shards(path=str(tmp_path / "out")).open("train")
    assert source.class_names == ("a", r"caf\xe9")
    found = {source[i]["name"]: source[i]["label"] for i in range(2)}
    assert found == {"a/x.png": 0, r"caf\xe9/\xff.png": 1}
    assert prepare.main(["preview", str(root), str(tmp_path / "p.png")]) == 0
    assert r"1  caf\xe9" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["a [x]", "b\\c", "d:e", "f,g", "new\nline", "é", "{1}"]
)
def test_odd_names_are_names(tmp_path, name, capsys):
    root, out = tmp_path / name / "in", tmp_path / name / "out"
    draw(root / name / f"{name}.png")
    (root / name / f"{name}.txt").write_text("a caption")
    command = ["shards", str(root), str(out), "--workers", "1"]
    assert prepare.main(command) == 0 and prepare.main(command) == 0
    (record,) = [Shards(path=str(out)).open("train")[0]]
    assert record["name"] == f"{name}/{name}.png"
    assert record["captions"] == ("a caption",)
    assert prepare.main(["preview", str(root), str(tmp_path / "p.png")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"       1  {printable(name)}" in shown


def test_escape_sequences_are_shown_and_not_obeyed():
    assert printable("\x1b[2J\u2028x\udce9") == r"\x1b[2J\u2028x\xe9"
    assert printable("日本 é") == "日本 é" == portable("日本 é")
    assert portable("a\nb\udcff\ud83d") == "a\nb\\xff\\ud83d"


def test_brackets_of_outer_folders_are_no_pattern(tmp_path):
    place = tmp_path / "a[1]{2}"
    place.mkdir()
    for name in ("x0.tar", "x1.TAR", "y.tar.gz", "z[0].tar"):
        (place / name).touch()
    found = [file.name for file in find_files(str(place), ".tar")]
    assert found == ["x0.tar", "x1.TAR", "z[0].tar"]
    assert find_files(str(place / "z[0].tar"), ".tar") == [place / "z[0].tar"]
    assert find_files(str(place / "x?.tar"), ".tar") == [place / "x0.tar"]
    (place / "loop").symlink_to(place)
    assert len(find_files(f"{place}/**/x0.tar", ".tar")) == 1


# Captions


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ("a\r\nb\rc\n\n", ("a", "b", "c")),
        ("\ufeff\ufeffa cat", ("a cat",)),
        ("a\u2028b", ("a b",)),
        ("a\u0085b\x0bc\x0cd\x1ce", ("a b c d e",)),
        ("a\u3000cat\u00a0  sat \t ", ("a cat sat",)),
        (
            "\U0001f468\u200d\U0001f469\nقطة\u200f",
            ("\U0001f468\u200d\U0001f469", "قطة\u200f"),
        ),
        ("\u200b\na\n\u2060\n", ("a",)),
        ("…\n", ("…",)),
    ],
)
def test_only_newlines_end_a_caption(content, captions):
    text = from_text(content.encode(), "x")
    assert clean(lines(text), "x") == captions


@pytest.mark.parametrize(
    ("values", "captions"),
    [
        ({"caption": None, "text": "a"}, ("a",)),
        ({"caption": "", "captions": [], "text": "a"}, ("a",)),
        ({"caption": " \u200b", "text": "a"}, ("a",)),
        ({"caption": "a \U0001f600"}, ("a \U0001f600",)),
        ({"captions": ["a", "b"], "text": "c"}, ("a", "b")),
    ],
)
def test_the_first_key_that_says_something_counts(values, captions):
    assert from_json(json.dumps(values).encode(), "x") == captions


def test_captions_in_capitals_and_of_any_length(tmp_path):
    draw(tmp_path / "x.JPG", tmp_path / "y.png")
    (tmp_path / "x.TXT").write_text("a cat")
    (tmp_path / "y.txt").write_text("word " * 50_000)
    fields = {"path": str(tmp_path), "labels": False, "captions": True}
    source = ImageFolder(**fields).open("train")
    assert source[0]["captions"] == ("a cat",)
    assert len(source[1]["captions"][0]) == 249_999
    with pytest.raises(DataError, match="max_caption=1,000"):
        ImageFolder(**fields, max_caption=1000).open("train")[1]


def test_limits_are_part_of_what_was_prepared(tmp_path, capsys):
    draw(tmp_path / "in" / "x.png")
    command = ["shards", str(tmp_path / "in"), str(tmp_path / "out"), "--no-labels"]
    assert prepare.main([*command, "--workers", "1"]) == 0
    assert prepare.main([*command, "--workers", "1", "--max-pixels", "99"]) == 1
    assert "other source files" in capsys.readouterr().err


def test_the_picture_of_a_preview_is_of_the_size_that_was_asked_for(tmp_path):
    draw(tmp_path / "in" / "a" / "x.png")
    look = tmp_path / "look.PNG"
    command = ["preview", str(tmp_path / "in"), str(look), "--no-labels"]
    assert prepare.main([*command, "--rows", "1", "--columns", "1"]) == 0
    assert np.asarray(Image.open(look)).shape[0] >= 64
