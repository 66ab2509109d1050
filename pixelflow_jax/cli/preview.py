"""A picture of a data set: examples in a grid, by class or above their captions."""

import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pixelflow_jax.data.images import captioned_grid, grid
from pixelflow_jax.data.source import LabelledSource, Record
from pixelflow_jax.data.transforms import center_crop
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.paths import printable

MOST_PIXELS = 100_000_000  # of the picture
SMALLEST = 64  # pixels of an image in the picture: smaller ones are enlarged


class Layout(NamedTuple):
    """How many examples, how large, and which (`seed`)."""

    rows: int
    columns: int
    size: int
    seed: int

    @property
    def scale(self) -> int:
        """How many times images are enlarged."""
        return max(1, SMALLEST // self.size)

    def check(self) -> None:
        """Raises DataError unless there is something to show."""
        if min(self.rows, self.columns, self.size) < 1:
            raise DataError("--rows, --columns and --size must be at least 1.")
        side = max(self.size, SMALLEST)
        pixels = self.rows * self.columns * side**2
        if pixels > MOST_PIXELS:
            raise DataError(
                f"--rows {self.rows}, --columns {self.columns} and --size {self.size} "
                f"make a picture of {pixels:,} pixels: keep it below {MOST_PIXELS:,}."
            )


def examples(source: LabelledSource, layout: Layout) -> np.ndarray:
    """Randomly chosen images, a class a row; uint8 [h, w, 3].

    Where there is one class only, each stands above its caption instead. What cannot be
    read is named on stderr. Raises DataError where nothing can be used.
    """
    rng = np.random.default_rng(layout.seed)
    classes = np.unique(source.labels)
    if len(classes) == 1:
        return _captioned_examples(source, layout, rng.permutation(len(source)))
    chosen = classes[: layout.rows]
    orders = [rng.permutation(np.flatnonzero(source.labels == c)) for c in chosen]
    blank = np.full((layout.size, layout.size, 3), 255, np.uint8)
    cells = []
    for records in [_readable(source, order, layout.size) for order in orders]:
        for _ in range(layout.columns):
            record = next(records, None)
            cells.append(blank if record is None else record["image"])
    names = [printable(source.class_names[int(label)]) for label in chosen]
    return grid(np.stack(cells), layout.columns, names, scale=layout.scale)


def _captioned_examples(
    source: LabelledSource, layout: Layout, order: np.ndarray
) -> np.ndarray:
    wanted = range(layout.rows * layout.columns)
    readable = _readable(source, order, layout.size)
    records = [record for _, record in zip(wanted, readable, strict=False)]
    if not records:
        raise DataError("None of the images can be used: there is nothing to show.")
    images = np.stack([record["image"] for record in records])
    captions = [" / ".join(record["captions"]) for record in records]
    if not any(captions):
        return grid(images, layout.columns, scale=layout.scale)
    return captioned_grid(images, captions, layout.columns, scale=layout.scale)


def _readable(source: LabelledSource, order: np.ndarray, size: int) -> Iterator[Record]:
    """Records whose images are cropped at once: as they are they may be large."""
    for index in order:
        try:
            record = source[int(index)]
            yield {**record, "image": center_crop(record["image"], size)}
        except UnreadableImage as error:
            print(f"skipped: {error}", file=sys.stderr)
