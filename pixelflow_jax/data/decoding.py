"""Image files to pixels: which formats are opened, and one rule for each kind of pixel.

docs/images.md has the rules as a table. Only the formats named here reach Pillow,
whatever a file is called: its readers of PostScript and the like run other programs.
"""

import io
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from PIL import Image

from pixelflow_jax.data import jpeg
from pixelflow_jax.values import Range

# The suffixes that are read, and the formats that a file of any such name may have.
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif"),
    *(".bmp", ".dib", ".gif", ".tif", ".tiff", ".jp2", ".j2k"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
FORMATS = (
    *("PNG", "JPEG", "WEBP", "AVIF", "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "PPM"),
)
# Images, too, but not read: they are counted and named where they lie among others.
OTHER_SUFFIXES = frozenset(
    ".heic .heif .hif .jxl .ico .cur .icns .tga .psd .psb .svg .svgz .eps .ps .pdf "
    ".exr .hdr .pfm .pam .qoi .pcx .sgi .rgb .dds .xbm .xpm .wmf .emf .fits .fit .jpx "
    ".jpf .jpc .jxr .wdp .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf .mpo .flif "
    ".bpg .dcm .mp4 .webm .mov .avi .mkv".split()
)
MAX_PIXELS = 110_000_000  # a camera of 100 megapixels has 102; some 8 bytes each
# How much more memory than others some take for a pixel while they are decoded.
WEIGHTS = {"TIFF": 1.15, "AVIF": 1.5, "WEBP": 2.25, "JPEG2000": 2.5}
PROGRESSIVE_JPEG = 1.4
PILLOW_MAX = 178_956_970  # where Pillow itself refuses
PixelLimit = Annotated[int, Range(low=1, high=PILLOW_MAX)]
MAX_FILE_BYTES = 400_000_000  # of one image
BAND = 2**22  # pixels converted at once: large images would take several copies
ORIENTATION = 0x0112
WHITE = 255
GREY16 = ("I;16", "I;16B", "I;16L", "I;16N")
GREY_WITHOUT_WHITE = {"I": "have 32 bits or a sign", "F": "are floats"}
ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
BITS, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF: two tags and a value

# Our own limit decides, and a damaged note of a camera is no damage: Pillow's warnings
# would only confuse, one for each image and process.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Convert = Callable[[Image.Image], np.ndarray]


class UnfitImage(ValueError):
    """An image that could be decoded, but that no rule takes; says which and why."""


def decode(encoded: bytes, max_pixels: int) -> np.ndarray:
    """The pixels of an image file, upright and over white; uint8 [h, w, 3].

    Of an animation the first frame. Raises UnfitImage for more than `max_pixels`, which
    the header says before anything is decoded, and for kinds of pixels without a rule;
    damage raises whatever Pillow raises.
    """
    plain = jpeg.decode(encoded, int(max_pixels / PROGRESSIVE_JPEG))
    if plain is not None:
        return plain
    pixels, orientation = _decoded(encoded, max_pixels)
    return np.ascontiguousarray(_upright(pixels, orientation))


def _decoded(encoded: bytes, max_pixels: int) -> tuple[np.ndarray, int]:
    """Pixels as they are stored, and their orientation; Pillow's own copy is gone."""
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            check_pixels(image, max_pixels)
            image.load()
            return _by_bands(image, _conversion(image)), _orientation(image)
    except Image.DecompressionBombError as error:
        raise UnfitImage(_too_large(f"more than {PILLOW_MAX:,}", max_pixels)) from error


def image_size(encoded: bytes) -> tuple[int, int]:
    """Height and width as the header says them, before any turning.

    Raises whatever Pillow raises where there is none.
    """
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
        return image.height, image.width


def check_pixels(image: Image.Image, max_pixels: int) -> None:
    """Raises UnfitImage where an image, opened and not decoded, has too many pixels.

    They are weighed by the memory that a format takes for them.
    """
    weight = WEIGHTS.get(image.format or "", 1.0)
    if image.info.get("progressive"):  # JPEG alone has that
        weight = PROGRESSIVE_JPEG
    pixels = image.width * image.height
    if pixels * weight > max_pixels:
        said = f"{image.width} x {image.height} = {pixels:,}"
        if weight != 1:
            said = f"{said} (of this format, each counts {weight} times)"
        raise UnfitImage(_too_large(said, max_pixels))


def _too_large(said: str, max_pixels: int) -> str:
    return f"its pixels are {said}, above max_pixels={max_pixels:,}"


def _by_bands(image: Image.Image, convert: Convert) -> np.ndarray:
    """All rules are pixel by pixel, so a large image is converted part by part."""
    width, height = image.size
    rows = max(1, BAND // width)
    if rows >= height:
        return convert(image)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = convert(image.crop((0, top, width, bottom)))
    return pixels


def _conversion(image: Image.Image) -> Convert:
    """The rule for an image's kind of pixels."""
    if image.mode in GREY16:
        return _grey16(image)
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # both hold 16 bits
        return _grey16(image)
    if image.mode in GREY_WITHOUT_WHITE:
        raise UnfitImage(
            f"its grey values {GREY_WITHOUT_WHITE[image.mode]}, and nothing says which "
            "of them is white: convert it to 8 or 16 bits"
        )
    if image.mode in ALPHA or "transparency" in image.info:
        return _over_white
    if image.mode == "RGB":
        return np.asarray
    return lambda part: np.asarray(part.convert("RGB"))


def _over_white(image: Image.Image) -> np.ndarray:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (WHITE,) * 4)
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def _grey16(image: Image.Image) -> Convert:
    """Scales 16 bits, which Pillow would clip at 255; a transparent value is white."""
    white, inverted = _tiff_range(image)
    transparent = image.info.get("transparency")

    def convert(part: Image.Image) -> np.ndarray:
        values = np.asarray(part).astype(np.float32)
        if inverted:
            values = white - values
        grey = np.clip(values / (white / WHITE) + 0.5, 0, WHITE).astype(np.uint8)
        if isinstance(transparent, int):
            grey[np.asarray(part) == transparent] = WHITE
        return np.repeat(grey[..., None], 3, axis=-1)

    return convert


def _tiff_range(image: Image.Image) -> tuple[float, bool]:
    """The value of white, and whether zero is white instead, of 16-bit grey."""
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(BITS, (16,))[0]
    return float(2**bits - 1), tags.get(PHOTOMETRIC) == WHITE_IS_ZERO


def _orientation(image: Image.Image) -> int:
    """How a camera was held, 1 to 8; a damaged note of it counts as upright."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow reports damage through many types
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors [h, w, 3] as EXIF orientations 2 to 8 ask for."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
