"""Signals to a real process."""

import contextlib
import os
import signal
import time

import pytest

from pixelflow_jax.errors import STOPPED
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.signals import stop_signals
from tests.training import tiny

ENDLESS = "config.steps = 1_000_000\nconfig.checkpoint.every = 1_000_000"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def start(images, folder, changes=""):
    """An endless run that has made a few steps."""
    config = tiny.write_config(folder / "config.py", images, ENDLESS + changes)
    history = folder / "run" / "metrics.jsonl"
    done = len(tiny.history(folder / "run")) if history.exists() else 0
    process = tiny.command(f"--config={config}", f"--workdir={folder / 'run'}")
    deadline = time.monotonic() + tiny.PATIENCE
    while not history.exists() or history.read_text().count("\n") < done + 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def latest(folder):
    reader = Checkpointer(folder / "run" / "checkpoints", None)
    with contextlib.closing(reader):
        return reader.latest()


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM], ids=str)
def test_a_closed_terminal_asks_to_stop_and_never_kills(first):
    """Its second SIGHUP, which the shell sends, comes while the run saves."""
    with stop_signals() as stop:
        assert not stop()
        for number in (first, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
            assert stop()


def test_under_nohup_a_run_goes_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_the_signals_save_and_the_next_start_goes_on(images, tmp_path):
    steps = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process = start(images, tmp_path)
        process.send_signal(number)
        code, out, error = tiny.finish(process)
        assert code == STOPPED, error
        step = latest(tmp_path)
        assert f"Stopped after step {step}" in out
        assert f"{number.name}: saving after this step" in error
        assert "Traceback" not in error
        lines = tiny.history(tmp_path / "run")
        assert [line["step"] for line in lines] == [*range(1, step + 1)]
        if steps:
            assert f"Going on from step {steps[-1]} " in out
        steps.append(step)
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_the_second_ctrl_c_kills(images, tmp_path):
    # Steps so long that the second signal arrives before the first has done its work.
    process = start(images, tmp_path, "\nconfig.batch_size = 1024")
    process.send_signal(signal.SIGINT)
    said = b""
    while b"SIGINT: saving after this step; again to kill" not in said:
        said += os.read(process.stderr.fileno(), 10_000)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, out, error = tiny.finish(process)
    assert code == 130 and "Interrupted." in error, error
    assert "Stopped after" not in out
