"""Batches by number: the k-th is a pure function of the data, the seed and k.

So a run resumes from the number of its next batch alone, and workers, threads and
processes change the speed but never the pictures.
"""

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import grain
import numpy as np
from absl import flags

from pixelflow_jax import values
from pixelflow_jax.data import fingerprint
from pixelflow_jax.data.buckets import Buckets
from pixelflow_jax.data.emoji.source import Emoji
from pixelflow_jax.data.fitness import size_warnings
from pixelflow_jax.data.parent import end_with
from pixelflow_jax.data.plan import (
    Batching,
    Bucket,
    CaptionEncoder,
    Plan,
    Prepare,
)
from pixelflow_jax.data.source import (
    Source,
    SourceConfig,
    Split,
)
from pixelflow_jax.data.transforms import CenterCrop, Crop, normalise
from pixelflow_jax.errors import DataError
from pixelflow_jax.values import Natural, Pixels, Processes, Range, Share

LOG = logging.getLogger(__name__)
_LISTED = [np.empty(0)]
ALONE = sys.getrefcount(_LISTED[0])  # the count of an array that only a list refers to
MIN_SEEN = 100  # records to look at before the share of unreadable ones counts


@dataclasses.dataclass(kw_only=True)
class Data:
    """A data set and how its images become batches of `image_size` squares.

    With `buckets` a batch may have any of their shapes instead, in proportion to the
    data; the source must know the sizes of its images. `flip` mirrors half of the
    images in training. `threads` prepare batches in this process, or are shared out
    among `workers` processes (0: none), which suit slow decoding; workers import the
    main module again, so a script needs `if __name__ == "__main__":`. `prefetch`
    batches wait ready. A run ends when more than the share `max_corrupt` of the images
    cannot be used.
    """

    source: SourceConfig = dataclasses.field(default_factory=Emoji)
    image_size: Pixels = 256
    buckets: Buckets | None = None
    crop: Crop = dataclasses.field(default_factory=CenterCrop)
    flip: bool = True
    workers: Processes = 0
    threads: Annotated[int, Range(low=1, high=4096)] = 8
    prefetch: Annotated[int, Range(low=1, high=4096)] = 2
    max_corrupt: Share = 0.01

    def __post_init__(self):
        self._opened: dict[tuple, Source] = {}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in label order; opens the train split."""
        return self.open("train").class_names

    @property
    def num_classes(self) -> int:
        """How many classes there are; opens the train split."""
        return len(self.class_names)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The heights and widths that batches may have; reads nothing."""
        if self.buckets is None:
            return ((self.image_size, self.image_size),)
        return self.buckets.shapes(self.image_size)

    def open_buckets(self, split: Split) -> tuple[Bucket, ...]:
        """The records of each shape that there are any of; DataError without sizes."""
        source = self.open(split)
        if self.buckets is None:
            return (Bucket(range(len(source)), self.shapes[0]),)
        if source.sizes is None:
            raise DataError(
                f"data.buckets needs the sizes of all images, and "
                f"{type(self.source).__name__} does not know them without decoding: "
                "prepare the data as shards with --size and --keep-aspect."
            )
        numbers = self.buckets.assign(source.sizes, self.image_size)
        buckets = [
            Bucket(np.flatnonzero(numbers == number), shape)
            for number, shape in enumerate(self.shapes)
        ]
        return tuple(bucket for bucket in buckets if len(bucket.records))

    def held_out(self) -> Source:
        """The test split; the train split where there is no other."""
        try:
            return self.open("test")
        except DataError:
            return self.open("train")

    def open(self, split: Split) -> Source:
        """The split, opened once for each setting of the source."""
        # The fields may change after the first use, on the command line for one.
        key = (split, self.image_size, repr(self.source))
        if key not in self._opened:
            self._opened[key] = self.source.open(split, self.image_size)
        return self._opened[key]

    def loader(
        self,
        batching: Batching,
        *,
        start: int = 0,
        caption_encoder: CaptionEncoder | None = None,
    ) -> "BatchLoader":
        """This process's part of every global batch, from batch number `start` on.

        Yields {"image": float32 [b, height, width, 3] in [-1, 1], "label": int32 [b]}
        of this process's parts; all parts of a batch, in their order, make the same
        global batch for any number of processes. `caption_encoder` adds what it makes
        of each record's caption: of several, one drawn anew every epoch.
        With `batching.repeat` it never ends and each epoch is shuffled anew. Without,
        it is one pass for evaluation: images are not mirrored, random crops take the
        middle, captions are the first, the last batch is filled up from the beginning
        (that of each shape, with buckets), and an entry "weight", float32 [b], is 0 for
        what fills it. Raises DataError.
        """
        self._check(batching, start)
        source = self.open(batching.split)
        plan = Plan(self.open_buckets(batching.split), batching)
        prepare = Prepare(
            source, plan.buckets[0], self.crop, self.flip, caption_encoder
        )
        batches = self._prefetched(plan.batches(prepare, start))
        captions = None
        if caption_encoder is not None:
            captions = fingerprint.of_captions(source, caption_encoder)
        own = self._fingerprint(plan, source, captions)
        for warning in size_warnings(source, plan.buckets, batching):
            LOG.warning("%s", warning)
        return BatchLoader(batches, plan, own, start, self.max_corrupt)

    def _fingerprint(
        self, plan: Plan, source: Source, captions: str | None
    ) -> dict[str, Any]:
        return {
            "source": type(self.source).__name__,
            "split": plan.batching.split,
            "length": plan.length,
            **fingerprint.of_source(source),
            "seed": plan.batching.seed,
            "batch_size": plan.batching.batch_size,
            "image_size": self.image_size,
            "shuffle": plan.batching.shuffle,
            "crop": repr(self.crop),
            "flip": self.flip,
            "buckets": None if self.buckets is None else repr(self.buckets),
            "captions": captions,
        }

    def _prefetched(self, batches: grain.MapDataset) -> grain.IterDataset:
        threads = max(1, self.threads // max(1, self.workers))
        # Batches in work are ahead of those that wait, one for each thread.
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(threads, self.prefetch)
        )
        dataset = batches.to_iter_dataset(options)
        if self.workers:
            if not flags.FLAGS.is_parsed():
                # grain reads its own flags, which notebooks and tests never parse.
                flags.FLAGS.mark_as_parsed()
            options = grain.MultiprocessingOptions(
                num_workers=self.workers, per_worker_buffer_size=self.prefetch
            )
            dataset = dataset.mp_prefetch(options, _Worker(os.getpid()))
        # Only bytes cross between processes; a thread here makes them floats.
        return grain.experimental.ThreadPrefetchIterDataset(
            dataset.map(_ToFloat(self.prefetch + 3)), prefetch_buffer_size=self.prefetch
        )

    def _check(self, batching: Batching, start: int) -> None:
        problems = values.field_problems(self, "data")
        problems += values.problems("start", start, Natural)
        if self.buckets is not None:
            problems += self.buckets.problems(self.image_size)
        problems += batching.problems()
        if problems:
            raise DataError(f"The data settings do not work: {'; '.join(problems)}.")


class BatchLoader:
    """An iterator of batches that knows its place; see Data.loader.

    Close it, or use it in a `with` statement: workers live until then. Raises
    DataError when too many images are unreadable or a worker fails.
    """

    def __init__(
        self,
        batches: grain.IterDataset,
        plan: Plan,
        own_fingerprint: dict[str, Any],
        start: int,
        max_corrupt: float,
    ):
        self._batches: grain.DatasetIterator | None = iter(batches)
        self._plan, self._fingerprint = plan, own_fingerprint
        self._next, self._max_corrupt = start, max_corrupt
        self._seen, self._corrupt = 0, 0
        self._reasons: dict[str, None] = {}  # an ordered set

    def __iter__(self) -> "BatchLoader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            raise StopIteration
        try:
            batch = next(self._batches)
        except (StopIteration, DataError):
            self.close()
            raise
        except Exception as error:
            self.close()
            raise DataError(
                f"Reading batch {self._next} failed: {type(error).__name__}: {error} "
                "If a worker process ended early, either memory ran out (lower workers "
                "or prefetch) or the script lacks `if __name__ == '__main__':`; "
                "workers=0 shows the error itself."
            ) from error
        self._count(batch.pop("unreadable"), len(batch["image"]))
        if not self._plan.batching.repeat:
            batch["weight"] = self._plan.weight(self._next)
        self._next += 1
        return batch

    @property
    def num_batches(self) -> int | None:
        """Batches in one pass, None where the loader repeats for ever."""
        return self._plan.num_batches

    @property
    def corrupt(self) -> int:
        """How many times an unreadable record was replaced so far."""
        return self._corrupt

    def state(self) -> dict[str, Any]:
        """Where it stands, for a checkpoint: JSON of the next batch's number."""
        return {"next_batch": self._next, "fingerprint": dict(self._fingerprint)}

    def check(self, state: dict[str, Any], allowed: Sequence[str] = ()) -> None:
        """Raises DataError where a saved state belongs to other data or settings.

        `allowed` are parts of the fingerprint that may differ, as "data.records", or
        all of them: "data".
        """
        changes = fingerprint.changes(state["fingerprint"], self._fingerprint)
        names = [f"data.{name}" for name in changes]
        if "data" in allowed or not set(names) - set(allowed):
            return
        raise DataError(
            f"The checkpoint was made with other data: {'; '.join(changes.values())}. "
            "Restore them to continue it, or start in a new folder. If the change is "
            f'meant: --config.checkpoint.allow="({", ".join(map(repr, names))},)".'
        )

    def close(self) -> None:
        """Ends the workers; the loader yields nothing more."""
        batches, self._batches = self._batches, None
        if batches is not None:
            batches.close()

    def __enter__(self) -> "BatchLoader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _count(self, unreadable: Sequence[str], size: int) -> None:
        self._seen += size + len(unreadable)
        self._corrupt += len(unreadable)
        for reason in unreadable:
            if reason not in self._reasons:
                self._reasons[reason] = None
                LOG.warning("Unreadable image, the next one is used: %s", reason)
        share = self._corrupt / self._seen
        if self._seen >= MIN_SEEN and share > self._max_corrupt:
            self.close()
            raise DataError(
                f"{self._corrupt} of {self._seen} images read ({share:.1%}) cannot be "
                f"used, more than max_corrupt={self._max_corrupt:.1%}. The first: "
                f"{' '.join(list(self._reasons)[:5])} Repair the data, or raise "
                "max_corrupt to continue without them."
            )


@dataclasses.dataclass(frozen=True)
class _Worker:
    """What a worker process does before anything else."""

    parent: int

    def __call__(self, index: int, count: int) -> None:
        end_with(self.parent)


class _ToFloat:
    """Turns the images of batches from bytes to floats, in memory of earlier batches.

    To get fresh memory from the system takes as long as to fill it. An array is used
    again when nobody else refers to it: neither a batch, nor a view, nor a transfer to
    a device.
    """

    def __init__(self, most: int):
        self._most = most
        self._arrays: list[np.ndarray] = []

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        # Copies: what a worker sent lies in shared memory that must not outlive it.
        unreadable, pixels = batch.pop("unreadable"), np.asarray(batch.pop("image"))
        image = normalise(pixels, self._array(pixels.shape))
        copies = {name: np.array(array) for name, array in batch.items()}
        return {"unreadable": unreadable, "image": image, **copies}

    def _array(self, shape: tuple[int, ...]) -> np.ndarray:
        for number in range(len(self._arrays)):
            if sys.getrefcount(self._arrays[number]) <= ALONE:
                array = self._arrays.pop(number)
                if array.shape == shape:
                    break
                # Of another bucket: its memory is free from here on.
                return self._array(shape)
        else:
            array = np.empty(shape, np.float32)
        self._arrays = [*self._arrays, array][-self._most :]
        return array
