"""What a data set is, and the few helpers that every kind of source shares."""

import hashlib
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from PIL import UnidentifiedImageError

from pixelflow_jax.data.decoding import FORMATS, MAX_PIXELS, decode
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.paths import printable

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = typing.get_args(Split)
MAX_UNREADABLE_RUN = 100  # unreadable records in a row that end a run
UNLABELLED = ("image",)  # the one class of data without classes
SHOWN = 5  # names that a message lists
PROBES = 8  # records that stand for all, spread over them
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


@runtime_checkable
class Identified(Protocol):
    """A source that can tell its records apart without reading them."""

    def identity(self) -> Iterator[str]:
        """Lines that change when records are renamed, added, removed or reordered.

        They stay the same when the data are moved to another folder.
        """
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
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def class_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """How one list of classes differs from another, for a message: what, and where."""
    parts = []
    for word, names, others in (("gone", before, now), ("new", now, before)):
        changed = [printable(n) for n in names if n not in set(others)]
        more = ", ..." if len(changed) > SHOWN else ""
        if changed:
            parts.append(f"{word}: {', '.join(changed[:SHOWN])}{more}")
    pairs = enumerate(zip(before, now, strict=False))
    moved = [f"label {i}: {a!r} -> {b!r}" for i, (a, b) in pairs if a != b]
    return "; ".join([*parts, *moved[:1]])


def spread(length: int) -> list[int]:
    """The numbers of at most PROBES records, spread evenly over `length`."""
    places = np.linspace(0, length, min(PROBES, length), endpoint=False)
    return places.astype(int).tolist()


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


def decode_image(encoded: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image file held in memory; uint8 [h, w, 3]; see `decoding.decode`.

    Raises UnreadableImage with the record's name. Pillow reports damage through many
    exception types (OSError, SyntaxError, ValueError, struct.error, ...), so all count.
    """
    if not encoded:
        raise _unreadable(name, "the file is empty")
    try:
        return decode(encoded, max_pixels)
    except UnidentifiedImageError as error:
        # Its own message holds an address in memory, different every time.
        reason = f"of no format that is read: {', '.join(FORMATS)}"
        raise _unreadable(name, reason) from error
    except Exception as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        raise _unreadable(name, reason) from error


def _unreadable(name: str, reason: str) -> UnreadableImage:
    return UnreadableImage(
        f"{printable(name)} cannot be decoded ({reason}). Replace or remove it."
    )
