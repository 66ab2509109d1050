"""Plain JPEG files have Pillow's pixels, whoever decodes them; all else is Pillow's."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data import decoding, jpeg

pytest.importorskip("simplejpeg")
MOST = 10**6


def picture(height, width, seed=0):
    """Smooth shapes with noise and one hard edge."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize((width, height)), np.int16)
    pixels += rng.integers(-20, 20, pixels.shape, np.int16)
    pixels[height // 3] = 255
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def by_pillow(content, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jpeg, "decode_jpeg", None)
        assert jpeg.decode(content, MOST) is None
        return decoding.decode(content, MOST)


@pytest.mark.parametrize("progressive", [False, True])
def test_the_pixels_are_those_of_pillow(progressive, monkeypatch):
    samplings = ("4:4:4", "4:2:2", "4:2:0")
    sizes = ((1, 1), (8, 8), (17, 40), (64, 63), (130, 257))
    for (height, width), sampling in itertools.product(sizes, samplings):
        for seed, quality in enumerate((5, 50, 75, 95)):
            options = {"subsampling": sampling, "quality": quality}
            image = picture(height, width, seed)
            content = encoded(image, progressive=progressive, **options)
            found = jpeg.decode(content, MOST)
            assert found is not None and found.flags.writeable
            np.testing.assert_array_equal(found, by_pillow(content, monkeypatch))


@pytest.mark.parametrize(
    "options",
    [
        {"optimize": True},
        {"restart_marker_rows": 1},
        {"comment": b"words"},
        {"icc_profile": b"colours" * 9},
        {"dpi": (300, 300)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_so_are_those_of_files_with_more_in_them(options, monkeypatch):
    content = encoded(picture(50, 70), **options)
    found = jpeg.decode(content, MOST)
    assert found is not None
    np.testing.assert_array_equal(found, by_pillow(content, monkeypatch))


def test_grey_files_get_three_equal_channels(monkeypatch):
    content = encoded(picture(50, 70).convert("L"))
    found = jpeg.decode(content, MOST)
    assert found is not None and found.shape == (50, 70, 3)
    np.testing.assert_array_equal(found, by_pillow(content, monkeypatch))


def turned(content):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    return encoded(Image.open(io.BytesIO(content)), exif=exif)


def with_png(content):
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).save(file, "PNG")
    return file.getvalue()


LEFT = {
    "turned by a camera's note": turned,
    "CMYK": lambda content: encoded(Image.open(io.BytesIO(content)).convert("CMYK")),
    "RGB, as Adobe's programs write": lambda content: encoded(
        Image.open(io.BytesIO(content)), keep_rgb=True
    ),
    "a PNG": with_png,
    "without a JFIF header": lambda content: content[:2] + content[20:],
}


@pytest.mark.parametrize("change", LEFT.values(), ids=LEFT.keys())
def test_what_is_out_of_the_ordinary_is_left_to_pillow(change):
    content = change(encoded(picture(40, 30), quality=90))
    assert jpeg.decode(content, MOST) is None
    assert decoding.decode(content, MOST).shape[2] == 3


def test_damaged_files_are_never_read_otherwise_than_by_pillow(monkeypatch):
    content = encoded(picture(60, 80), quality=90)
    rng = np.random.default_rng(0)
    cut = [content[:end] for end in range(0, len(content), 97)]
    flipped = []
    for place, bit in zip(
        rng.integers(2, len(content), 300), itertools.cycle(range(8))
    ):
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        flipped.append(bytes(damaged))
    read = 0
    for damaged in (*cut, *flipped):
        found = jpeg.decode(damaged, MOST)
        if found is not None:
            read += 1
            np.testing.assert_array_equal(found, by_pillow(damaged, monkeypatch))
    assert 0 < read < len(cut) + len(flipped)


def test_headers_decide_about_too_many_pixels():
    content = encoded(picture(40, 30))
    assert jpeg.decode(content, 1200) is not None
    assert jpeg.decode(content, 1199) is None
    with pytest.raises(decoding.UnfitImage, match="max_pixels=1,199"):
        decoding.decode(content, 1199)


def test_a_decoder_of_other_pixels_is_not_used(monkeypatch, caplog):
    """As with a Pillow that was built with another library."""
    real = jpeg.decode_jpeg
    monkeypatch.setattr(jpeg, "decode_jpeg", lambda *a, **k: real(*a, **k) ^ 1)
    jpeg.same_as_pillow.cache_clear()
    try:
        content = encoded(picture(40, 30))
        assert jpeg.decode(content, MOST) is None
        assert "decodes other pixels than Pillow" in caplog.text
        monkeypatch.undo()
        expected = by_pillow(content, monkeypatch)
        np.testing.assert_array_equal(decoding.decode(content, MOST), expected)
    finally:
        jpeg.same_as_pillow.cache_clear()
