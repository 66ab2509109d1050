"""Two real processes of four devices train as one process of eight does."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from pixelflow_jax import build
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.loop import train
from pixelflow_jax.validate import validated
from tests.training import tiny
from tests.training.process import experiment

STEPS = 3


def start(images, workdir, steps) -> list[subprocess.Popen]:
    """Two processes that share eight devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tiny.ROOT / "tests" / "training" / "process.py"
    return [
        subprocess.Popen(
            [
                sys.executable,
                script,
                str(index),
                str(port),
                images,
                workdir,
                str(steps),
            ],
            cwd=tiny.ROOT,
            env=tiny.environment(devices=4, cache=False),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]


def finish(processes) -> list[str]:
    """What each process printed; all must have ended well."""
    try:
        done = [tiny.finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for code, out, error in done:
        assert code == 0, out + error
    return [out for _, out, _ in done]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.slow
def test_two_processes_equal_one(images, tmp_path):
    outputs = finish(start(images, tmp_path / "two", STEPS))
    run = build.training_run(validated(experiment(images, STEPS)))
    expected = train(run, tmp_path / "one")
    # The first process alone reports.
    assert "62,027" in outputs[0] and "62,027" not in outputs[1]
    two, one = (tiny.history(tmp_path / name) for name in ("two", "one"))
    assert [line["step"] for line in two] == [1, 2, 3]
    for line, other in zip(two, one, strict=True):
        assert line == pytest.approx(other, rel=1e-5, abs=1e-5)
    previews = [
        np.asarray(Image.open(tmp_path / name / "previews" / "00000002.png"), int)
        for name in ("two", "one")
    ]
    assert np.abs(previews[0] - previews[1]).max() <= 1

    # The checkpoint that two processes wrote, restored by one, on another mesh.
    state = tiny.saved_state(run, tmp_path / "two")
    assert int(state.step) == STEPS
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, state, expected)
    alone = tiny.run(images, steps=STEPS)
    tiny.assert_identical(tiny.saved_state(alone, tmp_path / "two"), state)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(images, tmp_path):
    processes = start(images, tmp_path, 100_000)
    history = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + tiny.PATIENCE
    try:
        while not history.exists() or history.read_text().count("\n") < 5:
            assert time.monotonic() < deadline, "it does not begin"
            if any(process.poll() is not None for process in processes):
                break  # `finish` shows why
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        outputs = finish(processes)
    finally:
        for process in processes:
            process.kill()
    ends = [re.search(r"ended after step (\d+)", out) for out in outputs]
    assert ends[0][1] == ends[1][1] and int(ends[0][1]) >= 5
    with contextlib.closing(Checkpointer(tmp_path / "checkpoints", None)) as reader:
        assert reader.latest() == int(ends[0][1])
