"""Emoji beside copies of themselves in other colours, which their captions name.

Nearly every object of an emoji set comes in one colour, so nothing in training tells
the word for a colour from the object. Copies in other colours do.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Iterator
from typing import cast

import numpy as np

from pixelflow_jax.data.emoji.colours import COLOURS
from pixelflow_jax.data.emoji.repaint import PAINTS, Painter
from pixelflow_jax.data.emoji.source import Emoji, EmojiEntry, read_emoji_entries
from pixelflow_jax.data.source import (
    Identified,
    LabelledSource,
    Record,
    SourceConfig,
    Split,
)
from pixelflow_jax.errors import DataError
from pixelflow_jax.values import Count, Name

# The colours of a flag are what it means, and those of people are no paint.
AS_THEY_ARE = ("Flags", "People & Body")


@dataclasses.dataclass(kw_only=True)
class Recoloured(SourceConfig):
    """The emoji of `source`, and up to `copies` of each in other colours, in training.

    `source` is one whose records are named by code points: `Emoji`, or the shards that
    `pixelflow prepare emoji-styles` writes. A copy's captions are those that name the
    main colour of its original, with the new colour in its place; the original keeps
    its own. A copy is used where `colours.main_colour` sees that colour in it. Emoji
    whose name has a colour in it have no copies, since such a copy is often another
    emoji (a green heart), nor have flags, people, and what `kept` calls by any of its
    names. The test split is that of `source`. Copies are chosen by a hash and kept in
    memory. Raises DataError where no caption names a colour.
    """

    source: SourceConfig = dataclasses.field(
        default_factory=lambda: Emoji(captions="rich")
    )
    copies: Count = 4
    kept: tuple[Name, ...] = ()

    def open(self, split: Split, image_size: int) -> LabelledSource:
        """Opens one split; see the class for its errors."""
        opened = self.source.open(split, image_size)
        if not hasattr(opened, "labels"):
            raise DataError(
                f"Recoloured.source is {type(self.source).__name__}, which does not "
                "know its labels: give Emoji or Shards."
            )
        labelled = cast(LabelledSource, opened)
        if split == "test":
            return labelled
        return RecolouredSource(labelled, self.copies, self.kept)


class RecolouredSource:
    """A source followed by copies of its records in other colours; see Recoloured."""

    contiguous = False

    def __init__(self, source: LabelledSource, copies: int, kept: tuple[str, ...]):
        self._source, self.class_names = source, source.class_names

        def of(number: int) -> list[tuple[int, np.ndarray, tuple[str, ...]]]:
            return [(number, *copy) for copy in _copies(source[number], copies, kept)]

        # Large pictures take long to paint, and NumPy lets other threads work.
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            made = [one for some in threads.map(of, range(len(source))) for one in some]
        if not made:
            raise DataError(
                "No drawing can be painted in another colour, since no caption names "
                "the main colour of one: give Recoloured a source with captions that "
                "do (Emoji: captions='rich')."
            )
        self.originals = np.array([number for number, *_ in made], np.int32)
        self._images = [image for _, image, _ in made]
        self._captions = [captions for *_, captions in made]
        self.labels = np.concatenate([source.labels, source.labels[self.originals]])
        self.sizes = None
        if source.sizes is not None:
            copied = source.sizes[self.originals]
            self.sizes = np.concatenate([source.sizes, copied])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        copy = index - len(self._source)
        if copy < 0:
            return self._source[index]
        original = self._source[int(self.originals[copy])]
        return {
            **original,
            "image": self._images[copy],
            "captions": self._captions[copy],
            "name": f"{original['name']} in {self._captions[copy][0]!r}",
        }

    def identity(self) -> Iterator[str]:
        """Lines that tell these records from others: see `fingerprint.Identified`."""
        if isinstance(self._source, Identified):
            yield from self._source.identity()
        pairs = zip(self.originals, self._captions, strict=True)
        yield from (f"{original} {captions}" for original, captions in pairs)


def _copies(
    record: Record, copies: int, kept: tuple[str, ...]
) -> Iterator[tuple[np.ndarray, tuple[str, ...]]]:
    """Up to `copies` pictures of a record in other colours, each with its captions."""
    entry = _entries().get(record["name"].split(" ")[0])
    if entry is None or not _may_change(entry, kept):
        return
    painter = Painter(record["image"])
    usual = painter.colour
    naming = [text for text in record["captions"] if usual in text.split()]
    found = ((colour, painter.painted(colour)) for colour in _in_order(record["name"]))
    made = ((colour, image) for colour, image in found if image is not None)
    for colour, image in itertools.islice(made, copies) if naming else ():
        yield image, tuple(_renamed(text, usual, colour) for text in naming)


def _may_change(entry: EmojiEntry, kept: tuple[str, ...]) -> bool:
    words = {word for name in entry.names for word in name.split()}
    free = entry.category not in AS_THEY_ARE and not words & set(COLOURS)
    return free and not set(entry.names) & set(kept)


def _in_order(name: str) -> list[str]:
    """The paints in an order of the record's own, the same everywhere."""
    digest = lambda colour: hashlib.sha256(f"{name} {colour}".encode()).digest()
    return sorted(PAINTS, key=digest)


def _renamed(caption: str, before: str, after: str) -> str:
    return " ".join(after if word == before else word for word in caption.split(" "))


@functools.cache
def _entries() -> dict[str, EmojiEntry]:
    return {entry.codepoints: entry for entry in read_emoji_entries()}
