"""TensorFlow 1's resize and the pools, against loops in plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.teachers import inception

# Smaller and larger than 299, of one pixel, and of any proportions.
SIZES = ((1, 1), (1, 7), (5, 2), (298, 3), (299, 300), (320, 299), (3, 1024))


def places(size: int) -> list[tuple[int, int, np.float32]]:
    """Lower and upper neighbour and the share between them, of each of 299 pixels."""
    scale = np.float32(size) / np.float32(299)
    found = []
    for i in range(299):
        at = np.float32(i) * scale
        low = int(at)
        found.append((low, min(low + 1, size - 1), at - np.float32(low)))
    return found


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_each_pixel_lies_between_four(height, width):
    draw = np.random.default_rng(height * width)
    image = draw.integers(0, 256, (1, height, width, 3)).astype(np.uint8)
    found = np.asarray(inception.resize(jnp.asarray(image)))[0]
    exact = image[0].astype(np.float32)
    rows, columns = places(height), places(width)
    for y in (0, 1, 37, 150, 297, 298):
        for x in (0, 1, 41, 149, 297, 298):
            top, bottom, down = rows[y]
            left, right, across = columns[x]
            above, below = (
                exact[line, left] + (exact[line, right] - exact[line, left]) * across
                for line in (top, bottom)
            )
            np.testing.assert_array_equal(found[y, x], above + (below - above) * down)


def test_whole_floats_are_the_same_as_bytes():
    image = np.random.default_rng(0).integers(0, 256, (2, 9, 4, 3)).astype(np.uint8)
    one, other = (inception.resize(jnp.asarray(a)) for a in (image, image * 1.0))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sides", [(1, 1), (2, 5), (8, 8)])
def test_pools_see_only_pixels_that_there_are(sides):
    x = np.random.default_rng(1).normal(-3, 1, (2, *sides, 2)).astype(np.float32)
    means, maxima = (
        np.asarray(f(x)) for f in (inception.mean_pool, inception.max_pool)
    )
    for i in range(sides[0]):
        for j in range(sides[1]):
            window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            np.testing.assert_allclose(means[:, i, j], window.mean((1, 2)), rtol=1e-6)
            np.testing.assert_array_equal(maxima[:, i, j], window.max((1, 2)))
