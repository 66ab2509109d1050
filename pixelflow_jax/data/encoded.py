"""Data sets of encoded images in files, whatever kind of file holds them."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from pixelflow_jax.data.captions import allow_missing
from pixelflow_jax.data.decoding import MAX_PIXELS
from pixelflow_jax.data.source import UNLABELLED, Record, decode_image


class EncodedImages(Protocol):
    """Image files and their captions, by number; picklable."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What logs call the image."""
        ...

    def origin(self, index: int) -> str:
        """The file it comes from."""
        ...

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        ...

    def captions(self, index: int) -> tuple[str, ...]:
        """One or more; NoCaption where there is none."""
        ...

    def listing(self) -> Iterator[str]:
        """A line for each image, or file of many, that changes when one does."""
        ...


class EncodedSource:
    """A `ListedSource` of encoded images.

    Without `labels` (int32 [n]) all are of one class. With `allow_missing` an image
    without a caption has an empty one. One of more than `max_pixels` is unreadable.
    `contiguous`: see `ListedSource`.
    """

    sizes = None

    def __init__(
        self,
        images: EncodedImages,
        *,
        contiguous: bool,
        allow_missing: bool,
        class_names: tuple[str, ...] = UNLABELLED,
        labels: np.ndarray | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        self._images, self._allow_missing = images, allow_missing
        self._max_pixels = max_pixels
        self.contiguous, self.class_names = contiguous, class_names
        self.labels = np.zeros(len(images), np.int32) if labels is None else labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        images, name = self._images, self._images.name(index)
        return {
            "image": decode_image(self.read(index), name, self._max_pixels),
            "label": int(self.labels[index]),
            "captions": allow_missing(
                lambda: images.captions(index), self._allow_missing
            ),
            "name": name,
            "origin": images.origin(index),
        }

    def name(self, index: int) -> str:
        """What logs call a record; reads nothing."""
        return self._images.name(index)

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        return self._images.read(index)

    def listing(self) -> Iterator[str]:
        """A line for each image, or file of many, that changes when one does."""
        return self._images.listing()
