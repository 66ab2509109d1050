"""Which records make which batch, and what becomes of a record."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import grain
import numpy as np

from pixelflow_jax.data.source import MAX_UNREADABLE_RUN, Record, Source, Split
from pixelflow_jax.data.transforms import Crop, Rng, flip
from pixelflow_jax.errors import DataError, UnreadableImage


class CaptionEncoder(Protocol):
    """Turns n captions into entries of a batch, arrays [n, ...] by name; picklable."""

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]: ...


class Bucket(NamedTuple):
    """The records, by number, whose images become `shape`, height and width."""

    records: Sequence[int] | np.ndarray
    shape: tuple[int, int]


class Example(TypedDict):
    """A record as it goes into a batch, and why others were passed over for it."""

    image: np.ndarray
    label: int
    caption: str
    unreadable: list[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batching:
    """How a split becomes batches of `batch_size` records, over all processes.

    With `repeat` there is no end, and each epoch is shuffled anew; without, there is
    one pass, in which nothing is random but the order. Every batch is of `part_count`
    equal parts, of which this process reads the ascending `parts`, one after the other.
    """

    split: Split
    batch_size: int
    seed: int
    shuffle: bool = True
    repeat: bool = True
    parts: tuple[int, ...] = (0,)
    part_count: int = 1

    @property
    def part_size(self) -> int:
        """Records in one part of a batch."""
        return self.batch_size // self.part_count

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        parts, count = self.parts, self.part_count
        ascending = bool(parts) and list(parts) == sorted(set(parts))
        rules = {
            "seed must be at least 0 and below 2**32": 0 <= self.seed < 2**32,
            f"parts {parts} must ascend and lie below part_count {count}": ascending
            and 0 <= parts[0] <= parts[-1] < count,
            f"batch_size {self.batch_size} must be a positive multiple of the {count} "
            "parts": self.batch_size > 0 and self.batch_size % max(1, count) == 0,
        }
        return [rule for rule, holds in rules.items() if not holds]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which records make which batch; a batch is of one bucket."""

    buckets: tuple[Bucket, ...]
    batching: Batching

    @property
    def length(self) -> int:
        """Records in all."""
        return sum(len(bucket.records) for bucket in self.buckets)

    @property
    def num_batches(self) -> int | None:
        """Batches in one pass, None where it repeats for ever."""
        if self.batching.repeat:
            return None
        return sum(map(self._batches_of, self.buckets))

    def batches(
        self, prepare: "Prepare", collate: "Collate", start: int
    ) -> grain.MapDataset:
        """This process's batches from `start` on, computed on demand.

        Buckets take turns in proportion to their lengths; in one pass they follow each
        other.
        """
        repeat = self.batching.repeat
        parts = [
            self._bucket_batches(number, prepare, collate)
            for number in range(len(self.buckets))
        ]
        if len(parts) == 1:
            joined = parts[0]
        elif repeat:
            shares = [len(bucket.records) / self.length for bucket in self.buckets]
            joined = grain.MapDataset.mix(parts, weights=shares)
        else:
            joined = grain.MapDataset.concatenate(parts)
        return joined.slice(slice(start, None))

    def weight(self, batch: int) -> np.ndarray:
        """1 for the records of the pass and 0 for what fills it up; float32 [b]."""
        own, length = self.batching, 0
        for bucket in self.buckets:
            length = len(bucket.records)
            if batch < self._batches_of(bucket):
                break
            batch -= self._batches_of(bucket)
        first = batch * own.batch_size + np.array(own.parts) * own.part_size
        numbers = (first[:, None] + np.arange(own.part_size)).ravel()
        return (numbers < length).astype(np.float32)

    def _bucket_batches(
        self, number: int, prepare: "Prepare", collate: "Collate"
    ) -> grain.MapDataset:
        """This process's batches of one bucket, without end where it repeats."""
        own, bucket = self.batching, self.buckets[number]
        order = grain.MapDataset.range(len(bucket.records))
        order = order.seed((own.seed + number) % 2**32)
        order = order.shuffle() if own.shuffle else order
        order = order.repeat(reseed_each_epoch=own.repeat)
        one = dataclasses.replace(prepare, bucket=bucket)
        records = order.random_map(one) if own.repeat else order.map(one)
        # Parts of batches, dealt out in turn: number k * count + part.
        if own.part_size == 1:  # grain cannot count so many batches without end
            dealt = records.map(Single(collate))
        else:
            dealt = records.batch(own.part_size, batch_fn=collate)
        end = None if own.repeat else self._batches_of(bucket)
        mine = [dealt.slice(slice(i, None, own.part_count)) for i in own.parts]
        mine = [part.slice(slice(0, end)) for part in mine]
        if len(mine) == 1:
            return mine[0]
        return grain.MapDataset.mix(mine).batch(len(mine), batch_fn=joined)

    def _batches_of(self, bucket: Bucket) -> int:
        return -(-len(bucket.records) // self.batching.batch_size)


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Place in a bucket -> cropped, perhaps mirrored image, label and one caption.

    An unreadable record's place is taken by the next readable one in the order of the
    bucket, so the outcome depends on the data alone. Without `rng`, in passes for
    evaluation, nothing is random: no image is mirrored, crops are fixed, and the first
    caption is taken.
    """

    source: Source
    bucket: Bucket
    crop: Crop
    mirror: bool

    def __call__(self, place: int, rng: Rng = None) -> Example:
        """The record at that place, or the next readable one."""
        failures: list[str] = []
        numbers = self.bucket.records
        for step in range(MAX_UNREADABLE_RUN):
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
            f"{MAX_UNREADABLE_RUN} records in a row cannot be used, the last because: "
            f"{failures[-1]} Check that the data is complete and still mounted."
        )

    def _cropped(self, record: Record, rng: Rng) -> np.ndarray:
        try:
            return self.crop(record["image"], self.bucket.shape, rng)
        except UnreadableImage as error:
            raise UnreadableImage(f"{record['name']}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Collate:
    """Records -> a batch, with what `encoder` makes of their captions, if there is one.

    All captions are encoded at once, which costs tokenizers less than text by text.
    """

    encoder: CaptionEncoder | None

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Arrays by name, and all "unreadable" messages."""
        batch: dict[str, Any] = {
            "image": np.stack([example["image"] for example in examples]),
            "label": np.array([example["label"] for example in examples], np.int32),
            "unreadable": [text for one in examples for text in one["unreadable"]],
        }
        if self.encoder is not None:
            batch |= self.encoder([example["caption"] for example in examples])
        return batch


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parts of a batch, one after the other, as one."""
    return {
        name: [text for part in parts for text in part[name]]
        if name == "unreadable"
        else np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }


@dataclasses.dataclass(frozen=True)
class Single:
    """A record -> a batch of it alone."""

    collate: Collate

    def __call__(self, example: Example) -> dict[str, Any]:
        """What `collate` makes of one record."""
        return self.collate([example])
