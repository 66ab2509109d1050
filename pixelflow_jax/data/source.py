"""What a data set is, and the few helpers that every kind of source shares."""

import hashlib
import io
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol, TypedDict, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pixelflow_jax.errors import DataError, UnreadableImage

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = typing.get_args(Split)
MAX_UNREADABLE_RUN = 100  # unreadable records in a row that end a run
UNLABELLED = ("image",)  # the one class of data without classes
T = TypeVar("T")


class Record(TypedDict):
    """One image and what is known of it.

    `image` is uint8 [h, w, 3]. There is one caption at least, empty only where the data
    truly have none. `name` is what logs call the record, `origin` the file it came
    from.
    """

    image: np.ndarray
    label: int
    captions: tuple[str, ...]
    name: str
    origin: str


class Source(Protocol):
    """A random-access split: picklable, files opened lazily in each process."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in label order."""
        ...

    @property
    def sizes(self) -> np.ndarray | None:
        """Height and width of each image, int32 [n, 2]; None without decoding them."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Record 0 <= index < len(self).

        Raises UnreadableImage where the image cannot be decoded or has no caption.
        """
        ...


class LabelledSource(Source, Protocol):
    """A source that knows its labels without reading its records."""

    @property
    def labels(self) -> np.ndarray:
        """The class of each record, int32 [n]."""
        ...


class ListedSource(LabelledSource, Protocol):
    """A source that can be written as shards."""

    @property
    def contiguous(self) -> bool:
        """Whether neighbours are cheaper to read together than records apart."""
        ...

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        ...

    def listing(self) -> Iterator[str]:
        """A line for each record, or file of many, that changes when a record does."""
        ...


class SourceConfig(Protocol):
    """A config node that opens one split of a data set.

    `image_size` is for sources that draw their images; others ignore it. Raises
    DataError where the split is missing or empty.
    """

    def open(self, split: Split, image_size: int) -> Source:
        """Opens "train" or "test"."""
        ...


def check_split(split: str, holdout: float = 0.0) -> None:
    """Raises DataError unless there is such a split and 0 <= holdout < 1."""
    if split not in SPLITS:
        raise DataError(
            f"There is no split {split!r}: ask for one of {', '.join(SPLITS)}."
        )
    if not 0 <= holdout < 1:
        raise DataError(
            f"holdout is the share of the data kept for testing: it must be at least "
            f"0 and below 1, not {holdout}."
        )


def choose_split(
    records: Iterable[T],
    key: Callable[[T], str],
    split: Split,
    holdout: float,
    *,
    nothing: str,
) -> list[T]:
    """The records of a split, decided by a hash of each one's `key`.

    `holdout` is the share kept for testing. Where none is left it raises a DataError
    that begins with `nothing`, as in "PATH holds no images".
    """
    test = split == "test"
    chosen = [record for record in records if in_holdout(key(record), holdout) == test]
    if not chosen:
        raise DataError(
            f"{nothing} in the {split} split with holdout={holdout}: choose more data, "
            "or set holdout to the share to keep for testing (between 0 and 1)."
        )
    return chosen


def in_holdout(key: str, share: float) -> bool:
    """Whether a record belongs to the held-out share (0 to 1), by its key alone.

    A cryptographic hash, because Python's own differs between processes.
    """
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def spread_captions(source: Source, count: int) -> tuple[str, ...]:
    """The first captions of `count` images spread evenly over a source.

    An unreadable one's place is taken by the next that is not. Raises the
    UnreadableImage of the last of MAX_UNREADABLE_RUN in a row.
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
            if step == MAX_UNREADABLE_RUN:
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
