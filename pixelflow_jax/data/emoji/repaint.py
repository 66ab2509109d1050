"""Paints a drawing in another colour, so that its main colour is that one's word."""

import numpy as np

from pixelflow_jax.data.emoji.colours import (
    COLOURS,
    colour_words,
    hue_saturation_value,
    main_colour,
)

# One RGB for each word that a drawing can be painted with; white is the paper's.
PAINTS = {
    "red": (222, 48, 42),
    "orange": (241, 143, 38),
    "yellow": (250, 222, 50),
    "green": (92, 168, 56),
    "blue": (38, 110, 222),
    "purple": (128, 62, 178),
    "pink": (250, 156, 186),
    "brown": (130, 76, 36),
    "black": (42, 42, 42),
    "grey": (150, 150, 150),
}
NEAR = 28  # degrees of hue around the main colour that are its shades
TINTED = 0.12  # saturation from which a pixel has a hue
SPREAD = 0.5  # how much of the shades' differences in hue is kept
PALEST = 0.85  # a paler grey is too near to white to be told from it


class Painter:
    """Paints one drawing, uint8 [h, w, 3] on white, in other colours.

    `colour` is its main colour, "" where there is none to paint over.
    """

    def __init__(self, image: np.ndarray):
        self.colour = main_colour(image)
        self._pixels = image.astype(np.float32) / 255
        if self.colour:
            words = colour_words(self._pixels)
            self._main = words == COLOURS.index(self.colour)
            self._hsv = hue_saturation_value(self._pixels)

    def painted(self, colour: str) -> np.ndarray | None:
        """The drawing with its main colour painted `colour`; None where that fails.

        `colour` is one of PAINTS. Light and shade are kept: what is darker than the
        main colour stays darker, black stays black and paper white. The result is uint8
        [h, w, 3], and `colours.main_colour` calls it `colour`: a drawing that does not
        come out so, or has that colour already, gives None.
        """
        if self.colour in ("", colour):
            return None
        paint = np.array(PAINTS[colour], np.float32) / 255
        grey = self.colour in ("black", "grey")
        shades = self._greys(paint) if grey else self._hues(paint)
        painted = np.round(255 * shades).astype(np.uint8)
        return painted if main_colour(painted) == colour else None

    def _hues(self, paint: np.ndarray) -> np.ndarray:
        """Every shade of a chromatic main colour moved to the paint, [h, w, 3]."""
        hue, saturation, value = self._hsv
        to_hue, to_saturation, to_value = (
            float(a[0, 0]) for a in hue_saturation_value(paint[None, None])
        )
        centre = _mean_angle(hue[self._main])
        away = (hue - centre + 180) % 360 - 180
        shades = self._main | ((np.abs(away) < NEAR) & (saturation > TINTED))
        kept = SPREAD * np.clip(away, -NEAR, NEAR)
        usual = float(np.median(saturation[self._main]))
        ratio = to_value / float(np.median(value[self._main]))
        # Paler shades lie nearer to white, which keeps its value.
        full = np.clip(saturation / usual, 0, 1)
        painted = _rgb(
            (to_hue + kept) % 360,
            np.clip(saturation * to_saturation / usual, 0, 1),
            np.clip(value * (full * ratio + 1 - full), 0, 1),
        )
        return np.where(shades[..., None], painted, self._pixels)

    def _greys(self, paint: np.ndarray) -> np.ndarray:
        """Every grey as a shade of the paint, [h, w, 3]."""
        _, saturation, value = self._hsv
        centre = min(float(np.median(value[self._main])), PALEST)
        painted = np.stack([_tone(value, centre, float(c)) for c in paint], -1)
        greys = self._main | (saturation <= TINTED)
        return np.where(greys[..., None], painted, self._pixels)


def _tone(value: np.ndarray, centre: float, goal: float) -> np.ndarray:
    """Values in [0, 1] bent so that `centre` becomes `goal`, and 0 and 1 stay."""
    below = value * goal / max(centre, np.finfo(np.float32).tiny)
    above = 1 - (1 - value) * (1 - goal) / (1 - centre)
    return np.clip(np.where(value < centre, below, above), 0, 1)


def _mean_angle(degrees: np.ndarray) -> float:
    """The mean direction of angles."""
    return float(np.degrees(np.angle(np.exp(1j * np.radians(degrees)).mean())) % 360)


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """[h, w, 3] in [0, 1] of hue in degrees, saturation and value."""
    offsets = (hue[..., None] / 60 + np.array([5, 3, 1])) % 6
    ramp = np.clip(np.minimum(offsets, 4 - offsets), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)
