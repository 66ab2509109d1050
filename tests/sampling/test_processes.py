"""One device, eight, and two processes of four draw the same files and one number."""

import json
import socket
import subprocess
import sys

import jax
import pytest

from benchmarks import draw_kills
from pixelflow_jax.mesh import AXES, MeshShape
from tests.sampling import process
from tests.training import tiny


def content(folder):
    """Every file below a folder, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def together(folder) -> list[dict]:
    """What two processes of four devices each found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(tiny.ROOT / "tests" / "sampling" / "process.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, str(index), port, str(folder)],
            cwd=tiny.ROOT,
            env=tiny.environment(devices=4, cache=False),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        done = [tiny.finish(one, timeout=600) for one in running]
    finally:
        for one in running:
            one.kill()
    for code, out, error in done:
        assert code == 0, out + error
    return [json.loads(out.splitlines()[-1]) for _, out, _ in done]


@pytest.mark.slow
def test_devices_and_processes_draw_the_same_set(tmp_path, monkeypatch):
    model = process.pipeline(eight())
    results = {"eight": process.draw(tmp_path / "eight", model)}
    losses = process.heldout(model)
    first = jax.devices()[:1]
    monkeypatch.setattr(MeshShape, "build", lambda self, devices=None: mesh_of(first))
    results["one"] = process.draw(tmp_path / "one", process.pipeline(eight()))
    monkeypatch.undo()
    results["two"], other = together(tmp_path / "two")
    assert results["two"] == other
    # Losses too are those of one process on the same mesh, to the last bit.
    assert {name: other.pop(name) for name in losses} == losses
    results["two"] = other
    one = content(tmp_path / "one")
    assert len(one) == process.COUNT + 3
    for name in ("eight", "two"):
        assert content(tmp_path / name) == one, name
        assert results[name] == pytest.approx(results["one"], rel=1e-6)


def eight():
    return MeshShape()


def mesh_of(devices):
    axes = (jax.sharding.AxisType.Auto,) * 3
    return jax.make_mesh((1, 1, 1), AXES, axis_types=axes, devices=devices)


@pytest.mark.slow
@pytest.mark.long
def test_a_command_that_is_killed_goes_on_in_the_same_bytes(tmp_path, monkeypatch):
    for name, value in tiny.environment().items():
        monkeypatch.setenv(name, value)
    flags = ("--weights=emoji", *draw_kills.FLAGS, "--count=60")
    assert draw_kills.start(tmp_path / "peace", flags).wait() == 0
    reached = draw_kills.killed(tmp_path / "war", flags, kills=2, span=20, seed=1)
    assert max(reached) < 60
    assert content(tmp_path / "war") == content(tmp_path / "peace")
