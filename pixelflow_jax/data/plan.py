"""Which records make which batch, and what becomes of a record."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from pixelflow_jax.data.errors import DataError, UnreadableImage
from pixelflow_jax.data.source import Source
from pixelflow_jax.data.transforms import Crop, flip

ROW_LIMIT = 100  # unreadable records in a row that end a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Which records make which batch."""

    length: int
    seed: int
    batch_size: int
    process_index: int
    process_count: int
    shuffle: bool
    repeat: bool

    @property
    def local_size(self) -> int:
        """Records in this process's part of a batch."""
        return self.batch_size // self.process_count

    @property
    def num_batches(self) -> int | None:
        """Batches in one pass, None where it repeats for ever."""
        return None if self.repeat else -(-self.length // self.batch_size)

    def batches(self, prepare: "Prepare", start: int) -> grain.MapDataset:
        """This process's batches from `start` on, computed on demand."""
        order = grain.MapDataset.range(self.length).seed(self.seed)
        order = order.shuffle() if self.shuffle else order
        order = order.repeat(reseed_each_epoch=self.repeat)
        records = order.random_map(prepare) if self.repeat else order.map(prepare)
        # Batches of the local size, dealt out in turn: number k * count + index.
        parts = records.batch(self.local_size, batch_fn=_stack)
        mine = parts.slice(slice(self.process_index, None, self.process_count))
        return mine.slice(slice(start, self.num_batches))

    def weight(self, batch: int) -> np.ndarray:
        """1 for the records of the pass and 0 for what fills it up; float32 [b]."""
        first = batch * self.batch_size + self.process_index * self.local_size
        return (np.arange(first, first + self.local_size) < self.length).astype(
            np.float32
        )


class Prepare:
    """Record number -> cropped, perhaps mirrored image with its label.

    An unreadable record's place is taken by the next readable one in the order of the
    source, so the outcome depends on the data alone. Without `rng`, in passes for
    evaluation, nothing is random: no image is mirrored, and crops are fixed.
    """

    def __init__(self, source: Source, image_size: int, crop: Crop, mirror: bool):
        self._source, self._size = source, image_size
        self._crop, self._mirror = crop, mirror

    def __call__(self, index: int, rng: np.random.Generator | None = None) -> dict:
        failures = []
        for step in range(ROW_LIMIT):
            try:
                record = self._source[(int(index) + step) % len(self._source)]
                image = self._cropped(record, rng)
            except UnreadableImage as error:
                failures.append(str(error))
                continue
            if self._mirror and rng is not None:
                image = flip(image, rng)
            return {"image": image, "label": record["label"], "unreadable": failures}
        raise DataError(
            f"{ROW_LIMIT} records in a row cannot be used, the last because: "
            f"{failures[-1]} Check that the data is complete and still mounted."
        )

    def _cropped(self, record: dict, rng: np.random.Generator | None) -> np.ndarray:
        try:
            return self._crop(record["image"], self._size, rng)
        except UnreadableImage as error:
            raise UnreadableImage(f"{record['name']}: {error}") from error


def _stack(records: Sequence[dict]) -> dict:
    return {
        "image": np.stack([record["image"] for record in records]),
        "label": np.array([record["label"] for record in records], np.int32),
        "unreadable": [text for record in records for text in record["unreadable"]],
    }
