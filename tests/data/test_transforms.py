"""The crop to the pixel, the flip, and the value ranges."""

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data.errors import DataError, UnreadableImage
from pixelflow_jax.data.transforms import CenterCrop, center_crop, flip, normalise


def random_image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def published_crop(image, size):
    """guided-diffusion's center_crop_arr, as published."""
    pil_image = Image.fromarray(image)
    while min(*pil_image.size) >= 2 * size:
        pil_image = pil_image.resize(
            tuple(x // 2 for x in pil_image.size), resample=Image.BOX
        )
    scale = size / min(*pil_image.size)
    pil_image = pil_image.resize(
        tuple(round(x * scale) for x in pil_image.size), resample=Image.BICUBIC
    )
    arr = np.array(pil_image)
    crop_y = (arr.shape[0] - size) // 2
    crop_x = (arr.shape[1] - size) // 2
    return arr[crop_y : crop_y + size, crop_x : crop_x + size]


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 32), (97, 200, 32), (333, 131, 32), (40, 37, 32), (32, 32, 32)]
    + [(10, 17, 32), (129, 128, 32), (63, 95, 32), (257, 1000, 31)],
)
def test_crop_is_the_published_one(height, width, size):
    image = random_image(height, width)
    cropped = center_crop(image, size)
    assert cropped.shape == (size, size, 3) and cropped.dtype == np.uint8
    np.testing.assert_array_equal(cropped, published_crop(image, size))


def test_halving_is_the_mean_of_blocks():
    # 4 x 12 halves to 2 x 6, whose centre is columns 2 and 3.
    image = random_image(4, 12)
    blocks = image.astype(np.float64).reshape(2, 2, 6, 2, 3).mean((1, 3))[:, 2:4]
    difference = center_crop(image, 2).astype(np.float64) - blocks
    # Pillow rounds after each of its two passes.
    assert np.abs(difference).max() <= 1


def test_small_images_are_enlarged_or_refused():
    rng = np.random.default_rng(0)
    image = random_image(40, 20)
    assert CenterCrop()(image, 32, rng).shape == (32, 32, 3)
    assert CenterCrop(small="error")(image, 20, rng).shape == (20, 20, 3)
    with pytest.raises(UnreadableImage, match="20x40, smaller than 32.*crop.small"):
        CenterCrop(small="error")(image, 32, rng)
    with pytest.raises(DataError, match="CenterCrop.small is 'drop'.*upscale, error"):
        CenterCrop(small="drop")(image, 32, rng)


def test_flip_mirrors_half_of_the_images():
    image = random_image(3, 5)
    rng = np.random.default_rng(0)
    mirrored = [np.array_equal(flip(image, rng), image[:, ::-1]) for _ in range(400)]
    assert 160 < sum(mirrored) < 240
    kept = flip(image, np.random.default_rng(1)), flip(image, np.random.default_rng(1))
    np.testing.assert_array_equal(*kept)


def test_normalise_is_exact():
    values = np.arange(256, dtype=np.uint8)
    scaled = normalise(values)
    assert scaled.dtype == np.float32 and scaled[0] == -1 and scaled[255] == 1
    np.testing.assert_allclose(scaled, values / 127.5 - 1, atol=1e-7)
