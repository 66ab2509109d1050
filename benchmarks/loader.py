"""Images per second and core from JPEG files to float batches, ours against others.

python -m benchmarks.loader [--images 4096] [--torch FOLDER] [--out FILE]

Writes JPEG files of 256 x 256 (quality 95, some 35 kB, as a prepared ImageNet has them)
and reads them, shuffled, as batches of 32 in [-1, 1], half of the images mirrored:

  plain    a loop of Pillow and NumPy in one process
  torch    torch's DataLoader, its data set Pillow and NumPy, with W workers
  ours     this package's loader on the same folder, with W workers (0: threads)
  shards   the same from ArrayRecord files of these JPEG files

All run in turns, each in processes of its own, several rounds. What counts is the
processor time of all their processes between the first batch and the last, which
others at work on the machine change little: images per second of it are what one core
delivers.
`--torch` is a folder with torch, where it is not installed.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

BATCH, SIZE, WARM = 32, 256, 8  # images, pixels, and batches before the clock starts
WANTED = {"PixNerd-XL, batch 32": 430, "PixNerd-XL, batch 128": 506}  # on one H200
BICUBIC = Image.Resampling.BICUBIC
DISTINCT = 512  # files that are drawn; others are copies of them
TICKS = os.sysconf("SC_CLK_TCK")


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


def plain(root: pathlib.Path, workers: int) -> Iterator:
    """Batches by a loop."""
    data = Files(root)
    while True:
        order = data.rng.permutation(len(data))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            examples = [data[i] for i in order[start : start + BATCH]]
            images, labels = zip(*examples, strict=True)
            yield np.stack(images), np.array(labels)


def torch(root: pathlib.Path, workers: int) -> Iterator:
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


def ours(root: pathlib.Path, workers: int) -> Iterator:
    """Batches by this package, from a folder."""
    from pixelflow_jax.data.folder import ImageFolder

    return _loader(ImageFolder(path=str(root)), workers)


def shards(root: pathlib.Path, workers: int) -> Iterator:
    """Batches by this package, from ArrayRecord."""
    from pixelflow_jax.data.shards import Shards

    return _loader(Shards(path=f"{root}-shards"), workers)


def _loader(source, workers: int) -> Iterator:
    from pixelflow_jax.data.loader import Data
    from pixelflow_jax.data.plan import Batching

    data = Data(source=source, image_size=SIZE, workers=workers)
    return data.loader(Batching(split="train", batch_size=BATCH, seed=0))


LOADERS: dict[str, Callable[[pathlib.Path, int], Iterator]] = {
    loader.__name__: loader for loader in (plain, torch, ours, shards)
}


def processor_seconds() -> float:
    """Of this process and all below it."""
    parents, seconds = {}, {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        seconds[pid] = (int(fields[11]) + int(fields[12])) / TICKS

    def below(pid: int | None) -> bool:
        while pid and pid != os.getpid():
            pid = parents.get(pid)
        return pid == os.getpid()

    return sum(spent for pid, spent in seconds.items() if below(pid))


def measure(name: str, root: pathlib.Path, workers: int, images: int) -> dict:
    """One loader's rates, in this process."""
    batches = LOADERS[name](root, workers)
    for _ in range(WARM):
        next(batches)
    wall, cpu = time.perf_counter(), processor_seconds()
    for _ in range(images // BATCH):
        next(batches)
    wall, cpu = time.perf_counter() - wall, processor_seconds() - cpu
    return {"per_core": images / cpu, "per_second": images / wall}


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


def in_own_process(name: str, root: pathlib.Path, workers: int, images: int) -> dict:
    """The result of `measure` in another process."""
    command = [sys.executable, "-m", "benchmarks.loader", "--one", name, str(root)]
    command += ["--workers", str(workers), "--images", str(images)]
    return json.loads(subprocess.check_output(command, text=True).splitlines()[-1])


def compare(arguments: argparse.Namespace) -> list[dict]:
    """Medians over the rounds, a row each loader and number of workers."""
    cases = [("plain", 0)]
    cases += [(n, w) for w in arguments.workers for n in ("torch", "ours", "shards")]
    found: dict[tuple, list[dict]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder, "images")
        write_images(root, arguments.images)
        write_shards(root)
        for _ in range(arguments.rounds):
            for name, workers in cases:
                one = in_own_process(name, root, workers, arguments.images)
                found[name, workers].append(one)
    rows = []
    for (name, workers), results in found.items():
        row = {"loader": name, "workers": workers}
        for rate in ("per_core", "per_second"):
            row[rate] = round(statistics.median(one[rate] for one in results))
        cores = {k: round(rate / row["per_core"], 2) for k, rate in WANTED.items()}
        rows.append({**row, **{f"cores for {k}": v for k, v in cores.items()}})
    return rows


def main() -> None:
    """Print a row each loader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", help="a folder that holds torch")
    parser.add_argument("--out", type=pathlib.Path, help="JSON lines to add to")
    parser.add_argument("--one", nargs=2, metavar=("LOADER", "FOLDER"))
    arguments = parser.parse_args()
    if arguments.torch:
        paths = [os.environ.get("PYTHONPATH", ""), arguments.torch]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if arguments.one:
        name, folder = arguments.one
        root, workers = pathlib.Path(folder), arguments.workers[0]
        print(json.dumps(measure(name, root, workers, arguments.images)), flush=True)
        os._exit(0)  # workers of all kinds end with their parent
    rows = compare(arguments)
    from benchmarks import harness

    harness.report(rows, arguments.out)


if __name__ == "__main__":
    main()
