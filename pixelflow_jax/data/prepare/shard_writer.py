"""Writes a data set as shards, in parallel, and continues after a kill.

Record i of a split goes to shard i modulo the number of shards (round robin), so
every shard holds a mixture of the classes; of sources that are read in runs, each shard
gets a run. A shard is written under a temporary name and renamed when complete, then
noted by progress.py.
"""

import dataclasses
import functools
import hashlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from pixelflow_jax import digests
from pixelflow_jax.data.images import encode_image
from pixelflow_jax.data.index import write_index
from pixelflow_jax.data.prepare.processes import run_tasks
from pixelflow_jax.data.prepare.progress import Header, begin, note
from pixelflow_jax.data.prepare.report import (
    SHOWN,
    WrittenShard,
    check_share,
    name_bare,
)
from pixelflow_jax.data.shards import (
    FORMAT,
    DatasetIndex,
    IndexedShard,
    StoredRecord,
    shard_name,
    whole_file,
)
from pixelflow_jax.data.source import ListedSource
from pixelflow_jax.data.transforms import center_crop, resize_short_side
from pixelflow_jax.errors import DataError, UnreadableImage, UserError
from pixelflow_jax.paths import printable

MAX_SIZE = 8192  # pixels of a side: larger ones are typing errors
MAX_REASON = 200  # characters of an error in a message
StoredFormat = Literal["png", "jpeg", "webp", "keep"]
FORMATS: tuple[StoredFormat, ...] = typing.get_args(StoredFormat)
Sources = Mapping[str, ListedSource]  # by split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """How records are stored: crop to `size` (None: as they are), format, quality.

    With `keep_aspect` nothing is cut off; the short side becomes `size`. The format
    "keep" stores the files themselves.
    """

    size: int | None = None
    keep_aspect: bool = False
    format: StoredFormat = "png"
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
        if self.size is not None and not 1 <= self.size <= MAX_SIZE:
            raise DataError(
                f"--size must be at least 1 and at most {MAX_SIZE} pixels, not "
                f"{self.size}."
            )
        if not 1 <= self.quality <= 100:
            raise DataError(f"--quality goes from 1 to 100, not {self.quality}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How shards are written, which does not change what is in them but their number.

    `shards` of the train split (0: one for every thousand images), `workers`
    processes. It fails where more than the share `max_corrupt` of the images cannot be
    used; `overwrite` discards earlier shards.
    """

    shards: int = 0
    workers: int = 1
    max_corrupt: float = 0.01
    overwrite: bool = False

    def __post_init__(self):
        rules = {
            f"--shards is {self.shards}: give a number above 0, or 0 for one shard a "
            "thousand images": self.shards >= 0,
            f"--workers is {self.workers}: give the number of processes, at least 1": (
                self.workers >= 1
            ),
            f"--max-corrupt is {self.max_corrupt}: give a share from 0 to 1": (
                0 <= self.max_corrupt <= 1
            ),
        }
        problems = [rule for rule, holds in rules.items() if not holds]
        if problems:
            raise DataError(f"{'; '.join(problems)}.")


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
    sources: Sources,
    out: Path,
    encoding: Encoding,
    *,
    description: str,
    options: ShardOptions,
) -> dict[str, DatasetIndex]:
    """Writes each split to its folder under `out`; returns the dataset.json of each.

    `description` of the source is kept in it. Raises DataError where `out` belongs to
    other data, cannot be written, or too many images are unreadable.
    """
    total = sum(len(source) for source in sources.values())
    tasks = _plan(sources, options.shards or -(-total // 1000))
    header: Header = {
        "listing": _listing_hash(sources),
        "options": {**dataclasses.asdict(encoding), "shards": len(tasks)},
    }
    try:
        done: dict[str, WrittenShard] = begin(out, header, sources, options.overwrite)
        with tqdm(total=total, unit="image", desc="shards") as bar:
            for task in tasks:
                records = _records(task, sources[task.split])
                bar.update(len(records) if task.file in done else 0)
            todo = [task for task in tasks if task.file not in done]
            write = functools.partial(_write_task, sources, out, encoding)
            for shard in run_tasks(write, todo, options.workers):
                done[shard["file"]] = shard
                note(out, shard)
                bar.update(shard["count"] + len(shard["unreadable"]))
        check_share(done, total, options.max_corrupt)
        name_bare(done)
        indices = {}
        for split, source in sources.items():
            shards = [done[task.file] for task in tasks if task.split == split]
            indices[split] = _index(shards, source, encoding, description)
            write_index(out / split, FORMAT, indices[split])
        return indices
    except OSError as error:
        raise DataError(
            f"{out} cannot be written ({error.strerror or error}): free some space, "
            "correct the path or its permissions, and run the same command again; "
            "it continues where it stopped."
        ) from error


def _write_task(
    sources: Sources, out: Path, encoding: Encoding, task: Task
) -> WrittenShard:
    return write_shard(task, sources[task.split], out, encoding)


def write_shard(
    task: Task, source: ListedSource, out: Path, encoding: Encoding
) -> WrittenShard:
    """Writes one shard; returns what is in it."""
    path = out / task.file
    labels, sizes, captions = [], [], 0
    bare: list[str] = []
    unreadable: list[str] = []
    with whole_file(path) as writer:
        for index in _records(task, source):
            try:
                record, size = _make_record(source, index, encoding)
                packed = record.pack()
            except UnreadableImage as error:
                unreadable.append(str(error))
                continue
            except (UserError, OSError):
                raise
            except Exception as error:  # whatever its fault, it is one record
                unreadable.append(_unforeseen(source, index, error))
                continue
            writer.write(packed)
            labels.append(record.label)
            sizes.append(size)
            texts = sum(map(bool, record.captions))
            captions += texts
            bare += [] if texts else [record.name]
    equal = all(size == sizes[0] for size in sizes)
    [(_, digest)] = digests.of_files([path])
    return {
        "digest": digest,
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


def _unforeseen(source: ListedSource, index: int, error: Exception) -> str:
    name = getattr(source, "name", str)(index)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{printable(name)} cannot be used ({said[:MAX_REASON]}). Remove it."


def _make_record(
    source: ListedSource, index: int, encoding: Encoding
) -> tuple[StoredRecord, tuple[int, int]]:
    """The record as it is stored, and the size of its image."""
    record = source[index]
    image = record["image"]
    original_height, original_width = image.shape[:2]
    if encoding.size is not None:
        crop = resize_short_side if encoding.keep_aspect else center_crop
        try:
            image = crop(image, encoding.size)
        except UnreadableImage as error:
            raise UnreadableImage(f"{printable(record['name'])}: {error}") from error
    if encoding.format == "keep":
        encoded = source.read(index)
    else:
        encoded = encode_image(image, encoding.format, encoding.quality)
    stored = StoredRecord(
        image=encoded,
        label=record["label"],
        captions=record["captions"],
        name=record["name"],
        origin=record["origin"],
        height=original_height,
        width=original_width,
    )
    height, width = image.shape[:2]
    return stored, (height, width)


def _plan(sources: Sources, num_shards: int) -> list[Task]:
    """The train split gets `num_shards`, others in proportion, at least one each."""
    largest = max(len(source) for source in sources.values())
    tasks = []
    for split, source in sources.items():
        share = -(-num_shards * len(source) // largest)
        count = max(1, min(share, len(source)))
        tasks += [Task(split=split, number=i, count=count) for i in range(count)]
    return tasks


def _records(task: Task, source: ListedSource) -> range:
    length = len(source)
    if source.contiguous:
        first, last = (length * n // task.count for n in (task.number, task.number + 1))
        return range(first, last)
    return range(task.number, length, task.count)


def _listing_hash(sources: Sources) -> str:
    digest = hashlib.sha256()
    for split, source in sources.items():
        for line in source.listing():
            digest.update(f"{split} {line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _index(
    shards: list[WrittenShard],
    source: ListedSource,
    encoding: Encoding,
    description: str,
) -> DatasetIndex:
    """The dataset.json of a split; shards without images are not in it."""
    return {
        "class_names": list(source.class_names),
        "count": sum(shard["count"] for shard in shards),
        "captions": sum(shard["captions"] for shard in shards),
        "bare": sum(shard["bare"] for shard in shards),
        "unreadable": sum(len(shard["unreadable"]) for shard in shards),
        "image_size": encoding.size,
        "source": description,
        "shards": [_entry(shard) for shard in shards if shard["count"]],
    }


def _entry(shard: WrittenShard) -> IndexedShard:
    """A shard as dataset.json names it, relative to the split."""
    entry: IndexedShard = {
        "file": shard["file"].split("/", 1)[1],
        "bytes": shard["bytes"],
        "count": shard["count"],
        "labels": shard["labels"],
        "sizes": shard["sizes"],
        "captions": shard["captions"],
        "bare": shard["bare"],
    }
    if "digest" in shard:  # what an earlier version began has none
        entry["digest"] = shard["digest"]
    return entry
