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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import msgpack
import numpy as np
from array_record.python import (
    array_record_data_source,
    array_record_module,  # pyright: ignore (compiled)
)

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.index import IndexedFile, IndexFormat, read_index, record_files
from pixelflow_jax.data.source import (
    Record,
    SourceConfig,
    Split,
    check_split,
    decode_image,
)
from pixelflow_jax.errors import DataError, UnreadableImage
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


class IndexedShard(IndexedFile):
    """A shard in dataset.json: what is known of its images without reading it.

    A label for each; the size of each, or one for all; how many captions there are, and
    how many images have none ("bare").
    """

    labels: list[int]
    sizes: list[tuple[int, int]]
    captions: int
    bare: int


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
    split; `test_path` names a test split elsewhere. Raises DataError where a split or
    a shard is missing, or a shard's size is not what dataset.json says.
    """

    path: Place = ""
    test_path: Place = ""

    def open(self, split: Split, image_size: int = 0) -> "ShardSource":
        """Opens one split; see the class for its errors."""
        check_split(split)
        return ShardSource(self._folder(split))

    def _folder(self, split: Split) -> Path:
        root = Path(self.path).expanduser()
        if split == "test" and self.test_path:
            return Path(self.test_path).expanduser()
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

    def __init__(self, folder: Path):
        index = read_index(folder, FORMAT)
        if not index["count"]:
            raise DataError(
                f"The shards in {folder} hold no images: prepare them again."
            )
        shards: list[IndexedShard] = index["shards"]
        self.class_names = tuple(index["class_names"])
        self.labels = np.array(
            [label for shard in shards for label in shard["labels"]], np.int32
        )
        self.sizes = np.concatenate([_sizes(shard) for shard in shards])
        self.shards = {shard["file"]: shard["count"] for shard in shards}
        self._files = record_files(folder, shards)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        record = self._read(index)
        return {
            "image": decode_image(record["image"], record["name"]),
            "label": record["label"],
            "captions": tuple(record["captions"]),
            "name": record["name"],
            "origin": record["origin"],
        }

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of a record, without decoding its image."""
        return tuple(self._read(index)["captions"])

    def _read(self, index: int) -> dict[str, Any]:
        try:
            return msgpack.unpackb(self._records[index])
        except Exception as error:
            raise UnreadableImage(
                f"Record {index} of the shards beside {self._files[0].filename} is "
                f"damaged ({error}). Prepare the shards again."
            ) from error

    @functools.cached_property
    def _records(self):
        return array_record_data_source.ArrayRecordDataSource(self._files)

    def __getstate__(self) -> dict:
        # Open files stay with the process that opened them.
        return {k: v for k, v in self.__dict__.items() if k != "_records"}


def shard_name(number: int, count: int) -> str:
    """The file name of a shard, as in shard-00000-of-00008.array_record."""
    return f"shard-{number:05d}-of-{count:05d}.array_record"


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[array_record_module.ArrayRecordWriter]:
    """An ArrayRecord writer whose file appears under its name when it is complete.

    It has one record a group, which random access needs. Raises OSError where the file
    cannot be written.
    """
    # A worker whose parent was killed may still be at it: never share a file with it.
    with atomic_write(path, shared=True) as partial:
        try:
            writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
            try:
                yield writer
            finally:
                writer.close()
        except RuntimeError as error:  # what ArrayRecord raises, a full disk included
            raise OSError(None, str(error)) from error


def _sizes(shard: IndexedShard) -> np.ndarray:
    sizes = np.array(shard["sizes"], np.int32)
    return np.broadcast_to(sizes, (shard["count"], 2))
