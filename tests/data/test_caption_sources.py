"""Tars, parquet files and captioned folders, as shards: what is read and refused."""

import io
import json
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.prepare import parquet
from pixelflow_jax.data.prepare.parquet import Parquet
from pixelflow_jax.data.prepare.tars import Tars
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.errors import DataError, NoCaption, UnreadableImage

pyarrow = pytest.importorskip("pyarrow", reason="needs pixelflow_jax[parquet]")
pytest.importorskip("pyarrow.parquet")


def encoded(k, format="PNG", size=(12, 10)):
    file = io.BytesIO()
    Image.new("RGB", size, (k, 0, 0)).save(file, format=format, lossless=True)
    return file.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def sample(k, caption=None):
    caption = (caption or f"caption {k}").encode()
    return [(f"{k:04d}.png", encoded(k)), (f"{k:04d}.txt", caption)]


@pytest.fixture
def tars(tmp_path):
    """Two tars of four samples each."""
    root = tmp_path / "tars"
    for number in (0, 1):
        members = sum((sample(4 * number + k) for k in range(4)), [])
        write_tar(root / f"{number:05d}.tar", members)
    return root


def shards(*arguments):
    return prepare.main(["shards", *map(str, arguments), "--workers", "1"])


def read_all(out, split="train"):
    source = Shards(path=str(out)).open(split)
    return [source[i] for i in range(len(source))]


def red(record):
    return int(record["image"][0, 0, 0])


# Tars


def test_tars_become_shards(tars, tmp_path, capsys):
    out = tmp_path / "out"
    assert shards("--tars", tars, out, "--shards", "3") == 0
    records = read_all(out)
    assert [red(r) for r in records] == list(range(8))  # runs, in order
    for k, record in enumerate(records):
        assert record["captions"] == (f"caption {k}",) and record["label"] == 0
        assert record["name"] == f"0000{k // 4}.tar:{k:04d}"
        assert record["origin"] == str(tars / f"0000{k // 4}.tar")
    printed = capsys.readouterr().out
    assert (
        "8 images in 3 shards, 8 captions, 0 images without, 0 images left" in printed
    )


def test_tar_layouts(tmp_path):
    """Folders inside, upper case, JSON, several captions, members of other kinds."""
    write_tar(
        tmp_path / "a.tar",
        [
            ("x/one.JPG", encoded(0, "JPEG")),
            ("x/one.txt", b"first line\nsecond line\n"),
            ("y/one.webp", encoded(1, "WEBP")),
            ("y/one.json", json.dumps({"captions": ["a", "b"]}).encode()),
            ("y/one.cls", b"7"),
            ("y/one.depth.png", encoded(9)),  # the key ends at the first dot
            ("./two.png", encoded(2)),
            ("./two.json", json.dumps({"text": "c", "long": "d"}).encode()),
        ],
    )
    source = Tars(path=str(tmp_path)).open("train")
    captions = [source[i]["captions"] for i in range(len(source))]
    assert captions == [("first line second line",), ("a", "b"), ("c",)]
    long = Tars(path=str(tmp_path), caption_key="long").open("train")
    assert long[2]["captions"] == ("d",)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])
    with pytest.raises(NoCaption):
        long[1]


def test_a_damaged_tar_is_named_and_counted(tars, tmp_path, capsys):
    cut = tars / "00001.tar"
    cut.write_bytes(cut.read_bytes()[: 512 + 20])  # within the first image
    (tars / "00002.tar").write_bytes(b"no tar at all" * 100)
    out = tmp_path / "out"
    assert shards("--tars", tars, out) == 1
    error = capsys.readouterr().err
    assert "2 of 6 images cannot be used, more than --max-corrupt" in error
    assert f"{cut} is damaged (0004.png is cut off)" in error
    assert "00002.tar is damaged" in error
    assert shards("--tars", tars, out, "--max-corrupt", "0.5") == 0
    printed = capsys.readouterr().out
    assert "4 images" in printed and "2 images left out" in printed
    assert [red(r) for r in read_all(out)] == [0, 1, 2, 3]


def test_what_samples_lack_is_counted(tmp_path, capsys):
    members = sum(map(sample, range(10)), [])
    members += [("lone.txt", b"no image"), ("bare.png", encoded(11))]
    members += [("latin.png", encoded(12)), ("latin.txt", b"caf\xe9")]
    members += [("empty.png", encoded(13)), ("empty.txt", b" \n")]
    write_tar(tmp_path / "a.tar", members)
    out = tmp_path / "out"
    assert shards("--tars", tmp_path / "a.tar", out) == 1
    error = capsys.readouterr().err
    assert "4 of 14 images cannot be used" in error
    for part in (
        "lone has no image",
        "bare has no cap",
        "empty has no cap",
        "latin: i",
    ):
        assert part in error
    allow = ["--allow-missing-captions", "--max-corrupt", "0.1", "--overwrite"]
    assert shards("--tars", tmp_path / "a.tar", out, *allow) == 0
    printed = capsys.readouterr().out
    assert "13 images in 1 shards, 10 captions, 3 images without, 1 images" in printed
    assert "without caption: a.tar:bare, a.tar:latin, a.tar:empty" in printed
    assert [r["captions"] for r in read_all(out)[10:]] == [("",)] * 3


def test_a_preparation_of_tars_notices_other_tars(tars, tmp_path, capsys):
    out = tmp_path / "out"
    assert shards("--tars", tars, out, "--holdout", "0.4") == 0
    found = {red(r) for split in ("train", "test") for r in read_all(out, split)}
    assert found == set(range(8))
    assert shards("--tars", tars, out, "--holdout", "0.4") == 0
    write_tar(tars / "00002.tar", sample(9))
    assert shards("--tars", tars, out, "--holdout", "0.4") == 1
    assert "other source files" in capsys.readouterr().err


# Naming files


def test_files_are_found_by_folder_pattern_and_braces(tmp_path):
    names = ["a/000.tar", "a/001.tar", "a/002.tar", "b/010.tar", "b/x.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    (tmp_path / "c").mkdir()

    def found(pattern):
        files = find_files(f"{tmp_path}/{pattern}", ".tar")
        return [str(file.relative_to(tmp_path)) for file in files]

    assert found("") == names[:4]
    assert found("a/*.tar") == found("a") == names[:3]
    assert found("a/00{1..2}.tar") == names[1:3]
    assert found("a/{000..001}.tar") == found("a/{000,001}.tar") == names[:2]
    assert found("{a/00{0..1},b/010}.tar") == [*names[:2], names[3]]
    with pytest.raises(DataError, match=r"There is no file '.*003.tar'.*in quotes"):
        found("a/{000..003}.tar")
    with pytest.raises(DataError, match="holds no .tar files"):
        found("c")


# Parquet


def write_parquet(path, columns, rows_in_group=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(
        pyarrow.table(columns), path, row_group_size=rows_in_group
    )


@pytest.fixture
def table(tmp_path):
    """Two files of seven rows in groups of three, in the layout of Hugging Face."""
    root = tmp_path / "parquet"
    for number in (0, 1):
        ks = range(7 * number, 7 * number + 7)
        columns = {
            "id": [f"{k}" for k in ks],
            "image": [{"bytes": encoded(k), "path": f"{k}.png"} for k in ks],
            "caption": [f"caption {k}" for k in ks],
        }
        write_parquet(root / f"{number}.parquet", columns)
    return root


def test_parquet_becomes_shards(table, tmp_path, capsys, monkeypatch):
    reads = []
    whole = parquet._group.__wrapped__
    parquet._group.cache_clear()
    counted = lambda *a: reads.append(a) or whole(*a)
    cached = parquet.functools.lru_cache(maxsize=2)(counted)
    monkeypatch.setattr(parquet, "_group", cached)
    out = tmp_path / "out"
    assert shards("--parquet", table, out, "--shards", "2") == 0
    assert "Columns: image (images), caption (captions)" in capsys.readouterr().out
    records = read_all(out)
    assert [red(r) for r in records] == list(range(14))
    assert records[9]["captions"] == ("caption 9",)
    assert records[9]["name"] == "1.parquet[0:2]"
    assert records[9]["origin"] == str(table / "1.parquet")
    assert len(reads) == 6  # every group once: shards are runs


def test_parquet_columns_are_chosen_or_asked_for(tmp_path):
    columns = {
        "picture": [encoded(k) for k in range(3)],
        "thumb": [encoded(99) for k in range(3)],
        "short": ["a", "b", "c"],
        "many": [["d", "e"], ["f"], ["g", None]],
        "number": [1, 2, 3],
    }
    path = tmp_path / "x.parquet"
    write_parquet(path, columns)
    names = {"image_column": "picture", "caption_column": "many"}
    source = Parquet(path=str(path), **names).open("train")
    found = [source[i]["captions"] for i in range(3)]
    assert found == [("d", "e"), ("f",), ("g",)] and red(source[2]) == 2
    for missing, flag in (("image_column", "--image"), ("caption_column", "--caption")):
        for wrong in ("", "number", "absent"):
            with pytest.raises(
                DataError, match=f"{flag}-column.*picture .image.*numbe"
            ):
                Parquet(path=str(path), **names | {missing: wrong}).columns()
    write_parquet(path, {"picture": [encoded(0)], "words": ["only one"]})
    assert Parquet(path=str(path)).columns() == ("picture", "words")


def test_bad_rows_and_files_are_counted(tmp_path, capsys):
    columns = {
        "image": [encoded(0), None, b"junk", encoded(3), encoded(4)],
        "text": ["a", "b", "c", None, "  "],
    }
    write_parquet(tmp_path / "in" / "0.parquet", columns)
    (tmp_path / "in" / "1.parquet").write_bytes(b"PAR1 no parquet")
    out = tmp_path / "out"
    assert shards("--parquet", tmp_path / "in", out) == 1
    error = capsys.readouterr().err
    assert "5 of 6 images cannot be used" in error
    for part in (
        "0.parquet[0:1] holds no image bytes",
        "0.parquet[0:2] cannot be decoded",
        "0.parquet[1:0] has no caption",
        "0.parquet[1:1] has no caption",
        "1.parquet is damaged",
    ):
        assert part in error
    allow = ["--allow-missing-captions", "--max-corrupt", "0.5", "--overwrite"]
    assert shards("--parquet", tmp_path / "in", out, *allow) == 0
    assert "3 images in 1 shards, 1 captions, 2 images w" in capsys.readouterr().out
    source = Parquet(path=str(tmp_path / "in")).open("train")
    with pytest.raises(UnreadableImage):
        source[1]


def test_parquet_without_pyarrow_is_explained(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'pixelflow_jax\[parquet\]'"):
        Parquet(path=str(table)).open("train")


# Folders, sizes and previews


def test_captioned_folders_become_shards(tmp_path, capsys):
    root, out = tmp_path / "photos", tmp_path / "out"
    root.mkdir()
    for k in range(4):
        (root / f"{k}.png").write_bytes(encoded(k, size=(40, 20)))
        (root / f"{k}.txt").write_text(f"a {k}\n\nb {k}\na {k}\n")
    assert shards("--captions", root, out, "--size", "10", "--keep-aspect") == 0
    assert "4 images in 1 shards, 8 captions" in capsys.readouterr().out
    for k, record in enumerate(read_all(out)):
        assert record["captions"] == (f"a {k}", f"b {k}")
        assert record["image"].shape == (10, 20, 3)
    raw = Shards(path=str(out)).open("train").stored(0)
    assert (raw.height, raw.width) == (20, 40)  # as they were
    (root / "3.txt").unlink()
    assert shards("--captions", root, out, "--overwrite") == 1
    assert "3.png: 3.txt cannot be read" in capsys.readouterr().err
    assert shards("--captions", root, out, "--keep-aspect", "--overwrite") == 1
    assert "--keep-aspect needs --size" in capsys.readouterr().err


def test_previews_show_captions(tars, tmp_path, capsys):
    look = tmp_path / "look.png"
    command = ["preview", "--tars", str(tars), str(look), "--rows", "2"]
    assert prepare.main([*command, "--columns", "3", "--size", "64"]) == 0
    assert "8  in all" in capsys.readouterr().out
    picture = np.asarray(Image.open(look).convert("L"))
    heights = picture.shape[0] / 2
    assert 64 + 14 <= heights and picture.shape[1] >= 3 * 110
    below = picture[4 + 64 + 2 : 4 + 64 + 14, :110]
    assert (below < 128).any()  # letters under the first image


def test_shards_of_the_first_version_are_refused(tars, tmp_path):
    out = tmp_path / "out"
    assert shards("--tars", tars, out) == 0
    index = out / "train" / "dataset.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"version": 1}))
    with pytest.raises(DataError, match="version 1 and this program reads version 2"):
        Shards(path=str(out)).open("train")
