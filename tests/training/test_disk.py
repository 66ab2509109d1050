"""Full disks: one paragraph, exit code 1, and the earlier checkpoint is still good."""

import os
import pathlib
import shutil
import subprocess

import pytest

from pixelflow_jax.errors import CheckpointError
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.loop import train
from tests.training import tiny

FULL = pathlib.Path("/dev/full")  # every write fails with "No space left on device"
needs_full = pytest.mark.skipif(
    not FULL.exists(), reason="this system has no /dev/full"
)


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


@pytest.fixture(scope="module")
def begun(images, tmp_path_factory):
    """A run saved after three of six steps."""
    workdir = tmp_path_factory.mktemp("run")
    train(tiny.run(images, steps=3), workdir)
    return workdir


def assert_one_paragraph(code, out, error):
    assert code == 1, error
    assert "Traceback" not in out + error
    last = error.rstrip().split("\n")[-1]
    assert len(last) < 1500
    return last


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit(tiny_run, images, begun, tmp_path):
    """Files over 40 kB cannot be written: the checkpoint of step 6 has larger ones."""
    shutil.copytree(begun, tmp_path / "run")
    config = tiny.write_config(tmp_path / "config.py", images)
    process = tiny.command(
        f"--config={config}",
        f"--workdir={tmp_path / 'run'}",
        cache=False,
        limits="ulimit -f 80",  # blocks of 512 bytes
    )
    last = assert_one_paragraph(*tiny.finish(process))
    assert "CheckpointError: Could not write a checkpoint to" in last
    assert "start again with the same --workdir" in last
    steps = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert "3" in steps and "6" not in steps
    # With room again, the same command goes on to the same end.
    tiny.assert_identical(train(tiny.run(images), tmp_path / "run"), tiny_run.state)


@pytest.mark.slow
def test_a_file_system_without_room(images, begun, tmp_path):
    """A real file system of 8 MB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    try:
        shutil.copytree(begun, disk / "run")
        room = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(room - 64 * 1024))
        config = tiny.write_config(tmp_path / "config.py", images)
        arguments = f"--config={config}", f"--workdir={disk / 'run'}"
        last = assert_one_paragraph(*tiny.finish(tiny.command(*arguments)))
        assert "CheckpointError" in last and "the disk is full" in last
        (disk / "filler").unlink()
        reader = Checkpointer(disk / "run" / "checkpoints", None)
        assert reader.latest() == 3
        code, _, error = tiny.finish(tiny.command(*arguments))
        assert code == 0, error
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@needs_full
def test_a_log_that_does_not_fit(images, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".metrics.jsonl.partial").symlink_to(FULL)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0}\n')
    config = tiny.write_config(tmp_path / "config.py", images)
    process = tiny.command(f"--config={config}", f"--workdir={tmp_path / 'run'}")
    last = assert_one_paragraph(*tiny.finish(process))
    assert "No space left on device" in last and str(tmp_path / "run") in last


@needs_full
@pytest.mark.parametrize("write", ["metrics", "events", "preview"])
def test_every_write_of_a_run_notices_the_full_disk(
    images, tmp_path, monkeypatch, write
):
    """Nothing is swallowed by a thread, and nothing waits for ever."""
    from pixelflow_jax.training import events, log

    if write == "metrics":
        monkeypatch.setattr(log, "_truncate", lambda path, start: path.symlink_to(FULL))
    elif write == "events":
        monkeypatch.setattr(events, "FLUSH_SECONDS", -1)
        opened = events.EventsWriter.__init__

        def full(self, prefix, suffix):
            opened(self, prefix, suffix)
            self._py_recordio_writer._writer = FULL.open("wb")

        monkeypatch.setattr(events.EventsWriter, "__init__", full)
    else:
        fail = OSError(28, "No space left on device")
        monkeypatch.setattr(log, "save_png", lambda *a: (_ for _ in ()).throw(fail))
    logging = log.Logging(every=1, preview_every=1, preview_count=1)
    run = tiny.run(images, devices=8, steps=2, log=logging)
    monkeypatch.setattr(Checkpointer, "save", lambda *args: None)
    with pytest.raises(OSError, match="No space left"):
        train(run, tmp_path)


def test_the_message_of_an_unknown_failure_stays_short(tmp_path):
    checkpointer = Checkpointer(tmp_path, tiny.experiment(tmp_path).checkpoint)
    with pytest.raises(CheckpointError) as caught, checkpointer._writing():
        raise RuntimeError("a\n" * 5000)
    assert len(str(caught.value)) < 800 and "\n" not in str(caught.value)
