"""Cubic interpolation against hand values, its invariants, and PyTorch."""

import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.teachers.resize import bicubic, resample

SIZES = [(5, 4), (5, 6), (37, 16), (16, 37), (80, 70), (7, 7), (9, 1), (1, 3)]


def test_doubling_by_hand():
    """A quarter of a pixel off: Keys' kernel with a = -3/4, edges repeated."""
    outer, near, far, last = -0.10546875, 0.87890625, 0.26171875, -0.03515625
    matrix = bicubic(6, 12)
    np.testing.assert_allclose(matrix[5], [0, outer, near, far, last, 0], atol=1e-7)
    np.testing.assert_allclose(matrix[6], [0, last, far, near, outer, 0], atol=1e-7)
    first = [last + far + near, outer, 0, 0, 0, 0]
    np.testing.assert_allclose(matrix[0], first, atol=1e-7)


def test_halving_with_antialiasing_by_hand():
    """Twice as wide, a = -1/2: pixels 1/4, 3/4, 5/4 and 7/4 from the centre."""
    half = np.array([0.8671875, 0.2265625, -0.0703125, -0.0234375]) / 2
    row = np.zeros(16)
    row[7:11], row[3:7] = half, half[::-1]
    np.testing.assert_allclose(bicubic(16, 8, None, True)[3], row, atol=1e-7)


@pytest.mark.parametrize("antialias", [False, True], ids=["plain", "antialias"])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_constants_and_mirrors_stay(inputs, outputs, antialias):
    matrix = bicubic(inputs, outputs, None, antialias)
    assert matrix.shape == (outputs, inputs) and matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-5)
    if inputs == outputs:
        np.testing.assert_array_equal(matrix, np.eye(inputs))


def test_a_scale_of_its_own_moves_the_coordinates():
    """The factor alone says where pixels lie: 16.1 for 16 leaves the last edge out."""
    slow = lambda x: np.sin(x / 6)
    centers = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    moved = bicubic(37, 16, 16.1 / 37) @ slow(np.arange(37.0))
    np.testing.assert_allclose(moved[1:-1], slow(centers)[1:-1], atol=0.01)
    plain = bicubic(37, 16) @ slow(np.arange(37.0))
    assert np.abs(plain - moved).max() > 0.03
    np.testing.assert_array_equal(bicubic(8, 16, 2.0), bicubic(8, 16))


def test_each_axis_has_its_matrix():
    images = np.random.default_rng(0).standard_normal((2, 5, 7, 3)).astype(np.float32)
    rows, columns = bicubic(5, 4), bicubic(7, 9)
    ours = resample(jnp.asarray(images), rows, columns)
    assert ours.shape == (2, 4, 9, 3) and ours.dtype == jnp.float32
    theirs = np.einsum("Hh,Ww,bhwc->bHWc", rows, columns, images)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("rule", ["size", "factor", "antialias"])
@pytest.mark.parametrize(("inputs", "outputs"), [*SIZES, (256, 224), (518, 37)])
def test_pytorch_agrees(inputs, outputs, rule):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(1).standard_normal((inputs, inputs + 3))
    image = image.astype(np.float32)
    sizes = outputs, outputs + 2
    pairs = list(zip(image.shape, sizes, strict=True))
    antialias = rule == "antialias"
    how, scales = {"size": sizes}, (None, None)
    if rule == "factor":
        scales = tuple((n + 0.1) / m for m, n in pairs)
        how = {"scale_factor": scales}
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], mode="bicubic", antialias=antialias, **how
    )
    matrices = [
        bicubic(*pair, scale, antialias)
        for pair, scale in zip(pairs, scales, strict=True)
    ]
    ours = resample(jnp.asarray(image)[..., None], *matrices)[..., 0]
    # White noise shows the last bit of a float32 coordinate.
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=3e-5)
