"""Text features computed ahead of training: what lies on disk, and reading it.

A folder holds features.json (which encoder, which shards), empty.npz (the null text)
and, for each shard of captioned images, an ArrayRecord file of the same name with the
states of its captions, beside the keys of these. Captions are found by their text, so
neither the order of the data nor which caption is drawn matters.
"""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from pixelflow_jax.data.index import (
    IndexedFile,
    IndexFormat,
    damaged,
    read_index,
    record_files,
)
from pixelflow_jax.data.records import Records
from pixelflow_jax.errors import DataError
from pixelflow_jax.remote import readable_path

FORMAT = IndexFormat(
    name="features.json",
    field="files",
    version=1,
    oldest=1,
    contents="features",
    files="files of features",
    absent="holds no finished text features",
    command="python -m pixelflow_jax.prepare text-features",
)
FOLDER = "features"  # below the shards they belong to
EMPTY = "empty.npz"
KEYS = ".keys.npy"
DTYPE = np.dtype(ml_dtypes.bfloat16)
CACHED = ("_sorted_keys", "_records")


class Features:
    """Stored features as a `plan.CaptionEncoder`: {"text" [n, length, width], "mask"}.

    `path` is the folder of shards they were prepared for, or their own. States are
    bfloat16; where `padding` is false, those of padding were not stored and are zero.
    Raises DataError where anything is missing or damaged.
    """

    def __init__(self, path: str):
        root = readable_path(path, "The folder of features", DataError)
        own = (root / FORMAT.name).is_file()
        self.folder = root if own else root / FOLDER
        index = read_index(self.folder, FORMAT)
        try:
            self.identity: dict[str, Any] = index["identity"]
            self.length, self.width = int(index["length"]), int(index["width"])
            self.padding = bool(index["padding"])
            self.shards: dict[str, int] = index["shards"]
            self._files: list[IndexedFile] = index["files"]
            record_files(self.folder, self._files)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.folder / FORMAT.name, repr(error), FORMAT) from error

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Features of captions; DataError for one that was not there to be encoded."""
        keys, order = self._sorted_keys
        wanted = np.array([text_key(text) for text in texts], np.uint64)
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        absent = np.flatnonzero(keys[places] != wanted)
        if len(absent):
            raise DataError(
                f"{self.folder} holds no features of the caption "
                f"{texts[absent[0]]!r}: it was made for other captions. Run `python -m "
                "pixelflow_jax.prepare text-features` on the shards you train on."
            )
        features = [self._unpack(self._records[int(order[p])]) for p in places]
        states, masks = zip(*features, strict=True)
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
    def _sorted_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys in ascending order, and the record of each."""
        files = [self.folder / (entry["file"] + KEYS) for entry in self._files]
        keys = np.concatenate([np.load(file) for file in files])
        order = np.argsort(keys, kind="stable")
        return keys[order], order

    @functools.cached_property
    def _records(self):
        return Records(record_files(self.folder, self._files))

    def __getstate__(self) -> dict:
        # Open files and keys stay with the process that read them.
        return {k: v for k, v in self.__dict__.items() if k not in CACHED}


def text_key(text: str) -> int:
    """A number of 64 bits for a text, the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def pack_features(states: np.ndarray, mask: np.ndarray, padding: bool) -> bytes:
    """One record: the mask [length], then the states [length, width] as bfloat16.

    Without `padding` only the states where the mask is true.
    """
    kept = states if padding else states[mask]
    return np.asarray(mask, np.bool_).tobytes() + np.asarray(kept, DTYPE).tobytes()
