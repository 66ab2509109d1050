"""Which records make which batch, and what becomes of a record."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from pixelflow_jax.data.source import MAX_UNREADABLE_RUN, Record, Source, Split
from pixelflow_jax.data.transforms import Crop, Rng, mirror
from pixelflow_jax.errors import DataError, UnreadableImage


class CaptionEncoder(Protocol):
    """Turns n captions into entries of a batch, arrays [n, ...] by name; picklable."""

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]: ...


class Bucket(NamedTuple):
    """The records, by number, whose images become `shape`, height and width."""

    records: Sequence[int] | np.ndarray
    shape: tuple[int, int]


class Drawn(NamedTuple):
    """A place in a bucket, and the state of its random numbers, if any are drawn."""

    place: int
    state: Any = None


def with_state(place: int, rng: np.random.Generator) -> Drawn:
    """Keeps the state of a generator that grain takes back for the next record."""
    return Drawn(place, rng.bit_generator.state)


class Chosen(NamedTuple):
    """What goes into a batch beside an image, and why others were passed over."""

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

    def batches(self, prepare: "Prepare", start: int) -> grain.MapDataset:
        """This process's batches from `start` on, computed on demand.

        Buckets take turns in proportion to their lengths; in one pass they follow each
        other.
        """
        repeat = self.batching.repeat
        parts = [self._bucket_batches(k, prepare) for k in range(len(self.buckets))]
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

    def _bucket_batches(self, number: int, prepare: "Prepare") -> grain.MapDataset:
        """This process's batches of one bucket, without end where it repeats."""
        own, bucket = self.batching, self.buckets[number]
        order = grain.MapDataset.range(len(bucket.records))
        order = order.seed((own.seed + number) % 2**32)
        order = order.shuffle() if own.shuffle else order
        order = order.repeat(reseed_each_epoch=own.repeat)
        one = dataclasses.replace(prepare, bucket=bucket)
        drawn = order.random_map(with_state) if own.repeat else order.map(Drawn)
        # Parts of batches, dealt out in turn: number k * count + part.
        if own.part_size == 1:  # grain cannot count so many batches without end
            dealt = drawn.map(one.single)
        else:
            dealt = drawn.batch(own.part_size, batch_fn=one)
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
    """Places in a bucket -> a batch of cropped, perhaps mirrored images and the rest.

    An unreadable record's place is taken by the next readable one in the order of the
    bucket, so the outcome depends on the data alone. Where no random numbers are drawn,
    in passes for evaluation, no image is mirrored, crops are fixed, and the first
    caption is taken. `encoder` makes arrays of the captions: of all at once, which
    costs tokenizers less than text by text.
    """

    source: Source
    bucket: Bucket
    crop: Crop
    mirror: bool
    encoder: CaptionEncoder | None = None

    def __call__(self, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """Arrays by name, and all "unreadable" messages."""
        # Each image goes to its place at once: dozens of them would push each other
        # out of the processor's cache.
        images = np.empty((len(drawn), *self.bucket.shape, 3), np.uint8)
        generator = np.random.Generator(np.random.Philox(0))  # of one state after all
        chosen = []
        for (place, state), out in zip(drawn, images, strict=True):
            rng = None
            if state is not None:
                rng, generator.bit_generator.state = generator, state
            chosen.append(self._choose(place, rng, out))
        batch: dict[str, Any] = {
            "image": images,
            "label": np.array([one.label for one in chosen], np.int32),
            "unreadable": [text for one in chosen for text in one.unreadable],
        }
        if self.encoder is not None:
            batch |= self.encoder([one.caption for one in chosen])
        return batch

    def single(self, drawn: Drawn) -> dict[str, Any]:
        """A batch of one record."""
        return self([drawn])

    def _choose(self, place: int, rng: Rng, out: np.ndarray) -> Chosen:
        """Writes the image of the record at that place, or the next readable one."""
        failures: list[str] = []
        numbers = self.bucket.records
        for step in range(MAX_UNREADABLE_RUN):
            try:
                record = self.source[int(numbers[(int(place) + step) % len(numbers)])]
                image = self._cropped(record, rng)
            except UnreadableImage as error:
                failures.append(str(error))
                continue
            if self.mirror and rng is not None and rng.random() < 0.5:
                mirror(image, out)
            else:
                np.copyto(out, image)
            captions = record["captions"]
            # Drawn last, so that images do not depend on how many captions there are.
            number = 0 if rng is None else rng.integers(len(captions))
            return Chosen(record["label"], captions[number], failures)
        raise DataError(
            f"{MAX_UNREADABLE_RUN} records in a row cannot be used, the last because: "
            f"{failures[-1]} Check that the data is complete and still mounted."
        )

    def _cropped(self, record: Record, rng: Rng) -> np.ndarray:
        try:
            return self.crop(record["image"], self.bucket.shape, rng)
        except UnreadableImage as error:
            raise UnreadableImage(f"{record['name']}: {error}") from error


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parts of a batch, one after the other, as one."""
    return {
        name: [text for part in parts for text in part[name]]
        if name == "unreadable"
        else np.concatenate([part[name] for part in parts])
        for name in parts[0]
    }
