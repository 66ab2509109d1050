"""Which records make which batch, and what becomes of a record."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import grain
import numpy as np

from pixelflow_jax.data.source import ROW_LIMIT, Source
from pixelflow_jax.data.transforms import Crop, flip
from pixelflow_jax.errors import DataError, UnreadableImage


class CaptionEncoder(Protocol):
    """Turns n captions into entries of a batch, arrays [n, ...] by name; picklable."""

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]: ...


class Bucket(NamedTuple):
    """The records, by number, whose images become `shape`, height and width."""

    records: Sequence[int] | np.ndarray
    shape: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which records make which batch; a batch is of one stream."""

    streams: tuple[Bucket, ...]
    seed: int
    batch_size: int
    process_index: int
    process_count: int
    shuffle: bool
    repeat: bool

    @property
    def length(self) -> int:
        """Records in all."""
        return sum(len(stream.records) for stream in self.streams)

    @property
    def local_size(self) -> int:
        """Records in this process's part of a batch."""
        return self.batch_size // self.process_count

    @property
    def num_batches(self) -> int | None:
        """Batches in one pass, None where it repeats for ever."""
        return None if self.repeat else sum(map(self._batches_of, self.streams))

    def batches(
        self, prepare: "Prepare", collate: "Collate", start: int
    ) -> grain.MapDataset:
        """This process's batches from `start` on, computed on demand.

        Streams take turns in proportion to their lengths; in one pass they follow each
        other.
        """
        parts = []
        for number, stream in enumerate(self.streams):
            order = grain.MapDataset.range(len(stream.records))
            order = order.seed((self.seed + number) % 2**32)
            order = order.shuffle() if self.shuffle else order
            order = order.repeat(reseed_each_epoch=self.repeat)
            one = dataclasses.replace(prepare, stream=stream)
            records = order.random_map(one) if self.repeat else order.map(one)
            # Batches of the local size, dealt out in turn: number k * count + index.
            local = records.batch(self.local_size, batch_fn=collate)
            mine = local.slice(slice(self.process_index, None, self.process_count))
            end = None if self.repeat else self._batches_of(stream)
            parts.append(mine.slice(slice(0, end)))
        if len(parts) == 1:
            joined = parts[0]
        elif self.repeat:
            shares = [len(stream.records) / self.length for stream in self.streams]
            joined = grain.MapDataset.mix(parts, weights=shares)
        else:
            joined = grain.MapDataset.concatenate(parts)
        return joined.slice(slice(start, None))

    def weight(self, batch: int) -> np.ndarray:
        """1 for the records of the pass and 0 for what fills it up; float32 [b]."""
        for stream in self.streams:
            if batch < self._batches_of(stream):
                break
            batch -= self._batches_of(stream)
        first = batch * self.batch_size + self.process_index * self.local_size
        numbers = np.arange(first, first + self.local_size)
        return (numbers < len(stream.records)).astype(np.float32)

    def _batches_of(self, stream: Bucket) -> int:
        return -(-len(stream.records) // self.batch_size)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Place in a stream -> cropped, perhaps mirrored image, label and one caption.

    An unreadable record's place is taken by the next readable one in the order of the
    stream, so the outcome depends on the data alone. Without `rng`, in passes for
    evaluation, nothing is random: no image is mirrored, crops are fixed, and the first
    caption is taken.
    """

    source: Source
    stream: Bucket
    crop: Crop
    mirror: bool

    def __call__(self, place: int, rng: np.random.Generator | None = None) -> dict:
        """The record, and why others were passed over ("unreadable")."""
        failures = []
        numbers = self.stream.records
        for step in range(ROW_LIMIT):
            try:
                record = self.source[int(numbers[(int(place) + step) % len(numbers)])]
                image = self._cropped(record, rng)
            except UnreadableImage as error:
                failures.append(str(error))
                continue
            if self.mirror and rng is not None:
                image = flip(image, rng)
            captions = record["captions"]
            # Drawn last, so that images do not depend on how many captions there are.
            drawn = 0 if rng is None else rng.integers(len(captions))
            return {
                "image": image,
                "label": record["label"],
                "caption": captions[drawn],
                "unreadable": failures,
            }
        raise DataError(
            f"{ROW_LIMIT} records in a row cannot be used, the last because: "
            f"{failures[-1]} Check that the data is complete and still mounted."
        )

    def _cropped(self, record: dict, rng: np.random.Generator | None) -> np.ndarray:
        try:
            return self.crop(record["image"], self.stream.shape, rng)
        except UnreadableImage as error:
            raise UnreadableImage(f"{record['name']}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Collate:
    """Records -> a batch, with what `reader` makes of their captions, if there is one.

    The whole batch is read at once, which costs tokenizers less than text by text.
    """

    reader: CaptionEncoder | None

    def __call__(self, records: Sequence[dict]) -> dict:
        """Arrays by name, and all "unreadable" messages."""
        batch = {
            "image": np.stack([record["image"] for record in records]),
            "label": np.array([record["label"] for record in records], np.int32),
            "unreadable": [text for record in records for text in record["unreadable"]],
        }
        if self.reader is not None:
            batch |= self.reader([record["caption"] for record in records])
        return batch
