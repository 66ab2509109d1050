"""Draws any glyph of a colour font by its number, with Pillow.

Emoji such as flags and families are ligatures of several code points. Pillow forms
ligatures only where the system's FriBidi library is installed, and silently draws the
parts side by side where it is not. So fontTools reads the two tables that matter, and
the font is handed to Pillow with a character map of its own: glyph number g is the
private-use character U+F0000 + g. The pictures are then the same on every machine.
"""

import io
from collections.abc import Iterator
from pathlib import Path

from fontTools.ttLib import TTFont, newTable
from fontTools.ttLib.tables._c_m_a_p import CmapSubtable
from PIL import Image, ImageDraw, ImageFont

from pixelflow_jax.errors import DataError

PRIVATE_USE = 0xF0000
VARIATION_SELECTOR = 0xFE0F
LIGATURES = 4  # the type of such a lookup in GSUB


class ColourFont:
    """A TrueType colour font addressed by sequences of code points.

    `path` is a .ttf file with a Unicode `cmap` and ligatures in `GSUB`. Raises
    DataError where the file has no such tables.
    """

    def __init__(self, path: str | Path):
        content = Path(path).read_bytes()
        try:
            font = _open(content)
            names = font.getBestCmap()
            if not names:
                raise KeyError("cmap")
            self._characters = {c: font.getGlyphID(name) for c, name in names.items()}
            self._ligatures = dict(_ligatures(font))
            self._content = _with_private_cmap(content)
        except Exception as error:  # fontTools reports damage through many types
            raise DataError(
                f"{path} is not a font this reader knows (a TrueType file with a "
                f"Unicode cmap and GSUB ligatures): {error!r}. Reinstall the "
                "package that ships it."
            ) from error

    def glyph(self, codepoints: tuple[int, ...]) -> int | None:
        """The number of the one glyph that draws the sequence, None without one."""
        bare = tuple(c for c in codepoints if c != VARIATION_SELECTOR)
        for sequence in (codepoints, bare):
            glyphs = tuple(self._characters.get(c, 0) for c in sequence)
            if all(glyphs):
                single = glyphs[0] if len(glyphs) == 1 else self._ligatures.get(glyphs)
                if single:
                    return single
        return None

    def at_size(self, pixels: int) -> ImageFont.FreeTypeFont:
        """The font for Pillow, at an em size in pixels."""
        file = io.BytesIO(self._content)
        return ImageFont.truetype(file, pixels, layout_engine=ImageFont.Layout.BASIC)


def draw_glyph(font: ImageFont.FreeTypeFont, glyph: int, side: int) -> Image.Image:
    """Draws a glyph in the middle of a white square; RGB [side, side]."""
    canvas = Image.new("RGB", (side, side), (255, 255, 255))
    ImageDraw.Draw(canvas).text(
        (side / 2, side / 2),
        chr(PRIVATE_USE + glyph),
        font=font,
        anchor="mm",
        embedded_color=True,
    )
    return canvas


def _open(content: bytes) -> TTFont:
    """The font, with glyphs named by their numbers; tables are read when asked for."""
    font = TTFont(io.BytesIO(content), lazy=True)
    font.setGlyphOrder([f"glyph{n:05d}" for n in range(font["maxp"].numGlyphs)])
    return font


def _ligatures(font: TTFont) -> Iterator[tuple[tuple[int, ...], int]]:
    """Every sequence of glyphs that the font draws as one, and that one."""
    number = font.getGlyphID
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable if lookup.LookupType == LIGATURES else ():
            for first, ligatures in table.ligatures.items():
                for ligature in ligatures:
                    sequence = tuple(map(number, (first, *ligature.Component)))
                    yield sequence, number(ligature.LigGlyph)


def _with_private_cmap(content: bytes) -> bytes:
    """The same font with another cmap: U+F0000 + g -> g."""
    font = _open(content)
    characters = CmapSubtable.newSubtable(12)
    characters.platformID, characters.platEncID, characters.language = 3, 10, 0
    characters.cmap = dict(enumerate(font.getGlyphOrder(), PRIVATE_USE))
    font["cmap"] = newTable("cmap")
    font["cmap"].tableVersion, font["cmap"].tables = 0, [characters]
    file = io.BytesIO()
    font.save(file)
    return file.getvalue()
