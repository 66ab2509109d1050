"""Conversion to 8 bits, grids, and files that are whole or absent."""

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data.images import grid, save_animation, save_png, to_uint8
from pixelflow_jax.data.transforms import normalise
from pixelflow_jax.errors import DataError


def test_to_uint8_inverts_normalise_and_clips():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(normalise(values)), values)
    np.testing.assert_array_equal(to_uint8(np.array([-9.0, 9.0, 0.0])), [0, 255, 128])


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 3, 3), np.uint8
    )
    sheet = grid(images, columns=3, pad=1, scale=2)
    assert sheet.shape == (2 * 5 + 1, 3 * 7 + 1, 3)
    for number in range(5):
        top, left = 1 + number // 3 * 5, 1 + number % 3 * 7
        assert (sheet[top : top + 4, left : left + 6] == number).all()
    assert (sheet[6:, 15:] == 255).all()  # the empty place
    assert (sheet[0] == 255).all() and (sheet[:, 0] == 255).all()


def test_row_labels_stand_left_of_their_rows():
    images = np.zeros((2, 20, 20, 3), np.uint8)
    plain = grid(images, columns=1)
    labelled = grid(images, columns=1, row_labels=["", "cat"])
    width = labelled.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(labelled[:, width:], plain)
    column = labelled[:, :width]
    assert (column[:22] == 255).all() and (column[22:] < 128).any()


def test_png_is_written_whole_or_not_at_all(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    path = tmp_path / "new" / "a.png"
    save_png(path, image)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    before = path.read_bytes()
    with pytest.raises((TypeError, KeyError)):
        save_png(path, np.zeros((4, 4, 7), np.float32))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animation_loops_and_holds_its_last_frame(tmp_path, suffix):
    frames = np.zeros((4, 8, 8, 3), np.uint8)
    for t in range(4):
        frames[t, :, : 2 * t + 1] = 255
    path = tmp_path / f"a{suffix}"
    save_animation(path, frames, fps=10)
    with Image.open(path) as animation:
        assert animation.n_frames == 4 and animation.info["loop"] == 0
        durations, shown = [], []
        for t in range(4):
            animation.seek(t)
            shown.append(np.asarray(animation.convert("RGB")))
            durations.append(animation.info["duration"])
    np.testing.assert_array_equal(shown, frames)
    assert durations == [100, 100, 100, 1500]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: grid(np.zeros((2, 4, 4, 3)), 2), "uint8 images.*to_uint8"),
        (lambda p: grid(np.zeros((0, 4, 4, 3), np.uint8), 2), "at least one image"),
        (
            lambda p: grid(np.zeros((2, 4, 4, 3), np.uint8), 2, ["a", "b"]),
            "1 rows but 2 row_labels",
        ),
        (
            lambda p: save_animation(p / "a.mp4", np.zeros((1, 4, 4, 3), np.uint8), 9),
            "a.mp4.*.gif, .webp, .png",
        ),
        (
            lambda p: save_animation(p / "a.gif", np.zeros((0, 4, 4, 3), np.uint8), 9),
            "at least one frame",
        ),
    ],
)
def test_errors_say_what_to_do(tmp_path, call, message):
    with pytest.raises(DataError, match=message):
        call(tmp_path)
