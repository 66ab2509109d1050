import os

import pytest

from pixelflow_jax.atomic import atomic_files, atomic_write, partials


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_a_file_appears_when_it_is_whole(tmp_path, sync, shared):
    path = tmp_path / "file.json"
    path.write_text("old")
    with atomic_write(path, sync=sync, shared=shared) as partial:
        partial.write_text("new")
        assert path.read_text() == "old" and partial.parent == tmp_path
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_file_as_it_was(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as partial:
        partial.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_block_that_writes_nothing_is_a_failure(tmp_path):
    for sync in (True, False):
        with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a", sync=sync):
            pass
    assert not os.listdir(tmp_path)


def test_files_are_as_readable_as_others(tmp_path):
    umask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as partial:
            partial.write_text("x")
    finally:
        os.umask(umask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (calls.append("sync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda *a: (calls.append("move"), replace(*a)))
    with atomic_write(tmp_path / "file") as partial:
        partial.write_text("x")
    with atomic_files(tmp_path / "folder", last="b") as folder:
        (folder / "a").write_text("x")
        (folder / "b").write_text("x")
    assert calls == ["sync", "move", "sync", "sync", "move", "move"]


def test_what_a_killed_process_left_is_written_over_or_found(tmp_path):
    with atomic_write(tmp_path / "a") as alone:
        alone.write_text("x")
    with atomic_write(tmp_path / "a", shared=True) as shared:
        shared.write_text("x")
    assert str(os.getpid()) in shared.name and str(os.getpid()) not in alone.name
    alone.write_text("half a file, longer than the next")
    shared.write_text("half")
    assert set(partials(tmp_path, "a*")) == {alone, shared}
    assert not partials(tmp_path, "b*")
    with atomic_write(tmp_path / "a") as again:
        again.write_text("x")
    assert (tmp_path / "a").read_text() == "x"


def test_a_folder_keeps_its_other_files_and_loses_stale_ones(tmp_path):
    for name in ("config", "weights", "picture", "LICENSE"):
        (tmp_path / name).write_text("old")
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "half").write_text("of a killed process")
    with atomic_files(tmp_path, last="config", optional=("picture",)) as partial:
        (partial / "config").write_text("new")
        (partial / "weights").write_text("new")
    content = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert content == {"config": "new", "weights": "new", "LICENSE": "old"}


def test_a_folder_that_fails_is_as_it_was_or_not_there(tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "config").write_text("old")
    for folder in (old, tmp_path / "new" / "folder"):
        with pytest.raises(ValueError), atomic_files(folder, last="config") as partial:
            (partial / "config").write_text("new")
            raise ValueError
    assert os.listdir(tmp_path) == ["old"] and os.listdir(old) == ["config"]
    assert (old / "config").read_text() == "old"


def test_a_folder_that_was_cut_short_lacks_its_last_file(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("old")
    replace = os.replace

    def stop(source, target):
        if target.name == "weights":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt), atomic_files(tmp_path, last="config") as new:
        (new / "config").write_text("new")
        (new / "weights").write_text("new")
    assert not os.listdir(tmp_path)
