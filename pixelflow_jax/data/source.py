"""What a data set is, and the few helpers that every kind of source shares."""

import hashlib
import io
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pixelflow_jax.errors import DataError, UnreadableImage

SPLITS = ("train", "test")
ROW_LIMIT = 100  # unreadable records in a row that end a run
UNLABELLED = ("image",)  # the one class of data without classes


class Source(Protocol):
    """A random-access split: picklable, files opened lazily in each process.

    `source[i]` is {"image": uint8 [h, w, 3], "label": int, "captions": tuple[str, ...],
    "name": str, "origin": str} for 0 <= i < len(source), and raises UnreadableImage
    where the image cannot be decoded or has no caption. There is one caption at least,
    empty only where the data truly have none. `name` is what logs call the record,
    `origin` the file it came from. `sizes` is int32 [n, 2], height and width of each
    image, or None where only decoding would tell.
    """

    class_names: tuple[str, ...]
    sizes: np.ndarray | None

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict: ...


class LabelledSource(Source, Protocol):
    """A source that knows what it holds without reading its records.

    `labels` is int32 [n]; `listing()` gives lines that change when a record does.
    `contiguous` says that neighbours are cheaper to read together than records apart.
    """

    labels: np.ndarray
    contiguous: bool

    def listing(self) -> Iterator[str]:
        """A line for each record, or for each file of many."""
        ...


class SourceConfig(Protocol):
    """A config node that opens one split of a data set.

    `image_size` is for sources that draw their images; others ignore it. Raises
    DataError where the split is missing or empty.
    """

    def open(self, split: str, image_size: int) -> Source:
        """Opens "train" or "test"."""
        ...


def check_split(split: str) -> None:
    """Raises DataError unless the split is "train" or "test"."""
    if split not in SPLITS:
        raise DataError(
            f"There is no split {split!r}: ask for one of {', '.join(SPLITS)}."
        )


def in_holdout(key: str, share: float) -> bool:
    """Whether a record belongs to the held-out share (0 to 1), by its key alone.

    A cryptographic hash, because Python's own differs between processes.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def check_holdout(share: float) -> None:
    """Raises DataError unless 0 <= share < 1."""
    if not 0 <= share < 1:
        raise DataError(
            f"holdout is the share of the data kept for testing: it must be at least "
            f"0 and below 1, not {share}."
        )


def spread_captions(source: Source, count: int) -> tuple[str, ...]:
    """The first captions of `count` images spread evenly over a source.

    An unreadable one's place is taken by the next that is not. Raises the
    UnreadableImage of the last of ROW_LIMIT in a row.
    """
    starts = np.linspace(0, len(source), count, endpoint=False).astype(int)
    return tuple(_caption_from(source, int(start)) for start in starts)


def _caption_from(source: Source, start: int) -> str:
    step = 0
    while True:
        try:
            return source[(start + step) % len(source)]["captions"][0]
        except UnreadableImage:
            step += 1
            if step == ROW_LIMIT:
                raise


def to_rgb(image: Image.Image) -> Image.Image:
    """Turns any Pillow image upright and into RGB, transparent parts over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # Pillow clips 16-bit grey at 255 instead of scaling it.
        grey = np.asarray(image).astype(np.float32) / 257.0
        image = Image.fromarray(np.clip(grey + 0.5, 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def decode_image(encoded: bytes, name: str) -> np.ndarray:
    """Decodes an image file held in memory; uint8 [h, w, 3].

    Raises UnreadableImage with the record's name. Pillow reports damage through many
    exception types (OSError, SyntaxError, ValueError, struct.error, ...), so all count.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(to_rgb(image))
    except UnidentifiedImageError as error:
        # Its own message holds an address in memory, different every time.
        raise UnreadableImage(
            f"{name} cannot be decoded (no image format that Pillow knows). "
            "Replace or remove it."
        ) from error
    except Exception as error:
        raise UnreadableImage(
            f"{name} cannot be decoded ({error}). Replace or remove it."
        ) from error
