"""Worker processes end with their parent, however that ends, and leave nothing."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path("/dev/shm")
PROGRAM = """
import sys, time
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.plan import Batching

def main():
    data = Data(source=ImageFolder(path=sys.argv[1]), image_size=64, workers=2)
    loader = data.loader(Batching(split="train", batch_size=16, seed=0))
    for k in range(8):
        next(loader)
    print("reading", flush=True)
    if sys.argv[2] == "fail":
        raise ValueError("as a step might")
    time.sleep(120)

if __name__ == "__main__":
    main()
"""

linux = pytest.mark.skipif(not SHARED.is_dir(), reason="shared memory is elsewhere")


def descendants(pid: int) -> set[int]:
    """All processes below `pid`; the trackers of their resources included."""
    found: set[int] = set()
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found |= {int(stat.parent.name)} | descendants(int(stat.parent.name))
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that are neither gone nor waiting for somebody to take note of it."""
    found = set()
    for pid in pids:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        except OSError:
            continue
        if state.split()[0] != "Z":
            found.add(pid)
    return found


def wait_for(condition, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for k in range(64):
        (root / f"{k % 2}").mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{k % 2}" / f"{k}.png")
    return root


def start(images, folder, end):
    script = folder / "program.py"
    script.write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, script, images, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )


@linux
@pytest.mark.slow
def test_after_kill_9_no_worker_and_no_shared_memory_stays(images, tmp_path):
    before = set(os.listdir(SHARED))
    with start(images, tmp_path, "wait") as process:
        assert process.stdout.readline() == "reading\n"
        below = descendants(process.pid)
        assert len(below) >= 2
        os.kill(process.pid, signal.SIGKILL)
    assert wait_for(lambda: not alive(below)), f"still there: {alive(below)}"
    assert wait_for(lambda: not set(os.listdir(SHARED)) - before)


@linux
@pytest.mark.slow
def test_a_run_that_fails_ends(images, tmp_path):
    """Nobody closes its loader: neither threads nor workers keep it."""
    before = set(os.listdir(SHARED))
    with start(images, tmp_path, "fail") as process:
        _, error = process.communicate(timeout=300)
    assert process.returncode == 1 and "as a step might" in error
    assert wait_for(lambda: not set(os.listdir(SHARED)) - before)
