"""A damaged checkpoint is never taken for a whole one."""

import json
import os
import pathlib
import random
import shutil
import time

import numpy as np
import pytest
from orbax.checkpoint._src.metadata import checkpoint as orbax_metadata

from pixelflow_jax import digests
from pixelflow_jax.cli import verify
from pixelflow_jax.errors import CheckpointError
from pixelflow_jax.training import integrity
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.integrity import METADATA, NAME, examine
from pixelflow_jax.training.loop import train
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    """A run of six steps, saved after three and six, with its last state."""
    workdir = tiny_run.copy(tmp_path_factory.mktemp("run"))
    return workdir, tiny.run(tiny_run.images), tiny_run.state


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of that run, to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "run")


def files(folder) -> list:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def arrays(folder):
    """The largest file of a checkpoint: it holds parameters."""
    return max(files(folder), key=lambda path: path.stat().st_size)


def flip(path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def damage(folder, rng: random.Random) -> str:
    """One random damage to the files below a folder; says which."""
    every = files(folder)
    path = rng.choice(every)
    kind = rng.choice(["flip", "cut", "delete", "swap", "zeros", "longer"])
    content = path.read_bytes()
    if kind == "flip":
        flip(path, rng.randrange(8 * len(content)))
    elif kind == "cut":
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == "delete":
        path.unlink()
    elif kind == "swap":
        other = rng.choice([p for p in every if p.read_bytes() != content])
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "zeros":
        at = rng.randrange(len(content))
        zeroed = content[at : at + 512]
        path.write_bytes(content[:at] + bytes(len(zeroed)) + content[at + 512 :])
    else:
        path.write_bytes(content + content[-8:])
    return f"{kind} {path.relative_to(folder)}"


def meaning(folder) -> dict:
    """What a checkpoint says: all bytes, but for what changes nothing in JSON.

    Nor does the text that stands in its commit_success.txt, which nobody reads.
    """
    said = {str(p.relative_to(folder)): p.read_bytes() for p in files(folder)}
    said.pop("commit_success.txt", None)
    for name in {NAME, METADATA} & set(said):
        try:
            said[name] = json.loads(said[name])
            said[name].pop(integrity.LATE, None)
        except ValueError:
            pass
    return said


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_random_damages_are_all_seen(finished, tmp_path, count):
    """A whole one is good; with one damage it is not, unless nothing was changed."""
    whole = finished[0] / "checkpoints" / "6"
    expected, rng = meaning(whole), random.Random(0)
    assert examine(whole).state == "good"
    silent, seen = [], 0
    for number in range(count):
        folder = shutil.copytree(whole, tmp_path / str(number))
        done = damage(folder, rng)
        if examine(folder).state == "damaged":
            seen += 1
        elif meaning(folder) != expected:
            silent.append(done)
        shutil.rmtree(folder)
    assert silent == [] and seen > 0.9 * count


def test_what_is_wrong_is_named(copy):
    folder = copy / "checkpoints" / "6"
    path = arrays(folder)
    name, size = path.relative_to(folder).as_posix(), path.stat().st_size
    flip(path, 12_345)
    (folder / "config" / "metadata").unlink()
    finding = examine(folder)
    said = (f"{name} holds other bytes than were written", "config/metadata is absent")
    assert set(finding.problems) == set(said)
    path.write_bytes(path.read_bytes()[:10])
    assert f"{name} has 10 of {size} bytes" in str(examine(folder))
    (folder / NAME).unlink()
    assert examine(folder).state == "damaged"
    assert NAME in str(examine(folder))


def late(store):
    """Writes of metadata begin late, as on a busy machine."""
    update = store.update

    def begun_late(self, path, **changes):
        time.sleep(0.5)
        update(self, path, **changes)

    return "update", begun_late


def half_done(store):
    """A part of the metadata is there before the rest."""
    write = store.write

    def written_slowly(self, path, metadata):
        pathlib.Path(path).write_text(json.dumps(metadata)[:-9])
        time.sleep(0.5)
        write(self, path, metadata)

    return "write", written_slowly


@pytest.mark.parametrize("change", [late, half_done])
def test_digests_wait_for_metadata_that_another_thread_writes(
    tmp_path, monkeypatch, change
):
    store = orbax_metadata._MetadataStoreImpl
    monkeypatch.setattr(store, *change(store))
    writer = Checkpointer(tmp_path, Checkpointing(every=1))
    writer.save(1, {"a": np.ones(3, np.float32)}, {"next_batch": 1}, {})
    writer.close()
    assert str(examine(tmp_path / "1")) == "good"


def test_metadata_that_never_come_fail_the_save(tmp_path, monkeypatch):
    monkeypatch.setattr(integrity, "SETTLING", 0.1)
    store = orbax_metadata._MetadataStoreImpl
    monkeypatch.setattr(store, "update", lambda self, path, **changes: None)
    writer = Checkpointer(tmp_path, Checkpointing(every=1))
    writer.save(1, {"a": np.ones(3, np.float32)}, {"next_batch": 1}, {})
    with pytest.raises(CheckpointError, match="not written within 0.1 s"):
        writer.close()
    assert not (tmp_path / "1").exists()


def test_a_large_file_is_hashed_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "BLOCK", 1000)
    (tmp_path / "a").write_bytes(os.urandom(5500))
    integrity.write(tmp_path)
    assert examine(tmp_path).state == "good"
    for bit in (0, 8 * 999 + 7, 8 * 1000, 8 * 5499):
        flip(tmp_path / "a", bit)
        assert examine(tmp_path).state == "damaged"
        flip(tmp_path / "a", bit)
    assert examine(tmp_path).state == "good"


def test_a_run_goes_on_from_the_one_before(finished, copy, images, capsys):
    """By itself, with the same bits; the damaged one stays under another name."""
    flip(arrays(copy / "checkpoints" / "6"), 9_999)
    state = train(tiny.run(images), copy)
    tiny.assert_identical(state, finished[2])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "damaged" in x]
    assert f"{copy}/checkpoints/6 is damaged: state/" in line
    assert "Step 3 is taken; the damaged one is kept as damaged-6." in line
    names = {path.name for path in (copy / "checkpoints").iterdir()}
    assert names == {"3", "6", "damaged-6"}
    assert tiny.history(copy) == tiny.history(finished[0])


def test_a_reader_passes_it_over_and_moves_nothing(copy, capsys):
    flip(arrays(copy / "checkpoints" / "6"), 9_999)
    reader = Checkpointer(copy / "checkpoints", None)
    assert reader.latest() == 3
    assert "Step 3 is taken." in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="delete that folder to go on from"):
        reader.config(6)
    reader.close()
    assert (copy / "checkpoints" / "6").exists()


def spoil_metadata(checkpoint) -> None:
    """So that Orbax cannot list checkpoints while this one is among them."""
    path = checkpoint / METADATA
    path.write_bytes(path.read_bytes().replace(b"commit_t", b"commid_t"))


def test_damaged_metadata_of_one_hide_no_other(copy, capsys):
    directory = copy / "checkpoints"
    spoil_metadata(directory / "6")
    for policy, name in ((None, "6"), (Checkpointing(), "damaged-6")):
        saver = Checkpointer(directory, policy)
        assert saver.latest() == 3
        saver.close()
        assert (directory / name).exists()
        said = capsys.readouterr().err
        assert "holds other bytes than were written" in said and "6 is damaged" in said


def test_damaged_metadata_of_all_begin_nothing(copy, images):
    for step in "36":
        spoil_metadata(copy / "checkpoints" / step)
    with pytest.raises(CheckpointError, match="delete that folder to begin anew"):
        train(tiny.run(images), copy)
    assert (copy / "checkpoints" / "6").exists()


def test_where_all_are_damaged_nothing_begins(copy, images):
    for step in "36":
        flip(arrays(copy / "checkpoints" / step), 9_999)
    with pytest.raises(CheckpointError, match="delete that folder to begin anew"):
        train(tiny.run(images), copy)
    assert {path.name for path in (copy / "checkpoints").iterdir()} == {"3", "6"}


@pytest.mark.parametrize("name", ["00000006", "step_6", "step-0006"])
def test_a_renamed_step_is_named(copy, images, name):
    folder = copy / "checkpoints"
    (folder / "6").rename(folder / name)
    with pytest.raises(CheckpointError, match=f"{name} looks like .* step 6 under"):
        train(tiny.run(images), copy)
    (folder / name).rename(folder / "6")
    (folder / "3").rename(folder / "0003")  # an older one is nobody's loss
    reader = Checkpointer(folder, None)
    assert reader.latest() == 6
    reader.close()


def test_interrupted_saves_are_removed_with_a_line(copy, capsys):
    left = copy / "checkpoints" / "9.orbax-checkpoint-tmp-1"
    shutil.copytree(copy / "checkpoints" / "6", left)
    reader = Checkpointer(copy / "checkpoints", None)
    reader.close()
    assert left.exists()
    Checkpointer(copy / "checkpoints", Checkpointing()).close()
    assert not left.exists()
    assert f"Removed {left}, which an interrupted" in capsys.readouterr().err


def test_verify(copy, capsys):
    folder = copy / "checkpoints"
    assert verify.main([str(copy)]) == 0
    assert capsys.readouterr().out == "checkpoints/3  good\ncheckpoints/6  good\n"
    old = shutil.copytree(tiny.ROOT / "tests/files/v1/run/checkpoints/4", folder / "4")
    assert examine(old).state == "without digests"
    path = arrays(folder / "6")
    flip(path, 9_999)
    assert verify.main([f"--workdir={copy}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["checkpoints/3  good", "checkpoints/4  without digests"]
    name = path.relative_to(folder / "6")
    wrong = f"damaged: {name} holds other bytes than were written"
    assert lines[2] == f"checkpoints/6  {wrong}"
    for arguments, code in (([str(copy / "no")], 1), ([], 2), (["a", "--b"], 2)):
        with pytest.raises(SystemExit) as ended:
            verify.main(arguments)
        assert ended.value.code == code
