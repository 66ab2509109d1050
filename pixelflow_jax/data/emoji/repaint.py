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
SOFTEST = 1e-3  # keeps ratios finite


def repaint(image: np.ndarray, colour: str) -> np.ndarray | None:
    """The drawing with its main colour painted `colour`; None where that fails.

    `image` is uint8 [h, w, 3] on white, `colour` one of PAINTS. Light and shade are
    kept: what is darker than the main colour stays darker, black stays black and paper
    white. The result is uint8 [h, w, 3], and `colours.main_colour` calls it `colour`:
    a drawing that does not come out so, or has no main colour, or has that one, gives
    None.
    """
    before = main_colour(image)
    if not before or before == colour:
        return None
    pixels = image.astype(np.float32) / 255
    main = colour_words(pixels) == COLOURS.index(before)
    paint = np.array(PAINTS[colour], np.float32) / 255
    shades = _greys_painted if before in ("black", "grey") else _hues_painted
    painted = np.round(255 * shades(pixels, main, paint)).astype(np.uint8)
    return painted if main_colour(painted) == colour else None


def _hues_painted(
    pixels: np.ndarray, main: np.ndarray, paint: np.ndarray
) -> np.ndarray:
    """Every shade of a chromatic main colour moved to the paint, [h, w, 3]."""
    hue, saturation, value = hue_saturation_value(pixels)
    to_hue, to_saturation, to_value = (
        float(a[0, 0]) for a in hue_saturation_value(paint[None, None])
    )
    centre = _mean_angle(hue[main])
    away = (hue - centre + 180) % 360 - 180
    shades = main | ((np.abs(away) < NEAR) & (saturation > TINTED))
    kept = SPREAD * np.clip(away, -NEAR, NEAR)
    strength = to_saturation / max(float(np.median(saturation[main])), SOFTEST)
    painted = _rgb(
        (to_hue + kept) % 360,
        np.clip(saturation * strength, 0, 1),
        _tone(value, float(np.median(value[main])), to_value),
    )
    return np.where(shades[..., None], painted, pixels)


def _greys_painted(
    pixels: np.ndarray, main: np.ndarray, paint: np.ndarray
) -> np.ndarray:
    """Every grey as a shade of the paint, [h, w, 3]."""
    _, saturation, value = hue_saturation_value(pixels)
    centre = float(np.median(value[main]))
    painted = np.stack([_tone(value, centre, float(c)) for c in paint], -1)
    greys = main | (saturation <= TINTED)
    return np.where(greys[..., None], painted, pixels)


def _tone(value: np.ndarray, centre: float, goal: float) -> np.ndarray:
    """Values in [0, 1] bent so that `centre` becomes `goal`, and 0 and 1 stay."""
    below = value * goal / max(centre, SOFTEST)
    above = 1 - (1 - value) * (1 - goal) / max(1 - centre, SOFTEST)
    return np.clip(np.where(value <= centre, below, above), 0, 1)


def _mean_angle(degrees: np.ndarray) -> float:
    """The mean direction of angles."""
    return float(np.degrees(np.angle(np.exp(1j * np.radians(degrees)).mean())) % 360)


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """[h, w, 3] in [0, 1] of hue in degrees, saturation and value."""
    offsets = (hue[..., None] / 60 + np.array([5, 3, 1])) % 6
    ramp = np.clip(np.minimum(offsets, 4 - offsets), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * ramp)
