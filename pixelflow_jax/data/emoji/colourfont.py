"""Draws any glyph of a colour font by its number, with Pillow alone.

Emoji such as flags and families are ligatures of several code points. Pillow forms
ligatures only where the system's FriBidi library is installed, and silently draws the
parts side by side where it is not. So the two tables that matter are read here, and
the font is handed to Pillow with a character map of one line: glyph number g is the
private-use character U+F0000 + g. The pictures are then the same on every machine.
"""

import io
import struct
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pixelflow_jax.errors import DataError

PRIVATE_USE = 0xF0000
VARIATION_SELECTOR = 0xFE0F


class ColourFont:
    """A TrueType colour font addressed by sequences of code points.

    `path` is a .ttf file with a format 12 `cmap` and ligatures in `GSUB`. Raises
    DataError where the file has no such tables.
    """

    def __init__(self, path: str | Path):
        self._bytes = Path(path).read_bytes()
        try:
            self._tables = _table_directory(self._bytes)
            self._characters = _read_cmap(self._bytes, self._tables[b"cmap"][1])
            self._ligatures = _read_ligatures(self._bytes, self._tables[b"GSUB"][1])
        except (KeyError, struct.error) as error:
            raise DataError(
                f"{path} is not a font this reader knows (a TrueType file with a "
                f"format 12 cmap and GSUB ligatures): {error!r}. Reinstall the "
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
        count = struct.unpack_from(">H", self._bytes, self._tables[b"maxp"][1] + 4)[0]
        file = io.BytesIO(_with_private_cmap(self._bytes, self._tables, count))
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


def _table_directory(data: bytes) -> dict[bytes, tuple[int, int, int]]:
    """tag -> (position of the directory entry, offset, length)."""
    count = struct.unpack_from(">H", data, 4)[0]
    tables = {}
    for entry in range(12, 12 + 16 * count, 16):
        tag, _, offset, length = struct.unpack_from(">4sLLL", data, entry)
        tables[tag] = (entry, offset, length)
    return tables


def _read_cmap(data: bytes, cmap: int) -> dict[int, int]:
    """Code point -> glyph, from the format 12 sub-table."""
    count = struct.unpack_from(">H", data, cmap + 2)[0]
    for record in range(cmap + 4, cmap + 4 + 8 * count, 8):
        offset = cmap + struct.unpack_from(">L", data, record + 4)[0]
        if struct.unpack_from(">H", data, offset)[0] == 12:
            break
    else:
        raise KeyError("cmap format 12")
    characters = {}
    groups = struct.unpack_from(">L", data, offset + 12)[0]
    for group in range(offset + 16, offset + 16 + 12 * groups, 12):
        first, last, glyph = struct.unpack_from(">LLL", data, group)
        characters.update((c, glyph + c - first) for c in range(first, last + 1))
    return characters


def _read_ligatures(data: bytes, gsub: int) -> dict[tuple[int, ...], int]:
    """Glyph sequence -> ligature, from every lookup of type 4."""
    lookups = gsub + struct.unpack_from(">H", data, gsub + 8)[0]
    ligatures: dict[tuple[int, ...], int] = {}
    for lookup in _offsets(data, lookups, lookups):
        if struct.unpack_from(">H", data, lookup)[0] != 4:
            continue
        for table in _offsets(data, lookup + 4, lookup):
            coverage = table + struct.unpack_from(">H", data, table + 2)[0]
            firsts = _read_coverage(data, coverage)
            sets = _offsets(data, table + 4, table)
            for first, ligature_set in zip(firsts, sets, strict=True):
                for ligature in _offsets(data, ligature_set, ligature_set):
                    glyph, count = struct.unpack_from(">HH", data, ligature)
                    rest = struct.unpack_from(f">{count - 1}H", data, ligature + 4)
                    ligatures[(first, *rest)] = glyph
    return ligatures


def _read_coverage(data: bytes, table: int) -> list[int]:
    kind, count = struct.unpack_from(">HH", data, table)
    if kind == 1:
        return list(struct.unpack_from(f">{count}H", data, table + 4))
    glyphs: list[int] = []
    for record in range(table + 4, table + 4 + 6 * count, 6):
        first, last = struct.unpack_from(">HH", data, record)
        glyphs.extend(range(first, last + 1))
    return glyphs


def _offsets(data: bytes, position: int, base: int) -> list[int]:
    """A 16-bit count and as many 16-bit offsets, made absolute."""
    count = struct.unpack_from(">H", data, position)[0]
    return [base + o for o in struct.unpack_from(f">{count}H", data, position + 2)]


def _with_private_cmap(data: bytes, tables: dict, glyphs: int) -> bytes:
    """The same font with a cmap of one group: U+F0000 + g -> g."""
    last = PRIVATE_USE + glyphs - 1
    group = struct.pack(">LLL", PRIVATE_USE, last, 0)
    subtable = struct.pack(">HHLLL", 12, 0, 28, 0, 1) + group
    cmap = struct.pack(">HHHHL", 0, 1, 3, 10, 12) + subtable
    aligned = data + b"\0" * (-len(data) % 4)
    entry = tables[b"cmap"][0]
    directory = struct.pack(">4sLLL", b"cmap", 0, len(aligned), len(cmap))
    return aligned[:entry] + directory + aligned[entry + 16 :] + cmap
