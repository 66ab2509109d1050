"""The word for the colour that most of a drawing has."""

import numpy as np

# Hues in degrees up to which each word reaches; past the last one it is red again.
HUES = ((15, "red"), (42, "orange"), (66, "yellow"), (170, "green"), (255, "blue"))
HUES += ((320, "purple"), (345, "pink"))
GREYS = ("black", "grey", "white")
COLOURS = (*(word for _, word in HUES), "brown", *GREYS)

FILL = 0.25  # share of the ink that the filled part must have to count at all
MOST = 0.5  # share of the filled part that one colour must cover
SOLID = 0.5  # share of its box that black must cover to be a colour, not an outline


def main_colour(image: np.ndarray) -> str:
    """The one colour that covers most of a drawing on white, or "".

    `image` is uint8 [h, w, 3]. Ink is whatever is not white. Pixels of one colour with
    their four neighbours are inside an area, others lie on an edge. The filled part are
    the pixels inside areas that are neither white nor black. Where that is at least
    FILL of the ink, its commonest colour counts if it covers MOST of it and of the
    white with ink on all four sides, which is part of the drawing; else black counts
    where it covers SOLID of the box around the ink.
    """
    words = colour_words(image.astype(np.float32) / 255)
    white, black = COLOURS.index("white"), COLOURS.index("black")
    ink = words != white
    if not ink.any():
        return ""
    around = np.pad(words, 1, constant_values=white)
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2])
    inside = np.all([words == n for n in (*neighbours, around[1:-1, 2:])], 0)
    filled = words[inside & ink & (words != black)]
    if len(filled) >= FILL * ink.sum():
        counts = np.bincount(filled, minlength=len(COLOURS))
        whole = len(filled) + (_surrounded(ink) & ~ink).sum()
        return COLOURS[counts.argmax()] if counts.max() >= MOST * whole else ""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return "black" if (words == black).sum() >= SOLID * box else ""


def _surrounded(ink: np.ndarray) -> np.ndarray:
    """Where there is ink to the left and right, above and below; bool [h, w]."""
    reach = np.logical_or.accumulate
    between = reach(ink, 1) & reach(ink[:, ::-1], 1)[:, ::-1]
    return between & reach(ink, 0) & reach(ink[::-1], 0)[::-1]


def hue_saturation_value(image: np.ndarray) -> tuple[np.ndarray, ...]:
    """Hue in degrees, 0 to 360, saturation and value in [0, 1], each [h, w].

    `image` is [h, w, 3] in [0, 1]. A grey has hue 0 and saturation 0.
    """
    high, low = image.max(-1), image.min(-1)
    spread = high - low
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = np.moveaxis(image, -1, 0)
    sextant = np.select(
        [high == red, high == green],
        [(green - blue) / safe % 6, (blue - red) / safe + 2],
        (red - green) / safe + 4,
    )
    return 60 * sextant, spread / np.where(high > 0, high, 1), high


def colour_words(image: np.ndarray) -> np.ndarray:
    """The number in COLOURS of each pixel's colour, [h, w]; values in [0, 1]."""
    hue, saturation, high = hue_saturation_value(image)
    number = np.searchsorted([limit for limit, _ in HUES], hue, side="right")
    number = number % len(HUES)  # beyond the last limit: the first word
    # Dark orange is called brown and pale red pink.
    warm = (hue >= 8) & (hue < 50)
    number = np.where(warm & (high < 0.72), COLOURS.index("brown"), number)
    rosy = (hue < 15) | (hue >= 320)
    pale = rosy & (saturation < 0.55) & (high > 0.75)
    number = np.where(pale, COLOURS.index("pink"), number)
    grey = np.select(
        [high < 0.3, high >= 0.93],
        [COLOURS.index("black"), COLOURS.index("white")],
        COLOURS.index("grey"),
    )
    return np.where((saturation < 0.15) | (high < 0.3), grey, number)


def coloured(names: tuple[str, ...], colour: str) -> tuple[str, ...]:
    """Captions for a drawing called `names` whose main colour is `colour` ("": none).

    A name without a colour word is there as it is and with `colour` before it. A name
    whose colour words do not hold (Unicode says black for filled, white for outlined)
    loses them first; without a main colour names stay as they are.
    """
    captions: list[str] = []
    for name in names:
        words = name.split()
        named = [word for word in words if word in COLOURS]
        if not colour or colour in named:
            captions.append(name)
            continue
        bare = " ".join(word for word in words if word not in COLOURS)
        captions += [bare, f"{colour} {bare}"] if bare else [colour]
    return tuple(dict.fromkeys(captions))
