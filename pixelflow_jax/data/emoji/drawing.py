"""Emoji of any package drawn on white."""

import io
import types

import numpy as np
from PIL import Image

from pixelflow_jax.errors import DataError, UnreadableImage

INSTALL = "pip install 'pixelflow_jax[svg]'"
PAPER = (255, 255, 255)


def draw_svg(content: bytes, size: int, name: str) -> np.ndarray:
    """An SVG file on white, uint8 [size, size, 3]; see `check_renderer`.

    Raises UnreadableImage, which calls the picture `name`.
    """
    try:
        drawn = check_renderer().svg_to_bytes(
            svg_string=content.decode(), width=size, height=size, skip_system_fonts=True
        )
    except (ValueError, RuntimeError) as error:
        raise UnreadableImage(
            f"{name} cannot be drawn ({error}): fetch its package again."
        ) from error
    return on_white(drawn, name)


def check_renderer() -> types.ModuleType:
    """The module that draws SVG; DataError where it is not installed."""
    try:
        import resvg_py
    except ModuleNotFoundError as error:
        raise DataError(
            "Drawing SVG needs the package resvg-py, which is not installed: "
            f"{INSTALL}. Styles without SVG (openmoji, fluent, and noto from "
            "emoji-datasource-google) do not need it: --styles chooses."
        ) from error
    return resvg_py


def on_white(content: bytes, name: str) -> np.ndarray:
    """A picture file, with its transparency laid on white, in a square of its own.

    uint8 [side, side, 3], side being the longer one. Raises UnreadableImage.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            picture = file.convert("RGBA")
    except Exception as error:  # Pillow reports damage through many types
        raise UnreadableImage(
            f"{name} cannot be decoded ({error}): fetch its package again."
        ) from error
    side = max(picture.size)
    paper = Image.new("RGBA", (side, side), (*PAPER, 255))
    corner = ((side - picture.width) // 2, (side - picture.height) // 2)
    paper.alpha_composite(picture, corner)
    return np.asarray(paper.convert("RGB"))
