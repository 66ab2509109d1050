"""Pure functions on uint8 images, and the crops as config nodes."""

import dataclasses
import math
from typing import Protocol

import numpy as np
from PIL import Image

from pixelflow_jax.data.errors import DataError, UnreadableImage

SMALL = ("upscale", "error")


class Crop(Protocol):
    """Turns an image of any size into a square of `size`.

    `image` is uint8 [h, w, 3]; `rng` is for random crops, None in passes for
    evaluation, where nothing is random. Raises UnreadableImage where the image is
    unfit.
    """

    def __call__(
        self, image: np.ndarray, size: int, rng: np.random.Generator | None
    ) -> np.ndarray: ...


@dataclasses.dataclass(kw_only=True)
class CenterCrop:
    """ADM's centre crop. `small` says what to do with images smaller than the crop.

    "upscale" enlarges them (bicubic), as ADM does; "error" refuses them, and the loader
    then counts them as unreadable.
    """

    small: str = "upscale"

    def __call__(
        self, image: np.ndarray, size: int, rng: np.random.Generator | None
    ) -> np.ndarray:
        _check_small(self, image, size)
        return center_crop(image, size)


@dataclasses.dataclass(kw_only=True)
class RandomCrop:
    """PixelFlow's augmentation: resize, then a square cut out at random.

    The short side becomes round(size * scale), by Lanczos, and every place of the
    square is equally likely; evaluation takes the middle one. `small` says what to do
    with images that this enlarges: "upscale" accepts them, as PixelFlow does, "error"
    refuses them. Data that was prepared at `size` is enlarged: prepare it larger.
    """

    scale: float = 1.125
    small: str = "upscale"

    def __call__(
        self, image: np.ndarray, size: int, rng: np.random.Generator | None
    ) -> np.ndarray:
        if not 1 <= self.scale < math.inf:
            raise DataError(
                f"RandomCrop.scale is {self.scale}: the resized image must hold the "
                "crop, so set it to at least 1."
            )
        short = round(size * self.scale)
        _check_small(self, image, short)
        pixels = resize_short_side(image, short)
        room = np.array(pixels.shape[:2]) - size
        top, left = room // 2 if rng is None else rng.integers(0, room + 1)
        return pixels[top : top + size, left : left + size]


def _check_small(crop: CenterCrop | RandomCrop, image: np.ndarray, needed: int) -> None:
    """Raises where the crop's `small` refuses the image, or is no known choice."""
    if crop.small not in SMALL:
        raise DataError(
            f"{type(crop).__name__}.small is {crop.small!r}: set it to one of "
            f"{', '.join(SMALL)}."
        )
    height, width = image.shape[:2]
    if crop.small == "error" and min(height, width) < needed:
        raise UnreadableImage(
            f"the image is {width}x{height}, smaller than {needed} pixels. Remove "
            'it, lower the size, or set crop.small="upscale".'
        )


def resize_short_side(image: np.ndarray, short: int) -> np.ndarray:
    """The image resized (Lanczos) so that its short side is `short`.

    The long side keeps the aspect ratio, rounded down, as torchvision's Resize has it.
    `image` is uint8 [h, w, 3], and so is the result.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    if side == short:
        return image
    target = (int(short * width / side), int(short * height / side))
    resized = Image.fromarray(image).resize(target, Image.Resampling.LANCZOS)
    return np.asarray(resized)


def center_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The crop of ADM (guided-diffusion, `center_crop_arr`), to the pixel.

    Halves with a box filter while the short side is at least twice `size`, resizes
    (bicubic) so that it equals `size`, then cuts the centre. `image` is uint8
    [h, w, 3]; returns uint8 [size, size, 3].
    """
    if image.shape[:2] == (size, size):
        return image
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * size:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = size / min(picture.size)
    resized = (round(picture.width * scale), round(picture.height * scale))
    pixels = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors [h, w, 3] left to right with probability one half."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def normalise(image: np.ndarray) -> np.ndarray:
    """uint8 in 0..255 to float32 in [-1, 1], of any shape."""
    # One allocation instead of three: a batch of large images spends its time there.
    scaled = np.divide(image, np.float32(127.5), dtype=np.float32)
    scaled -= 1
    return scaled
