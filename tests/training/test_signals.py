"""Signals to a real process."""

import contextlib
import signal
import time

import pytest

from pixelflow_jax.training.checkpoint import Checkpointer
from tests.training import tiny

ENDLESS = "config.steps = 1_000_000\nconfig.checkpoint.every = 1_000_000"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def start(images, folder):
    """An endless run that has made a few steps."""
    config = tiny.write_config(folder / "config.py", images, ENDLESS)
    history = folder / "run" / "metrics.jsonl"
    done = len(tiny.history(folder / "run")) if history.exists() else 0
    process = tiny.command(f"--config={config}", f"--workdir={folder / 'run'}")
    deadline = time.monotonic() + 60
    while not history.exists() or history.read_text().count("\n") < done + 3:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    return process


def latest(folder):
    reader = Checkpointer(folder / "run" / "checkpoints", None)
    with contextlib.closing(reader):
        return reader.latest()


@pytest.mark.slow
def test_sigterm_and_ctrl_c_save_and_the_next_start_goes_on(images, tmp_path):
    steps = []
    for number in (signal.SIGTERM, signal.SIGINT):
        process = start(images, tmp_path)
        process.send_signal(number)
        code, out, error = tiny.finish(process, timeout=30)
        assert code == 0, error
        step = latest(tmp_path)
        assert f"Stopped after step {step}" in out
        assert f"{number.name}: saving after this step" in error
        assert "Traceback" not in error
        lines = tiny.history(tmp_path / "run")
        assert [line["step"] for line in lines] == [*range(1, step + 1)]
        if steps:
            assert f"Going on from step {steps[-1]} " in out
        steps.append(step)
    assert steps[0] < steps[1]


@pytest.mark.slow
def test_the_second_ctrl_c_kills(images, tmp_path):
    """The second one comes while the first one's checkpoint is being saved, or before."""
    process = start(images, tmp_path)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGSTOP)  # both must be seen as two signals
    process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    code, _, error = tiny.finish(process, timeout=10)
    assert code in (130, -signal.SIGINT), error
