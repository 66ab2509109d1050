"""Writes a data set as shards, in parallel, and continues after a kill.

Record i of a split goes to shard i modulo the number of shards (round robin), so
every shard holds a mixture of the classes; of sources that are read in runs, each shard
gets a run. A shard is written under a temporary name and renamed when complete, then
noted by progress.py.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.prepare.progress import begin, note
from pixelflow_jax.data.shards import (
    INDEX,
    make_index,
    pack_record,
    shard_name,
    whole_file,
)
from pixelflow_jax.data.source import LabelledSource
from pixelflow_jax.data.transforms import center_crop, resize_short_side
from pixelflow_jax.errors import DataError, UnreadableImage

KEPT = ("bytes", "count", "labels", "sizes", "captions", "bare")  # in dataset.json
SHOWN = 20  # names or reasons a message lists
FORMATS = ("png", "jpeg", "webp", "keep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How records are stored: crop to `size` (None: as they are), format, quality.

    With `keep_aspect` nothing is cut off; the short side becomes `size`.
    """

    size: int | None = None
    keep_aspect: bool = False
    format: str = "png"
    quality: int = 95

    def __post_init__(self):
        if self.format not in FORMATS:
            raise DataError(
                f"The format {self.format!r} is unknown: use {', '.join(FORMATS)}."
            )
        if self.format == "keep" and self.size is not None:
            raise DataError(
                "--format keep stores the files as they are and cannot crop them: "
                "leave out --size, or choose --format png, jpeg or webp."
            )
        if self.keep_aspect and self.size is None:
            raise DataError("--keep-aspect needs --size: the length of the short side.")
        if self.size is not None and self.size < 1:
            raise DataError(f"--size must be at least 1, not {self.size}.")
        if not 1 <= self.quality <= 100:
            raise DataError(f"--quality goes from 1 to 100, not {self.quality}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One shard to write: records number, number + count, ... of a split."""

    split: str
    number: int
    count: int

    @property
    def file(self) -> str:
        """The shard's path relative to the output folder."""
        return f"{self.split}/{shard_name(self.number, self.count)}"


def write_shards(
    sources: dict[str, LabelledSource],
    out: Path,
    encoding: Encoding,
    *,
    description: str,
    num_shards: int = 0,
    workers: int = 1,
    max_corrupt: float = 0.01,
    overwrite: bool = False,
) -> dict[str, dict]:
    """Writes each split to its folder under `out`; returns the dataset.json of each.

    `sources` maps split names to sources. `num_shards` 0 takes one for every thousand
    images. Raises DataError where `out` belongs to other data, cannot be written, or
    too many images are unreadable.
    """
    total = sum(len(source) for source in sources.values())
    tasks = _plan(sources, num_shards or -(-total // 1000))
    header = {
        "listing": _listing_hash(sources),
        "options": {**dataclasses.asdict(encoding), "shards": len(tasks)},
    }
    try:
        done = begin(out, header, list(sources), overwrite)
        with tqdm(total=total, unit="image", desc="shards") as bar:
            for task in tasks:
                records = _records(task, sources[task.split])
                bar.update(len(records) if task.file in done else 0)
            todo = [task for task in tasks if task.file not in done]
            for result in _run(todo, sources, out, encoding, workers):
                done[result["file"]] = result
                note(out, result)
                bar.update(result["count"] + len(result["unreadable"]))
        _check_share(done, total, max_corrupt)
        _name_bare(done)
        return _finish(out, done, tasks, sources, encoding, description)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}): free some space, "
            "correct the path or its permissions, and run the same command again; "
            "it continues where it stopped."
        ) from error


def encode_image(image: np.ndarray, format: str, quality: int) -> bytes:
    """uint8 [h, w, 3] as a file; WebP of quality 100 is lossless, PNG always."""
    options = {
        "png": {"optimize": False},
        "jpeg": {"quality": quality, "subsampling": 0},
        "webp": {"quality": quality, "lossless": quality == 100},
    }[format]
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=format.upper(), **options)
    return file.getvalue()


def write_shard(
    task: Task, source: LabelledSource, out: Path, encoding: Encoding
) -> dict:
    """Writes one shard; returns its file, bytes, count and what is in it.

    That is labels, sizes, how many captions, how many images without ("bare"; the first
    by name), and why others are left out ("unreadable").
    """
    path = out / task.file
    labels, sizes, captions, bare, unreadable = [], [], 0, [], []
    with whole_file(path) as writer:
        for index in _records(task, source):
            try:
                record, size = _make_record(source, index, encoding)
            except UnreadableImage as error:
                unreadable.append(str(error))
                continue
            writer.write(pack_record(**record))
            labels.append(record["label"])
            sizes.append(size)
            texts = sum(map(bool, record["captions"]))
            captions += texts
            bare += [] if texts else [record["name"]]
    equal = all(size == sizes[0] for size in sizes)
    return {
        "file": task.file,
        "bytes": path.stat().st_size,
        "count": len(labels),
        "labels": labels,
        "sizes": sizes[:1] if equal else sizes,
        "captions": captions,
        "bare": len(bare),
        "bare_names": bare[:SHOWN],
        "unreadable": unreadable,
    }


def _make_record(
    source: LabelledSource, index: int, encoding: Encoding
) -> tuple[dict, tuple[int, int]]:
    """The record as it is stored, and the size of its image."""
    record = source[index]
    image = record["image"]
    height, width = image.shape[:2]
    if encoding.keep_aspect:
        image = resize_short_side(image, encoding.size)
    elif encoding.size is not None:
        image = center_crop(image, encoding.size)
    if encoding.format == "keep":
        encoded = source.read(index)
    else:
        encoded = encode_image(image, encoding.format, encoding.quality)
    record = {**record, "image": encoded, "height": height, "width": width}
    return record, image.shape[:2]


def _plan(sources: dict, num_shards: int) -> list[Task]:
    """The train split gets `num_shards`, others in proportion, at least one each."""
    largest = max(len(source) for source in sources.values())
    tasks = []
    for split, source in sources.items():
        share = -(-num_shards * len(source) // largest)
        count = max(1, min(share, len(source)))
        tasks += [Task(split=split, number=i, count=count) for i in range(count)]
    return tasks


def _records(task: Task, source: LabelledSource) -> range:
    length = len(source)
    if source.contiguous:
        first, last = (length * n // task.count for n in (task.number, task.number + 1))
        return range(first, last)
    return range(task.number, length, task.count)


def _listing_hash(sources: dict) -> str:
    digest = hashlib.sha256()
    for split, source in sources.items():
        for line in source.listing():
            digest.update(f"{split} {line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _run(
    tasks: list[Task], sources: dict, out: Path, encoding: Encoding, workers: int
) -> Iterator[dict]:
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield write_shard(task, sources[task.split], out, encoding)
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(os.getpid(), sources, out, encoding),
    )
    try:
        futures = [executor.submit(_work, task) for task in tasks]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
            "A worker process ended early, most likely for want of memory: run the "
            "same command again with fewer --workers; it continues where it stopped."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker(parent: int, sources: dict, out: Path, encoding: Encoding) -> None:
    global _worker
    _worker = (sources, out, encoding)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us in good order
    threading.Thread(target=_follow_parent, args=(parent,), daemon=True).start()


def _follow_parent(parent: int) -> None:
    """Ends this worker when its parent was killed: a pool alone would wait for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(task: Task) -> dict:
    sources, out, encoding = _worker
    return write_shard(task, sources[task.split], out, encoding)


def _check_share(done: dict, total: int, max_corrupt: float) -> None:
    unreadable = [text for result in done.values() for text in result["unreadable"]]
    for text in unreadable:
        tqdm.write(f"skipped: {text}")
    if len(unreadable) > max_corrupt * total:
        raise DataError(
            f"{len(unreadable)} of {total} images cannot be used, more than "
            f"--max-corrupt {max_corrupt}: {' '.join(unreadable[:SHOWN])} Repair them "
            "and use --overwrite, or raise --max-corrupt to leave them out."
        )


def _name_bare(done: dict) -> None:
    """Names images without captions, where others have some."""
    bare = sum(result["bare"] for result in done.values())
    if bare and any(result["captions"] for result in done.values()):
        names = [name for result in done.values() for name in result["bare_names"]]
        more = " ..." if bare > SHOWN else ""
        tqdm.write(f"without caption: {', '.join(names[:SHOWN])}{more}")


def _finish(
    out: Path,
    done: dict,
    tasks: list[Task],
    sources: dict,
    encoding: Encoding,
    description: str,
) -> dict[str, dict]:
    indices = {}
    for split, source in sources.items():
        results = [done[task.file] for task in tasks if task.split == split]
        shards = [
            {
                "file": result["file"].split("/", 1)[1],
                **{name: result[name] for name in KEPT},
            }
            for result in results
            if result["count"]
        ]
        indices[split] = make_index(
            class_names=source.class_names,
            image_size=encoding.size,
            source=description,
            unreadable=sum(len(result["unreadable"]) for result in results),
            shards=shards,
        )
        with atomic_write(out / split / INDEX) as partial:
            partial.write_text(json.dumps(indices[split]), encoding="utf-8")
    return indices
