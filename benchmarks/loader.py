"""Images per second and core from JPEG files to float batches, ours against others.

python -m benchmarks.loader [--images 4096] [--extra FOLDER ...] [--out FILE]

Writes JPEG files of 256 x 256 (quality 95, some 35 kB, as a prepared ImageNet has them)
and reads them, shuffled, as batches of 32 in [-1, 1], half of the images mirrored:

  plain    a loop of Pillow and NumPy in one process
  torch    torch's DataLoader, its data set Pillow and NumPy, with W workers
  ours     this package's loader on the same folder, with W workers (0: threads)
  shards   the same from ArrayRecord files of these JPEG files

"ours" and "shards" run as they are installed, and once more without simplejpeg. Each is
a process of its own on the same core; they take turns of a few batches, so that what
else runs on the machine slows all of them alike. What counts is the processor time of a
loader and all below it from its first turn to its last, which is what one core
delivers; wall-clock rates are those of the turns. `--extra` are folders with torch,
where it is not installed.
"""

import argparse
import contextlib
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pixelflow_jax.data.loader import BatchLoader

BATCH, SIZE, WARM = 32, 256, 8  # images, pixels, and batches before the clock starts
WANTED = {"PixNerd-XL, batch 32": 430, "PixNerd-XL, batch 128": 506}  # on one H200
BICUBIC = Image.Resampling.BICUBIC
DISTINCT = 512  # files that are drawn; others are copies of them
TICKS = os.sysconf("SC_CLK_TCK")
TURN = 32  # batches
ABSENT = "raise ImportError('left out of this comparison')"


def write_images(root: pathlib.Path, count: int) -> None:
    """JPEG files of random shapes at four scales, with as many bytes as photographs."""
    rng = np.random.default_rng(0)
    for k in range(count):
        folder = root / f"{k % 8}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{k:05d}.jpg"
        if k >= DISTINCT:
            shutil.copyfile(folder / f"{k % DISTINCT:05d}.jpg", file)
            continue
        total = np.full((SIZE, SIZE, 3), 128, np.float32)
        for cells, strength in ((4, 60), (16, 40), (64, 25), (128, 12)):
            coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize((SIZE, SIZE), BICUBIC)
            total += (np.asarray(smooth, np.float32) - 128) * strength / 128
        total += rng.normal(0, 3, (SIZE, SIZE, 1))
        pixels = np.clip(total, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(file, quality=95)


class Files:
    """What one writes by hand: a path to a float image and its class."""

    def __init__(self, root: pathlib.Path):
        self.files = sorted(root.glob("*/*.jpg"))
        self.rng = np.random.default_rng(os.getpid())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        file = self.files[index]
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("RGB"))
        if self.rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return pixels.astype(np.float32) / 127.5 - 1, int(file.parent.name)


def plain(root: pathlib.Path, workers: int) -> Generator:
    """Batches by a loop."""
    data = Files(root)
    while True:
        order = data.rng.permutation(len(data))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            examples = [data[i] for i in order[start : start + BATCH]]
            images, labels = zip(*examples, strict=True)
            yield np.stack(images), np.array(labels)


def torch(root: pathlib.Path, workers: int) -> Generator:
    """Batches by torch's DataLoader."""
    from torch import set_num_threads  # pyright: ignore (not a dependency)
    from torch.utils.data import DataLoader  # pyright: ignore

    set_num_threads(1)  # others would wait for work, which costs processor time
    kept = {"persistent_workers": True, "prefetch_factor": 2} if workers else {}
    loader = DataLoader(
        Files(root),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        **kept,
    )
    while True:
        yield from loader


def ours(root: pathlib.Path, workers: int) -> "BatchLoader":
    """Batches by this package, from a folder."""
    from pixelflow_jax.data.folder import ImageFolder

    return _loader(ImageFolder(path=str(root)), workers)


def shards(root: pathlib.Path, workers: int) -> "BatchLoader":
    """Batches by this package, from ArrayRecord."""
    from pixelflow_jax.data.shards import Shards

    return _loader(Shards(path=f"{root}-shards"), workers)


def _loader(source, workers: int) -> "BatchLoader":
    from pixelflow_jax.data.loader import Data
    from pixelflow_jax.data.plan import Batching

    data = Data(source=source, image_size=SIZE, workers=workers)
    return data.loader(Batching(split="train", batch_size=BATCH, seed=0))


LOADERS: dict[str, Callable[[pathlib.Path, int], "Generator | BatchLoader"]] = {
    loader.__name__: loader for loader in (plain, torch, ours, shards)
}


def processor_seconds() -> dict[int, float]:
    """What each process of the machine, and all below it that live, have taken."""
    parents, seconds = {}, {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS
    sums = dict.fromkeys(seconds, 0.0)
    for pid, spent in seconds.items():
        above: int | None = pid
        while above:
            sums[above] = sums.get(above, 0.0) + spent
            above = parents.get(above)
    return sums


def serve(name: str, root: pathlib.Path, workers: int) -> None:
    """One loader in this process: numbers of batches come in, their seconds go out."""
    if hasattr(os, "sched_setaffinity"):  # Linux: all share one core
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    batches = LOADERS[name](root, workers)
    for line in sys.stdin:
        wall = time.perf_counter()
        for _ in range(int(line)):
            next(batches)
        print(time.perf_counter() - wall, flush=True)
    batches.close()
    os._exit(0)  # no thread keeps it


def write_shards(root: pathlib.Path) -> None:
    """The same JPEG files in shards."""
    from pixelflow_jax.data.folder import ImageFolder
    from pixelflow_jax.data.prepare.shard_writer import (
        Encoding,
        ShardOptions,
        write_shards,
    )

    write_shards(
        {"train": ImageFolder(path=str(root)).open("train")},
        pathlib.Path(f"{root}-shards"),
        Encoding(format="keep"),
        description="",
        options=ShardOptions(shards=4),
    )


class Contender:
    """A loader in a process of its own, and what its batches have cost so far."""

    def __init__(self, name: str, workers: int, quick: bool, root: pathlib.Path):
        self.row = {"loader": name, "workers": workers, "simplejpeg": quick}
        command = [sys.executable, "-m", "benchmarks.loader", "--one", name, str(root)]
        paths = [] if quick else [str(root.parent / "absent")]
        paths.append(os.environ.get("PYTHONPATH", ""))
        self._process = subprocess.Popen(
            [*command, "--workers", str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        self.pid, self.wall = self._process.pid, 0.0

    def turn(self, batches: int) -> None:
        """Asks for so many batches, and waits for them."""
        assert self._process.stdin and self._process.stdout
        print(batches, file=self._process.stdin, flush=True)
        self.wall += float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process, by the end of its input."""
        self._process.communicate()


def compare(arguments: argparse.Namespace) -> list[dict]:
    """A row for each loader and number of workers, all measured in turns."""
    cases = [("plain", 0, False)]
    for workers in arguments.workers:
        cases += [("torch", workers, False)] if arguments.torch else []
        both = itertools.product(("ours", "shards"), (workers,), (True, False))
        cases += list(both)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        root = pathlib.Path(folder, "images")
        (root.parent / "absent").mkdir()
        (root.parent / "absent" / "simplejpeg.py").write_text(ABSENT)
        write_images(root, arguments.images)
        write_shards(root)
        contenders = []
        for name, workers, quick in cases:
            contenders.append(Contender(name, workers, quick, root))
            stack.callback(contenders[-1].close)
        return measure(contenders, max(1, arguments.images // (TURN * BATCH)))


def measure(contenders: list[Contender], turns: int) -> list[dict]:
    """A row for each: images per second of processor time, and of the clock."""
    for contender in contenders:
        contender.turn(WARM)
        contender.wall = 0.0
    before, images = processor_seconds(), turns * TURN * BATCH
    for _ in range(turns):
        for contender in contenders:
            contender.turn(TURN)
    after, rows = processor_seconds(), []
    for contender in contenders:
        rate = images / (after[contender.pid] - before[contender.pid])
        row = {**contender.row, "per_core": round(rate)}
        row["per_second"] = round(images / contender.wall)
        cores = {k: round(wanted / rate, 2) for k, wanted in WANTED.items()}
        rows.append(row | {f"cores for {k}": n for k, n in cores.items()})
    return rows


def main() -> None:
    """Print a row each loader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--torch", type=int, default=1, help="0 leaves torch out")
    parser.add_argument("--extra", nargs="*", default=[], help="folders of packages")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines to add to")
    parser.add_argument("--one", nargs=2, metavar=("LOADER", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.one:
        name, folder = arguments.one
        serve(name, pathlib.Path(folder), arguments.workers[0])
    paths = [os.environ.get("PYTHONPATH", ""), *arguments.extra]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    rows = compare(arguments)
    from benchmarks import harness

    harness.report(rows, arguments.out)


if __name__ == "__main__":
    main()
