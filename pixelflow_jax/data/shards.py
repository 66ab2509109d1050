"""Our own shards: ArrayRecord files of encoded images beside a dataset.json.

A record is msgpack {"image": bytes, "label": int, "captions": list of str, "name": str,
"origin": str, "height": int, "width": int}: image is an encoded PNG, JPEG or WebP file,
origin the file it came from, height and width are those it had there. dataset.json
names every shard with its size in bytes, its count, its labels and the sizes of its
images (one for all if they are equal), so that damage is found before training starts,
and images of one shape without decoding.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import msgpack
import numpy as np
from array_record.python import array_record_module  # pyright: ignore (compiled)

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.decoding import MAX_PIXELS, PixelLimit
from pixelflow_jax.data.index import (
    IndexedFile,
    IndexFormat,
    damaged,
    read_index,
    record_files,
)
from pixelflow_jax.data.limits import Limits
from pixelflow_jax.data.records import Records
from pixelflow_jax.data.source import (
    Record,
    SourceConfig,
    Split,
    check_split,
    class_changes,
    decode_image,
    spread,
)
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.remote import readable_path, staged_digest
from pixelflow_jax.values import Place

FORMAT = IndexFormat(
    name="dataset.json",
    field="shards",
    version=2,
    oldest=2,
    contents="shards",
    files="shards",
    absent="is not a finished folder of shards",
    command="python -m pixelflow_jax.prepare shards",
)


class StoredRecord(NamedTuple):
    """A record of a shard; see the module for its fields."""

    image: bytes
    label: int
    captions: tuple[str, ...]
    name: str
    origin: str
    height: int
    width: int

    def pack(self) -> bytes:
        """The record as it lies in a shard."""
        return cast(bytes, msgpack.packb(self._asdict()))

    @classmethod
    def unpack(cls, content: bytes) -> "StoredRecord":
        """A record as it lay in a shard; an exception of any kind where it is none."""
        fields: dict[str, Any] = msgpack.unpackb(content)
        record = cls(**{**fields, "captions": tuple(fields["captions"])})
        texts = (*record.captions, record.name, record.origin)
        if not record.captions or not all(isinstance(text, str) for text in texts):
            raise ValueError("its captions, name or origin are no texts")
        return record


class IndexedShard(IndexedFile):
    """A shard in dataset.json: what is known of its images without reading it.

    A label for each; the size of each, or one for all; how many captions there are, and
    how many images have none ("bare").
    """

    labels: list[int]
    sizes: list[tuple[int, int]]
    captions: int
    bare: int
    digest: NotRequired[str]  # `digests.SUMS`; earlier versions wrote none


class DatasetIndex(TypedDict):
    """What dataset.json says beside its version; `unreadable` images were left out."""

    class_names: list[str]
    count: int
    captions: int
    bare: int
    unreadable: int
    image_size: int | None
    source: str
    shards: list[IndexedShard]


@dataclasses.dataclass(kw_only=True)
class Shards(SourceConfig):
    """Shards written by `python -m pixelflow_jax.prepare shards`.

    `path` holds `train` and perhaps `test`, or is itself the folder of the train
    split; `test_path` names a test split elsewhere, of the same classes. Folders of
    gs:// and s3:// are brought to this machine. An image of
    more than `max_pixels` counts as unreadable. Raises DataError where a split or a
    shard is missing, dataset.json does not fit its shards, or the classes of the two
    splits are not the same.
    """

    path: Place = ""
    test_path: Place = ""
    max_pixels: PixelLimit = MAX_PIXELS

    def open(self, split: Split, image_size: int = 0) -> "ShardSource":
        """Opens one split; see the class for its errors."""
        check_split(split)
        max_pixels = Limits(max_pixels=self.max_pixels).max_pixels
        source = ShardSource(self._folder(split), max_pixels)
        if split == "test" and self.test_path and self.path:
            self._check_classes(source.class_names)
        return source

    def _check_classes(self, names: tuple[str, ...]) -> None:
        """Raises DataError where labels of the test split mean something else."""
        train = tuple(_load_index(self._folder("train"))["class_names"])
        if train != names:
            raise DataError(
                f"The classes of test_path {self.test_path!r} are not those of path "
                f"{self.path!r} ({class_changes(train, names)}), so labels would mean "
                "something else: prepare both from folders with the same sub-folders."
            )

    def _folder(self, split: Split) -> Path:
        root = readable_path(self.path, "The folder of shards", DataError)
        if split == "test" and self.test_path:
            elsewhere = readable_path(self.test_path, "test_path", DataError)
            places = [elsewhere, elsewhere / "test", elsewhere / "train"]
            return next((p for p in places if (p / FORMAT.name).is_file()), elsewhere)
        if (root / split / FORMAT.name).is_file():
            return root / split
        if split == "train":
            return root
        raise DataError(
            f"{str(root)!r} has no test split: set test_path to a folder of shards, or "
            "prepare the data again with --holdout to keep a share for testing."
        )


class ShardSource:
    """Records of all shards of one folder, in shard order; see Shards.

    `shards` are the counts of records by file.
    """

    def __init__(self, folder: Path, max_pixels: int = MAX_PIXELS):
        index = _load_index(folder)
        if not index["count"]:
            raise DataError(
                f"The shards in {folder} hold no images: prepare them again."
            )
        shards: list[IndexedShard] = index["shards"]
        self.class_names = tuple(index["class_names"])
        self.labels = np.concatenate(
            [np.array(shard["labels"], np.int32) for shard in shards]
        )
        self.sizes = np.concatenate([_sizes(shard) for shard in shards])
        self._max_pixels = max_pixels
        self.shards = {shard["file"]: shard["count"] for shard in shards}
        self._files = record_files(folder, shards)
        self._identity = [f"{s['file']} {s['bytes']} {s['count']}" for s in shards]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        record = self.stored(index)
        return {
            "image": decode_image(record.image, record.name, self._max_pixels),
            "label": record.label,
            "captions": record.captions,
            "name": record.name,
            "origin": record.origin,
        }

    def identity(self) -> Iterator[str]:
        """Each shard's name, bytes and count, all labels, and a few of its records."""
        yield from self._identity
        yield hashlib.sha256(self.labels.tobytes()).hexdigest()
        for index in spread(len(self)):
            try:
                record = self.stored(index)
            except UnreadableImage:
                yield "unreadable"
            else:
                yield f"{record.name} {hashlib.sha256(record.image).hexdigest()}"

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a record, without decoding its image."""
        return self.stored(index).captions

    def stored(self, index: int) -> StoredRecord:
        """A record as it lies in its shard; UnreadableImage where it is damaged."""
        try:
            record = StoredRecord.unpack(self._records[index])
            if record.label != self.labels[index]:
                said = int(self.labels[index])
                raise ValueError(f"label {record.label}, {said} in {FORMAT.name}")
            return record
        except DataError:
            raise
        except Exception as error:
            raise UnreadableImage(
                f"Record {index} of the shards beside {self._files[0].filename} is "
                f"damaged ({error}). Prepare the shards again."
            ) from error

    @functools.cached_property
    def _records(self) -> Records:
        return Records(self._files)

    def __getstate__(self) -> dict:
        # Open files stay with the process that opened them.
        return {k: v for k, v in self.__dict__.items() if k != "_records"}


def shard_name(number: int, count: int) -> str:
    """The file name of a shard, as in shard-00000-of-00008.array_record."""
    return f"shard-{number:05d}-of-{count:05d}.array_record"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator["ShardWriter"]:
    """An ArrayRecord writer whose file appears under its name when it is complete.

    It has one record a group, which random access needs. Raises OSError where the file
    cannot be written.
    """
    # A worker whose parent was killed may still be at it: never share a file with it.
    with atomic_write(path, shared=True) as partial:
        with _as_os_error():
            writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
        try:
            yield ShardWriter(writer)
        finally:
            with _as_os_error():
                writer.close()


class ShardWriter:
    """Writes records; raises OSError where the disk takes no more."""

    def __init__(self, writer: array_record_module.ArrayRecordWriter):
        self._writer = writer

    def write(self, record: bytes) -> None:
        """Adds one record."""
        with _as_os_error():
            self._writer.write(record)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Turns what ArrayRecord raises, of a full disk for one, into what Python would."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(None, str(error)) from error


def _load_index(folder: Path) -> dict[str, Any]:
    """dataset.json, whole and true as far as it can be checked without reading."""
    index = read_index(folder, FORMAT)
    try:
        problem = _problem(index)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        problem = repr(error)
    if problem:
        raise damaged(folder / FORMAT.name, problem, FORMAT)
    for shard in index["shards"]:
        brought, written = staged_digest(folder / shard["file"]), shard.get("digest")
        if brought and written and brought != written:
            raise DataError(
                f"{folder / shard['file']} holds other bytes than were written: it "
                "was damaged in the store or on its way there. Copy it there again."
            )
    return index


def _problem(index: dict[str, Any]) -> str:
    """What is wrong in a dataset.json; an error of Python's where it is the type."""
    names = index["class_names"]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        return "its class_names are no list of names"
    for shard in index["shards"]:
        file, count = shard["file"], shard["count"]
        labels, sizes = np.array(shard["labels"]), np.array(shard["sizes"])
        if not 1 <= count <= shard["bytes"] or labels.shape != (count,):
            return f"{file} has {count:,} images but {len(labels):,} labels"
        if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= len(names):
            return f"{file} has labels that are not below {len(names)} classes"
        if sizes.shape not in ((1, 2), (count, 2)) or sizes.dtype.kind != "i":
            return f"{file} has {count:,} images but other sizes"
        if sizes.min() < 1:
            return f"{file} has images without pixels"
    if index["count"] != sum(shard["count"] for shard in index["shards"]):
        return f"{index['count']!r} images are not those of its shards"
    return ""


def _sizes(shard: IndexedShard) -> np.ndarray:
    sizes = np.array(shard["sizes"], np.int32)
    return np.broadcast_to(sizes, (shard["count"], 2))
