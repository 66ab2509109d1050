"""Two runs never work in one workdir, and a dead one leaves no lock behind."""

import errno
import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from pixelflow_jax.training import lock
from pixelflow_jax.training.lock import NAME, LockedError, only_run
from pixelflow_jax.training.loop import train
from tests.training import tiny

HOLD = """
import sys, pathlib
from pixelflow_jax.training.lock import acquire
file = acquire(pathlib.Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder) -> subprocess.Popen:
    """Another process that holds the lock until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_it_and_kill_9_frees_it(tmp_path):
    process = hold(tmp_path)
    try:
        with pytest.raises(LockedError) as caught, only_run(tmp_path):
            pass
        message = str(caught.value)
        assert f"process {process.pid} of {socket.gethostname()} since 20" in message
        assert str(tmp_path) in message and "another --workdir" in message
        images = tiny.write_images(tmp_path / "images", 8)
        with pytest.raises(LockedError):
            train(tiny.run(images), tmp_path)
        assert not (tmp_path / "checkpoints").exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / NAME).exists()
    with only_run(tmp_path):
        assert json.loads((tmp_path / NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / NAME).exists()


def test_it_is_released_also_after_an_error(tmp_path):
    with pytest.raises(KeyError), only_run(tmp_path):
        with pytest.raises(LockedError), only_run(tmp_path):
            pass
        raise KeyError
    with only_run(tmp_path):
        pass


def test_a_lock_of_another_machine_says_how_to_remove_it(tmp_path):
    record = {"host": "elsewhere", "pid": 7, "since": "2026-01-01 00:00:00+00:00"}
    (tmp_path / NAME).write_text(json.dumps(record))
    with pytest.raises(LockedError) as caught, only_run(tmp_path):
        pass
    said = str(caught.value)
    assert "process 7 of elsewhere since 2026-01-01" in said
    assert f"rm '{tmp_path / NAME}'" in said
    assert json.loads((tmp_path / NAME).read_text()) == record


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LockedError, match="Cannot write checkpoints to .*file"):
        with only_run(tmp_path / "file" / "run"):
            pass


@pytest.mark.parametrize("content", [b"", b"\xff{", b"[1]", b"[" * 9999, b'{"pid": 1'])
def test_an_odd_record_without_a_lock_is_nobodys(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    with only_run(tmp_path):
        pass


def test_on_a_disk_without_locks_the_record_decides(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    record = {"host": socket.gethostname(), "pid": os.getppid(), "since": "now"}
    (tmp_path / NAME).write_text(json.dumps(record))
    with pytest.raises(LockedError), only_run(tmp_path):
        pass
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / NAME).write_text(json.dumps(record | {"pid": gone.pid}))
    with only_run(tmp_path):
        pass


def test_a_file_removed_by_the_one_before_is_made_anew(tmp_path, monkeypatch):
    """The holder removes the file after the next one has opened it."""
    take, calls = lock._take, []

    def late(file, path: pathlib.Path) -> None:
        if not calls:
            path.unlink()
        calls.append(path)
        take(file, path)

    monkeypatch.setattr(lock, "_take", late)
    with only_run(tmp_path):
        assert len(calls) == 2 and (tmp_path / NAME).exists()
