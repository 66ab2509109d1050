"""Kills a command that draws, at random, until it is done: the same bytes must result.

python -m benchmarks.draw_kills --kills 10

Draws with `pixelflow sample` once in peace, then again with as many SIGKILLs, and
compares every file. Prints how many images each kill found.
"""

import argparse
import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

FLAGS = ("--classes=flags", "--sample_steps=2", "--height=16", "--width=16")


def start(out: pathlib.Path, flags: tuple[str, ...]) -> subprocess.Popen:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "pixelflow_jax", "sample", f"--out={out}", *flags]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet)


def drawn(out: pathlib.Path) -> int:
    """How many images there are."""
    return sum(1 for _ in out.glob("images/**/*.png"))


def content(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def killed(
    out: pathlib.Path, flags: tuple[str, ...], kills: int, span: int, seed: int = 0
) -> list[int]:
    """Draw with that many kills; returns how many images there were at each.

    Each comes after up to `span` images of the process, or before its first one.
    """
    rng, reached = random.Random(seed), []
    while len(reached) < kills:
        process, begun = start(out, flags), time.time()
        wanted = rng.randrange(span)
        while process.poll() is None and recent(out, begun) < wanted:
            time.sleep(0.01)
        if process.poll() is not None:
            raise RuntimeError(f"It was done after {len(reached)} kills: draw more.")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (out / "samples.json").exists()
        reached.append(drawn(out))
    if start(out, flags).wait() != 0:
        raise RuntimeError("The command failed after the kills.")
    return reached


def recent(out: pathlib.Path, begun: float) -> int:
    """How many images were written since a moment."""
    files = out.glob("images/**/*.png")
    with contextlib.suppress(OSError):  # one that is being replaced
        return sum(file.stat().st_mtime >= begun for file in files)
    return 0


def main() -> None:
    """Draw in peace and with kills; exits with 1 where the files differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    flags = ("--weights=emoji", *FLAGS, f"--count={arguments.count}")
    with tempfile.TemporaryDirectory() as folder:
        peace, war = pathlib.Path(folder, "peace"), pathlib.Path(folder, "war")
        if start(peace, flags).wait() != 0:
            raise RuntimeError("The command failed.")
        span = arguments.count // arguments.kills
        reached = killed(war, flags, arguments.kills, span, arguments.seed)
        same = content(peace) == content(war)
        print(f"{len(content(peace))} files of {arguments.count} images")
        print(f"killed when {', '.join(map(str, reached))} images were drawn")
        print("the same bytes" if same else "OTHER BYTES")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
