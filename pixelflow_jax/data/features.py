"""Text features computed ahead of training: what lies on disk, and reading it.

A folder holds features.json (which encoder, which shards), empty.npz (the null text)
and, for each shard of captioned images, an ArrayRecord file of the same name with the
states of its captions, beside the keys of these. Captions are found by their text, so
neither the order of the data nor which caption is drawn matters.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from array_record.python import array_record_data_source

from pixelflow_jax.data.shards import Shard, find_damage
from pixelflow_jax.errors import DataError

VERSION = 1
FOLDER = "features"  # below the shards they belong to
INDEX = "features.json"
EMPTY = "empty.npz"
KEYS = ".keys.npy"
DTYPE = np.dtype(ml_dtypes.bfloat16)
OPENED = ("_table", "_records")


class Features:
    """Stored features as a `plan.CaptionEncoder`: {"text" [n, length, width], "mask"}.

    `path` is the folder of shards they were prepared for, or their own. States are
    bfloat16; where `padding` is false, those of padding were not stored and are zero.
    Raises DataError where anything is missing or damaged.
    """

    def __init__(self, path: str):
        root = Path(path).expanduser()
        own = (root / INDEX).is_file()
        self.folder = root if own else root / FOLDER
        index = _read_index(self.folder)
        self.identity: dict = index["identity"]
        self.length, self.width = index["length"], index["width"]
        self.padding: bool = index["padding"]
        self.shards: dict[str, int] = index["shards"]
        self._files: list[dict] = index["files"]

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Features of captions; DataError for one that was not there to be encoded."""
        keys, order = self._table
        wanted = np.array([text_key(text) for text in texts], np.uint64)
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        absent = np.flatnonzero(keys[places] != wanted)
        if len(absent):
            raise DataError(
                f"{self.folder} holds no features of the caption "
                f"{texts[absent[0]]!r}: it was made for other captions. Run `python -m "
                "pixelflow_jax.prepare text-features` on the shards you train on."
            )
        found = [self._unpack(self._records[int(order[p])]) for p in places]
        states, masks = zip(*found, strict=True)
        return {"text": np.stack(states), "mask": np.stack(masks)}

    def empty(self) -> tuple[np.ndarray, np.ndarray]:
        """States [length, width] of the null text, bfloat16, and its mask [length]."""
        with np.load(self.folder / EMPTY) as file:
            return file["states"].view(DTYPE), file["mask"]

    def _unpack(self, record: bytes) -> tuple[np.ndarray, np.ndarray]:
        mask = np.frombuffer(record, np.bool_, self.length)
        stored = np.frombuffer(record, DTYPE, offset=self.length)
        stored = stored.reshape(-1, self.width)
        if self.padding:
            return stored, mask
        states = np.zeros((self.length, self.width), DTYPE)
        states[mask] = stored
        return states, mask

    @functools.cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys in ascending order, and the record of each."""
        files = [self.folder / (entry["file"] + KEYS) for entry in self._files]
        keys = np.concatenate([np.load(file) for file in files])
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    @functools.cached_property
    def _records(self):
        return array_record_data_source.ArrayRecordDataSource(
            [
                Shard(str(self.folder / e["file"]), 0, e["count"], e["count"])
                for e in self._files
            ]
        )

    def __getstate__(self) -> dict:
        # Open files and tables stay with the process that read them.
        return {k: v for k, v in self.__dict__.items() if k not in OPENED}


def text_key(text: str) -> int:
    """A number of 64 bits for a text, the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def pack_features(states: np.ndarray, mask: np.ndarray, padding: bool) -> bytes:
    """One record: the mask [length], then the states [length, width] as bfloat16.

    Without `padding` only the states where the mask is true.
    """
    kept = states if padding else states[mask]
    return np.asarray(mask, np.bool_).tobytes() + np.asarray(kept, DTYPE).tobytes()


def _read_index(folder: Path) -> dict:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} holds no finished text features (no {INDEX}): run "
            "`python -m pixelflow_jax.prepare text-features` on the shards; it "
            "continues where it stopped."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}). Prepare the features again with --overwrite."
        ) from error
    if index.get("version") != VERSION:
        raise DataError(
            f"{path} has version {index.get('version')} and this program reads version "
            f"{VERSION}: prepare the features again with --overwrite."
        )
    damage = [text for entry in index["files"] if (text := find_damage(folder, entry))]
    if damage:
        raise DataError(
            f"{len(damage)} of {len(index['files'])} files of features in {folder} are "
            f"missing or damaged: {'; '.join(damage[:5])}. Copy them again, or run "
            "text-features again, which writes what is missing."
        )
    return index
