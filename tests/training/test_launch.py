"""Processes started by launch/local.sh, or as SLURM does, work as one process does."""

import pathlib
import socket
import subprocess
import sys

import pytest

from pixelflow_jax import build
from pixelflow_jax.errors import LOST
from pixelflow_jax.training.loop import train
from pixelflow_jax.validate import validated
from tests.training import tiny

LAUNCH = tiny.ROOT / "launch"
MESH = """
from pixelflow_jax.mesh import MeshShape
config.mesh = MeshShape(fsdp=2)
config.checkpoint.every = 6
"""
MAIN = [sys.executable, "-m", "pixelflow_jax.main"]


def start(command, **variables: str) -> subprocess.Popen:
    """A command of two devices, with these variables besides."""
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=tiny.ROOT,
        env=tiny.environment(devices=2, cache=False) | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes, timeout: float = tiny.PATIENCE) -> list[tuple[int, str, str]]:
    """Exit code, output and error of each."""
    try:
        return [tiny.finish(process, timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def slurm(index: int, port: int) -> dict[str, str]:
    """What SLURM tells task `index` of two, on this machine."""
    return {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """The folder of images, the config, and `one`, the run of one process."""
    root = tmp_path_factory.mktemp("launch")
    images = tiny.write_images(root / "images")
    tiny.write_config(root / "config.py", images, MESH)
    alone = build.training_run(validated(tiny.experiment(images)))
    train(alone, root / "one")
    return root


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_on_this_machine_train_as_one_does(root, tmp_path):
    words = [*MAIN, f"--config={root / 'config.py'}", f"--workdir={tmp_path}"]
    (done,) = ended([start([LAUNCH / "local.sh", *words], CPU_DEVICES="2")])
    assert done[0] == 0, done[1] + done[2]
    found, wanted = tiny.history(tmp_path), tiny.history(root / "one")
    assert len(found) == len(wanted) == 6
    for line, other in zip(found, wanted, strict=True):
        assert line["step"] == other["step"]
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5, abs=1e-5)
    words = "2 processes on 1 host (found by flags), 4 devices (cpu), 2 in each"
    assert done[2].count(f"{words} process; mesh data=2, fsdp=2, tensor=1") == 1
    # The first process alone reports.
    assert done[1].count("62,027") == done[1].count("Checkpoints, curves") == 1


@pytest.mark.slow
@pytest.mark.long
def test_two_tasks_of_slurm_draw_together(root, tmp_path):
    drawing = ["--mode=sample", f"--workdir={root / 'one'}", f"--out={tmp_path}"]
    words, port = [*MAIN, *drawing, "--classes=flags", "--count=5"], free_port()
    done = ended([start(words, **slurm(index, port)) for index in range(2)])
    for code, out, error in done:
        assert code == 0, out + error
    assert "grid.png" in done[0][1] and "grid.png" not in done[1][1]
    assert "found by SLURM), 4 devices (cpu), 2 in each process" in done[0][2]
    assert "found by" not in done[1][2]
    assert len(list(tmp_path.glob("images/*.png"))) == 5


@pytest.mark.slow
def test_a_process_that_waits_in_vain_says_for_whom():
    code = "from pixelflow_jax.distributed import *; join(find(%r, 2, 1), wait=1)"
    address = f"localhost:{free_port()}"
    (done,) = ended([start([sys.executable, "-c", code % address])])
    assert done[0] == LOST
    assert f"Process 1 of 2 did not find the others by flags, at {address}" in done[2]


@pytest.mark.slow
def test_processes_of_different_configs_are_refused(root, tmp_path):
    port = free_port()
    flags = [
        f"--config={root / 'config.py'}",
        f"--workdir={tmp_path}",
        "--num_processes=2",
    ]
    flags += [f"--coordinator=localhost:{port}"]
    own = ([], ["--config.optimizer.lr=0.5"])
    words = [[*MAIN, *flags, *own[i], f"--process_id={i}"] for i in range(2)]
    for code, _, error in ended([start(line) for line in words]):
        assert code == 1
        assert "StartError: Process 1 of 2 differs from process 0 in" in error
        assert "config.optimizer.lr: 0.5 instead of 0.01" in error
    assert not list(tmp_path.iterdir())
