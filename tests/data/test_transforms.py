"""The crops to the pixel, the flip, and the value ranges."""

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.transforms import (
    CenterCrop,
    RandomCrop,
    center_crop,
    normalise,
    resize_short_side,
)
from pixelflow_jax.errors import DataError, UnreadableImage
from tests.data.batches import open_loader


def random_image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def rng_of(seed):
    return np.random.default_rng(seed)


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
    assert CenterCrop()(image, (32, 32), rng).shape == (32, 32, 3)
    assert CenterCrop(small="error")(image, (20, 20), rng).shape == (20, 20, 3)
    with pytest.raises(UnreadableImage, match="20x40, smaller than 32x32.*crop.small"):
        CenterCrop(small="error")(image, (32, 32), rng)
    with pytest.raises(DataError, match="CenterCrop.small is 'drop'.*upscale, error"):
        CenterCrop(small="drop")(image, (32, 32), rng)


@pytest.mark.parametrize(
    ("height", "width", "short", "expected"),
    [
        (64, 64, 36, (36, 36)),
        (100, 38, 36, (94, 36)),  # 94.7
        (37, 71, 36, (36, 69)),  # 69.08
        (50, 99, 36, (36, 71)),  # 71.28
        (19, 31, 36, (36, 58)),  # 58.7, enlarged
        (36, 50, 36, (36, 50)),
    ],
)
def test_the_short_side_is_exact_and_the_long_side_rounded_down(
    height, width, short, expected
):
    image = random_image(height, width)
    resized = resize_short_side(image, short)
    assert resized.shape == (*expected, 3) and resized.dtype == np.uint8
    if (height, width) == expected:
        np.testing.assert_array_equal(resized, image)
    picture = Image.fromarray(image).resize(expected[::-1], Image.LANCZOS)
    np.testing.assert_array_equal(resized, np.asarray(picture))


def corner(crop, image, resized, size, rng):
    """The top and left at which the crop cut; the image has no two equal places."""
    cut = crop(image, (size, size), rng)
    assert cut.shape == (size, size, 3) and cut.dtype == np.uint8
    windows = np.lib.stride_tricks.sliding_window_view(resized, cut.shape)[:, :, 0]
    ((top, left),) = np.argwhere((windows == cut).all((2, 3, 4)))
    return int(top), int(left)


@pytest.mark.parametrize(("height", "width"), [(60, 45), (30, 44), (9, 9)])
def test_random_crops_cover_the_whole_range_evenly(height, width):
    """Size 16 of a short side of 18: 3 places along it, more along the other."""
    image = random_image(height, width)
    resized = resize_short_side(image, 18)
    rooms = [side - 16 + 1 for side in resized.shape[:2]]
    assert min(rooms) == 3
    rng = np.random.default_rng(0)
    draws = 300
    found = [corner(RandomCrop(), image, resized, 16, rng) for _ in range(draws)]
    for places, room in zip(zip(*found, strict=True), rooms, strict=True):
        counts = np.bincount(places, minlength=room)
        assert len(counts) == room
        expected = draws / room
        assert abs(counts - expected).max() < 4.5 * np.sqrt(expected)
    # The two axes are drawn apart.
    assert len(set(found)) > max(rooms)


def test_evaluation_takes_the_middle():
    image = random_image(61, 40)
    resized = resize_short_side(image, 18)
    assert resized.shape == (27, 18, 3)
    assert corner(RandomCrop(), image, resized, 16, None) == (5, 1)
    centre = CenterCrop()(image, (16, 16), None)
    np.testing.assert_array_equal(centre, CenterCrop()(image, (16, 16), rng_of(3)))


def test_a_random_crop_depends_on_its_generator_alone():
    image = random_image(60, 45)
    cut = lambda seed: RandomCrop()(image, (16, 16), rng_of(seed)).tobytes()
    assert cut(1) == cut(1)
    assert len({cut(seed) for seed in range(8)}) > 4


@pytest.mark.parametrize(
    ("size", "scale", "short"), [(64, 1.125, 72), (12, 1.125, 14), (20, 1.0, 20)]
)
def test_scale_of_the_short_side(size, scale, short):
    image = random_image(short, short)
    # An image of that very size is cut without being resized.
    crop = RandomCrop(scale=scale, small="error")
    top, left = corner(crop, image, image, size, rng_of(0))
    assert max(top, left) <= short - size
    message = f"smaller than {short}x{short} pixels.*crop.sm"
    with pytest.raises(UnreadableImage, match=message):
        crop(image[1:], (size, size), rng_of(0))


def test_wrong_random_crops_are_refused():
    image = random_image(40, 40)
    for scale in (0.99, -2.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="RandomCrop.scale is .*at least 1"):
            RandomCrop(scale=scale)(image, (16, 16), rng_of(0))
    with pytest.raises(DataError, match="RandomCrop.small is 'drop'.*upscale, error"):
        RandomCrop(small="drop")(image, (16, 16), rng_of(0))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Nine images of different shapes, all bright on their left half."""
    root = tmp_path_factory.mktemp("photographs")
    for k in range(9):
        pixels = random_image(20 + 3 * k, 50 - 4 * k, seed=k) // 2
        pixels[:, : pixels.shape[1] // 2] += 127
        Image.fromarray(pixels).save(root / f"{k}.png")
    return str(root)


def take(root, count, **options):
    source = ImageFolder(path=root, labels=False)
    data = Data(source=source, image_size=16, crop=RandomCrop(), threads=2)
    options = {"split": "train", "batch_size": 6, "seed": 1} | options
    with open_loader(data, **options) as loader:
        return [next(loader)["image"] for _ in range(count)]


def test_random_crops_resume_and_differ_between_epochs_and_seeds(photographs):
    options = {"batch_size": 9, "shuffle": False}  # one epoch a batch
    batches = take(photographs, 4, **options)
    np.testing.assert_array_equal(take(photographs, 2, start=2, **options), batches[2:])
    for k in range(9):
        assert len({batch[k].tobytes() for batch in batches}) > 1
    (other,) = take(photographs, 1, seed=2, **options)
    assert not np.array_equal(other, batches[0])


def test_passes_for_evaluation_are_not_random(photographs):
    options = {"batch_size": 9, "shuffle": False, "repeat": False}
    first, second = (take(photographs, 1, seed=s, **options)[0] for s in (1, 2))
    np.testing.assert_array_equal(first, second)
    left, right = np.split(first.mean((1, 3)), 2, axis=1)
    assert (left.mean(1) > right.mean(1)).all()  # not mirrored
    image = np.asarray(Image.open(f"{photographs}/4.png"))
    expected = RandomCrop()(image, (16, 16), None)
    np.testing.assert_array_equal(first[4], normalise(expected))


def test_half_of_the_images_are_mirrored(tmp_path):
    image = random_image(6, 6)
    (tmp_path / "a").mkdir()
    Image.fromarray(image).save(tmp_path / "a/0.png")
    with open_loader(
        Data(source=ImageFolder(path=str(tmp_path)), image_size=6, threads=1),
        batch_size=400,
        seed=0,
    ) as loader:
        images = next(loader)["image"]
    expected = np.stack([normalise(image), normalise(image[:, ::-1])])
    mirrored = [int((one == expected[1]).all()) for one in images]
    np.testing.assert_array_equal(images, expected[mirrored])
    assert 160 < sum(mirrored) < 240


def test_normalise_is_exact():
    values = np.arange(256, dtype=np.uint8)
    scaled = normalise(values)
    assert scaled.dtype == np.float32 and scaled[0] == -1 and scaled[255] == 1
    np.testing.assert_allclose(scaled, values / 127.5 - 1, atol=1e-7)


@pytest.mark.parametrize("shape", [(1, 40_000, 3), (40_000, 1, 3)])
def test_images_too_narrow_to_be_enlarged_are_unreadable(shape):
    """They would take gigabytes; those up to 16 times as long as wide never do."""
    narrow = np.zeros(shape, np.uint8)
    for crop in (
        lambda: center_crop(narrow, 256),
        lambda: resize_short_side(narrow, 256),
        lambda: RandomCrop()(narrow, (256, 256), None),
    ):
        with pytest.raises(UnreadableImage, match="so narrow that"):
            crop()
    assert center_crop(narrow[:900, :900], 64).shape == (64, 64, 3)
