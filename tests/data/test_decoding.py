"""Every kind of image file has one rule: the rows of docs/images.md."""

import io
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pixelflow_jax.data import decoding
from pixelflow_jax.data.decoding import FORMATS, SUFFIXES, WEIGHTS, decode
from pixelflow_jax.data.source import decode_image
from pixelflow_jax.data.transforms import center_crop, resize_short_side
from pixelflow_jax.errors import UnreadableImage

RED = (255, 0, 0)
GREY = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def chunk(kind, data):
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png(depth, colour, row, *extra):
    """A PNG of four equal rows, of any depth and colour type."""
    width = {1: 8, 2: 4, 4: 4, 8: 4, 16: 4}[depth]
    header = struct.pack(">IIBBBBB", width, 4, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * 4)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(extra) + pixels


def clear(*values):
    """The chunk that makes one colour of a PNG transparent."""
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def tiff(bits, photometric, data):
    """A grey TIFF of 4 x 4 pixels, little endian."""
    rows = [(256, 4), (257, 4), (258, bits), (259, 1), (262, photometric), (273, 8)]
    tags = [*rows, (277, 1), (278, 4), (279, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
    end = struct.pack("<I", 8 + len(data))
    return b"II*\0" + end + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def animated(format, **options):
    first, second = (Image.new("RGB", (8, 8), c) for c in (RED, (0, 255, 0)))
    return encoded(first, format, save_all=True, append_images=[second], **options)


def as_lab(colour):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = Image.new("RGB", (8, 8), colour)
    changed = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
    assert changed is not None
    return changed


def with_profile():
    """Pure green in a colour space that is wider than ours: the values are kept."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encoded(Image.new("RGB", (4, 4), (0, 200, 0)), icc_profile=profile)


WHITE, BLACK = 255, 0
CLEAR = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
CLEAR_PALETTE = Image.new("P", (4, 4))
CLEAR_PALETTE.putpalette([0, 0, 0, 255, 0, 0])
PIXELS = [
    ("jpeg", encoded(Image.new("RGB", (16, 16), RED), "JPEG", quality=100), RED),
    ("jpeg, grey", encoded(Image.new("L", (16, 16), 77), "JPEG"), 77),
    ("jpeg, cmyk", encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), RED),
    ("tiff, cmyk", encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), RED),
    ("tiff, lab", encoded(as_lab(RED), "TIFF"), RED),
    ("png, a profile", with_profile(), (0, 200, 0)),
    ("png, 1 bit", png(1, 0, b"\xff"), WHITE),
    ("png, 2 bits", png(2, 0, b"\x55"), 85),
    ("png, 4 bits", png(4, 0, b"\x88\x88"), 136),
    ("png, 16 bits", png(16, 0, struct.pack(">4H", *[0x8000] * 4)), 128),
    (
        "png, 16 bits of rgb",
        png(16, 2, struct.pack(">6H", 65535, 0, 0, 65535, 0, 0) * 2),
    ),
    ("png, 16 bits, clear", png(16, 0, bytes(8), clear(0)), WHITE),
    ("png, 16 bits, other clear", png(16, 0, bytes(8), clear(9)), BLACK),
    ("png, 8 bits, clear", png(8, 0, bytes(4), clear(0)), WHITE),
    ("png, rgb, clear", png(8, 2, bytes(12), clear(0, 0, 0)), WHITE),
    ("png, 1 bit, clear", png(1, 0, b"\0", clear(0)), WHITE),
    ("png, alpha", encoded(CLEAR), WHITE),
    ("png, grey and alpha", encoded(Image.new("LA", (4, 4), (0, 0))), WHITE),
    ("png, half alpha", encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))), 127),
    ("png, palette, clear", encoded(CLEAR_PALETTE, transparency=0), WHITE),
    ("gif, clear", encoded(CLEAR_PALETTE, "GIF", transparency=0), WHITE),
    ("webp, alpha", encoded(CLEAR, "WEBP", lossless=True), WHITE),
    ("tiff, alpha", encoded(CLEAR, "TIFF"), WHITE),
    ("tiff, 12 bits", tiff(12, 1, b"\xff" * 24), WHITE),
    ("tiff, 16 bits", tiff(16, 1, b"\xff" * 32), WHITE),
    ("tiff, 16 bits, white is 0", tiff(16, 0, bytes(32)), WHITE),
    ("tiff, 8 bits, white is 0", tiff(8, 0, bytes(16)), WHITE),
    ("pgm, 10 bits", b"P5 4 4 1023\n" + struct.pack(">16H", *[1023] * 16), WHITE),
    ("pgm, 16 bits", b"P5 4 4 65535\n" + struct.pack(">16H", *[32896] * 16), 128),
    ("ppm, 16 bits", b"P6 4 4 65535\n" + struct.pack(">3H", 65535, 0, 0) * 16, RED),
    ("pbm", b"P1 2 2\n0 0 0 0\n", WHITE),
    ("bmp", encoded(Image.new("RGB", (4, 4), RED), "BMP"), RED),
    ("dib", encoded(Image.new("RGB", (4, 4), RED), "DIB"), RED),
    ("jpeg 2000", encoded(Image.new("RGB", (32, 32), RED), "JPEG2000"), RED),
    ("gif, animated", animated("GIF"), RED),
    ("webp, animated", animated("WEBP", lossless=True), RED),
    ("png, animated", animated("PNG"), RED),
    ("tiff, pages", animated("TIFF"), RED),
]


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        pytest.param(*row[1:], *([RED] if len(row) == 2 else []), id=row[0])
        for row in PIXELS
    ],
)
def test_pixels_are_what_the_rule_says(content, colour):
    pixels = decode_image(content, "x")
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    difference = np.abs(pixels.reshape(-1, 3).mean(0) - np.array(colour))
    assert difference.max() <= 6


def test_sixteen_bits_are_scaled_and_not_clipped():
    values = (GREY * 65535).astype(np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values)), "x")
    expected = np.floor(values / 257 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(pixels, np.repeat(expected[..., None], 3, -1))


TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [*TURNS, 0, 9])
def test_images_are_turned_upright(format, orientation):
    upright = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    image, turn = Image.fromarray(upright), TURNS.get(orientation)
    image = image if turn is None else image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    content = encoded(image, format, exif=exif, **options)
    np.testing.assert_array_equal(decode_image(content, "x"), upright)


@pytest.mark.parametrize("junk", [b"", b"II", b"XXXXXXXX", b"MM\0\x2a\0\0\xff\xff"])
def test_a_damaged_note_of_the_camera_is_no_damage(junk):
    content = encoded(Image.new("RGB", (16, 8), RED), "JPEG", exif=b"Exif\0\0" + junk)
    assert decode_image(content, "x").shape == (8, 16, 3)


def test_the_first_frame_of_a_photograph_of_several_is_taken():
    first, second = (Image.new("RGB", (16, 16), c) for c in (RED, (0, 255, 0)))
    content = encoded(first, "MPO", save_all=True, append_images=[second])
    assert decode_image(content, "x")[0, 0, 0] > 240


def test_the_suffix_does_not_matter():
    content = encoded(Image.new("RGB", (4, 4), RED))
    np.testing.assert_array_equal(decode_image(content, "x.JPEG")[0, 0], RED)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_suffixes_are_of_formats_that_are_read(suffix):
    Image.init()
    known = {".j2k": "JPEG2000", ".jfif": "JPEG", ".jpe": "JPEG"}
    assert known.get(suffix, Image.EXTENSION.get(suffix)) in FORMATS


def test_no_program_is_run_for_postscript(tmp_path, monkeypatch):
    trap = tmp_path / "gs"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\necho 10.0\n")
    trap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n"
    with pytest.raises(UnreadableImage, match="x.png cannot be decoded"):
        decode_image(content, "x.png")
    assert not (tmp_path / "was_run").exists()


# Large images


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    """And weighed by the memory that a format takes for them."""
    ten = Image.new("RGB", (10, 10), RED)
    kinds = {
        (format, weight): encoded(ten, format) for format, weight in WEIGHTS.items()
    }
    kinds["JPEG", 1.4] = encoded(ten, "JPEG", progressive=True)
    plain = encoded(ten)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("decoded"))
    with pytest.raises(UnreadableImage, match="10 x 10 = 100, above max_pixels=99"):
        decode_image(plain, "x", max_pixels=99)
    for (_, weight), content in kinds.items():
        with pytest.raises(UnreadableImage, match=f"each counts {weight} times"):
            decode_image(content, "x", max_pixels=int(100 * weight) - 1)


def test_the_limit_lies_above_the_cameras_there_are():
    content = encoded(Image.new("1", (9600, 9600)))
    assert decode(content, decoding.MAX_PIXELS).shape == (9600, 9600, 3)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "P", "LA", "CMYK"])
def test_large_images_are_converted_in_parts_to_the_same_bits(mode, monkeypatch):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (37, 23, 3), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (37, 23)).astype(np.uint16))
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(rng.integers(0, 256, (37, 23), np.uint8)))
    else:
        image = image.convert(mode)
    content = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    whole = decode_image(content, "x")
    crops = center_crop(whole, 9), resize_short_side(whole, 11)
    for module in ("decoding", "transforms"):
        monkeypatch.setattr(f"pixelflow_jax.data.{module}.BAND", 100)
    np.testing.assert_array_equal(decode_image(content, "x"), whole)
    np.testing.assert_array_equal(center_crop(whole, 9), crops[0])
    np.testing.assert_array_equal(resize_short_side(whole, 11), crops[1])


# Of this program alone: what getrusage tells begins with its parent's peak.
PEAK = """
import re, sys
from pixelflow_jax.prepare import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print("peak", int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]) * 1024)
sys.exit(code)
"""
LARGE = {
    "png": lambda: encoded(Image.new("RGB", (11000, 9990)), compress_level=1),
    "webp": lambda: encoded(Image.new("RGB", (7000, 6900)), "WEBP", lossless=True),
    "bomb": lambda: encoded(Image.new("1", (16000, 11000))),
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("kind", LARGE)
def test_memory_stays_below_a_gigabyte(kind, tmp_path):
    """The largest image that is taken, and one that is not."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(LARGE[kind]())
    command = ["shards", tmp_path / "in", tmp_path / "out", "--no-labels"]
    result = subprocess.run(
        [sys.executable, "-c", PEAK, *command, "--size", "64", "--workers", "1"],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == (1 if kind == "bomb" else 0), result.stderr
    assert int(result.stdout.split()[-1]) < 10**9


def test_preparing_data_loads_no_compiler():
    """What decodes hostile images in many workers keeps its memory for them."""
    code = (
        "import sys, pixelflow_jax.cli.prepare as _\n"
        "print(sorted({'jax', 'grain', 'orbax', 'tensorstore'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
