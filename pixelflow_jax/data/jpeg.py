"""Plain JPEG files, decoded by libjpeg-turbo without what Pillow does around it.

simplejpeg hands a file to the same library with the same settings and gets an array
back. What is out of the ordinary is left to Pillow, and so is all, where simplejpeg
cannot be imported or one pixel of a few samples differs from Pillow's.
"""

import functools
import io
import logging

import numpy as np
from PIL import Image, features

try:
    from simplejpeg import decode_jpeg
except ImportError:  # a platform that its wheels leave out
    decode_jpeg = None

LOG = logging.getLogger(__name__)
START, JFIF, ICC = b"\xff\xd8", b"JFIF\0", b"ICC_PROFILE\0"
APP0, APP1, APP2, APP14, SCAN = 0xE0, 0xE1, 0xE2, 0xEE, 0xDA
FRAMES = range(0xC0, 0xC3)  # baseline, extended, progressive
OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {
    0xC4,
    0xC8,
    0xCC,
}  # lossless and the like
SAMPLE = (43, 37)  # height and width: no multiples of a block


def decode(encoded: bytes, max_pixels: int) -> np.ndarray | None:
    """The pixels as Pillow would give them, uint8 [h, w, 3]; None: ask Pillow.

    None for other kinds of files, for damaged ones, and for more than `max_pixels`.
    """
    if decode_jpeg is None or not is_plain(encoded, max_pixels):
        return None
    if not same_as_pillow():
        return None
    try:
        return decode_jpeg(encoded, "RGB", strict=True)
    except ValueError:  # damage, which Pillow names or passes over
        return None


def is_plain(encoded: bytes, max_pixels: int) -> bool:
    """Whether a file is a JPEG of grey or YCbCr pixels that nothing says to turn.

    It has a JFIF header, and no notes of a camera or of Adobe's programs.
    """
    if encoded[:2] != START:
        return False
    place, jfif, sized = 2, False, False
    while place + 10 <= len(encoded) and encoded[place] == 0xFF:
        marker = encoded[place + 1]
        if marker == SCAN:
            return jfif and sized
        jfif |= marker == APP0 and encoded.startswith(JFIF, place + 4)
        foreign = marker == APP2 and not encoded.startswith(ICC, place + 4)
        if foreign or marker in (APP1, APP14) or marker in OTHER_FRAMES:
            return False
        if marker in FRAMES:
            bits, high, low, wide, narrow, parts = encoded[place + 4 : place + 10]
            pixels = (high << 8 | low) * (wide << 8 | narrow)
            sized = bits == 8 and parts in (1, 3) and 0 < pixels <= max_pixels
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return False


@functools.cache
def same_as_pillow() -> bool:
    """Whether both give the same pixels, of all samplings, large and small steps.

    A Pillow that is built with another library than libjpeg-turbo does not.
    """
    assert decode_jpeg is not None
    rows, columns = np.mgrid[: SAMPLE[0], : SAMPLE[1]]
    noise = np.random.default_rng(0).integers(0, 256, (*SAMPLE, 3))
    smooth = np.stack([rows * 5, columns * 6, rows + columns], -1)
    for pixels in (noise, smooth % 256):
        for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
            for options in ({"quality": 95}, {"quality": 30, "progressive": True}):
                file = io.BytesIO()
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(file, "JPEG", subsampling=subsampling, **options)
                found = decode_jpeg(file.getvalue(), "RGB", strict=True)
                if not np.array_equal(found, np.asarray(Image.open(file))):
                    LOG.warning(
                        "simplejpeg decodes other pixels than Pillow (libjpeg-turbo "
                        "%s): Pillow is used.",
                        features.version("libjpeg_turbo"),
                    )
                    return False
    return True
