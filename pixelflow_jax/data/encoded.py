"""Data sets of encoded images in files, whatever kind of file holds them."""

import logging
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from pixelflow_jax.data.captions import allow_missing
from pixelflow_jax.data.limits import Limits
from pixelflow_jax.data.source import UNLABELLED, Record, decode_image
from pixelflow_jax.paths import printable

LOG = logging.getLogger(__name__)


def say_first_frames(names: Sequence[str]) -> None:
    """Warns that of GIFs, of which `names` are all, one frame is taken."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        LOG.warning("Only the first frame of %s%s is used.", printable(names[0]), more)


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

    def identity(self) -> Iterator[str]:
        """The same, of what is known without asking every file."""
        ...


class EncodedSource:
    """A `ListedSource` of encoded images.

    Without `labels` (int32 [n]) all are of one class. With `allow_missing` an image
    without a caption has an empty one. One beyond the `limits` is unreadable.
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
        limits: Limits | None = None,
    ):
        self._images, self._allow_missing = images, allow_missing
        self._limits = limits or Limits()
        self.contiguous, self.class_names = contiguous, class_names
        self.labels = np.zeros(len(images), np.int32) if labels is None else labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        images, name = self._images, self._images.name(index)
        return {
            "image": decode_image(self.read(index), name, self._limits.max_pixels),
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
        if self._limits != Limits():
            yield str(self._limits)
        yield from self._images.listing()

    def identity(self) -> Iterator[str]:
        """Lines that tell these images from others: see `fingerprint.Identified`."""
        yield from self._images.identity()
