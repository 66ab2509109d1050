"""Our own shards: ArrayRecord files of encoded images beside a dataset.json.

A record is msgpack {"image": encoded bytes, "label": int, "captions": list of str,
"name": str, "origin": str, "height": int, "width": int}: origin is the file the image
came from, height and width are those it had there. dataset.json names every shard with
its size in bytes, its count, its labels and the sizes of its images (one for all if
they are equal), so that damage is found before training starts, and images of one
shape without decoding.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgpack
import numpy as np
from array_record.python import array_record_data_source, array_record_module

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.source import check_split, decode_image
from pixelflow_jax.errors import DataError, UnreadableImage

VERSION = 2
INDEX = "dataset.json"


@dataclasses.dataclass(kw_only=True)
class Shards:
    """Shards written by `python -m pixelflow_jax.prepare shards`.

    `path` holds `train` and perhaps `test`, or is itself the folder of the train
    split; `test_path` names a test split elsewhere. Raises DataError where a split or
    a shard is missing, or a shard's size is not what dataset.json says.
    """

    path: str = ""
    test_path: str = ""

    def open(self, split: str, image_size: int = 0) -> "ShardSource":
        """Opens one split; see the class for its errors."""
        check_split(split)
        return ShardSource(self._folder(split))

    def _folder(self, split: str) -> Path:
        root = Path(self.path).expanduser()
        if split == "test" and self.test_path:
            return Path(self.test_path).expanduser()
        if (root / split / INDEX).is_file():
            return root / split
        if split == "train":
            return root
        raise DataError(
            f"{str(root)!r} has no test split: set test_path to a folder of shards, or "
            "prepare the data again with --holdout to keep a share for testing."
        )


class Shard(NamedTuple):
    """A whole shard, in the form in which array_record takes read instructions."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ShardSource:
    """Records of all shards of one folder, in shard order; see Shards.

    `shards` are the counts of records by file.
    """

    def __init__(self, folder: Path):
        index = read_index(folder)
        self.class_names = tuple(index["class_names"])
        self.labels = np.array(
            [label for shard in index["shards"] for label in shard["labels"]], np.int32
        )
        self.sizes = np.concatenate([_sizes(shard) for shard in index["shards"]])
        self.shards = {shard["file"]: shard["count"] for shard in index["shards"]}
        self._shards = [
            Shard(str(folder / shard["file"]), 0, shard["count"], shard["count"])
            for shard in index["shards"]
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
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

    def _read(self, index: int) -> dict:
        try:
            return msgpack.unpackb(self._records[index])
        except Exception as error:
            raise UnreadableImage(
                f"Record {index} of the shards beside {self._shards[0].filename} is "
                f"damaged ({error}). Prepare the shards again."
            ) from error

    @functools.cached_property
    def _records(self):
        return array_record_data_source.ArrayRecordDataSource(self._shards)

    def __getstate__(self) -> dict:
        # Open files stay with the process that opened them.
        return {k: v for k, v in self.__dict__.items() if k != "_records"}


def pack_record(
    *,
    image: bytes,
    label: int,
    captions: tuple[str, ...],
    name: str,
    origin: str,
    height: int,
    width: int,
) -> bytes:
    """One record of a shard; `image` is an encoded PNG, JPEG or WebP file."""
    return msgpack.packb(
        {
            "image": image,
            "label": label,
            "captions": captions,
            "name": name,
            "origin": origin,
            "height": height,
            "width": width,
        }
    )


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


def make_index(
    *,
    class_names: tuple[str, ...],
    image_size: int | None,
    source: str,
    unreadable: int,
    shards: list[dict],
) -> dict:
    """The content of dataset.json; `unreadable` images were left out.

    A shard is {"file", "bytes", "count", "labels", "sizes", "captions", "bare"}:
    captions are how many there are, bare how many images have none.
    """
    return {
        "version": VERSION,
        "class_names": list(class_names),
        **{
            name: sum(shard[name] for shard in shards)
            for name in ("count", "captions", "bare")
        },
        "unreadable": unreadable,
        "image_size": image_size,
        "source": source,
        "shards": shards,
    }


def read_index(folder: Path) -> dict:
    """Reads dataset.json and checks every shard against it; see Shards for errors."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} is not a finished folder of shards: it has no {INDEX}. "
            "Check the path, or run `python -m pixelflow_jax.prepare shards` "
            "again (it continues where it stopped)."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}). Prepare the shards again with --overwrite."
        ) from error
    if index.get("version") != VERSION:
        raise DataError(
            f"{path} has version {index.get('version')} and this program reads version "
            f"{VERSION}: prepare the shards again with --overwrite."
        )
    damage = [text for shard in index["shards"] if (text := find_damage(folder, shard))]
    if damage:
        raise DataError(
            f"{len(damage)} of {len(index['shards'])} shards in {folder} are missing "
            f"or damaged: {'; '.join(damage[:5])}. Copy them again or prepare them "
            "again with --overwrite."
        )
    if not index["count"]:
        raise DataError(f"The shards in {folder} hold no images: prepare them again.")
    return index


def _sizes(shard: dict) -> np.ndarray:
    sizes = np.array(shard["sizes"], np.int32)
    return np.broadcast_to(sizes, (shard["count"], 2))


def find_damage(folder: Path, shard: dict) -> str:
    """Why a file is not what an index says of it; "" if it is."""
    path = folder / shard["file"]
    if not path.is_file():
        return f"{shard['file']} is missing"
    size = path.stat().st_size
    if size != shard["bytes"]:
        return f"{shard['file']} has {size} bytes instead of {shard['bytes']}"
    return ""
