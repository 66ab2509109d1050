"""Pure functions on uint8 images, and the crops as config nodes."""

import dataclasses
import math
import typing
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from pixelflow_jax.data.decoding import BAND
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.values import Ratio

Small = Literal["upscale", "error"]
SMALL = typing.get_args(Small)
# An image may be enlarged to so many pixels, or to so many times what is cut out of it.
SMALL_TARGET, MAX_ASPECT = 2**26, 16
Size = tuple[int, int]  # height and width
Rng = np.random.Generator | None


class Crop(Protocol):
    """Turns an image of any size into one of `size`, height and width.

    `image` is uint8 [h, w, 3]; `rng` is for random crops, None in passes for
    evaluation, where nothing is random. Raises UnreadableImage where the image is
    unfit.
    """

    def __call__(self, image: np.ndarray, size: Size, rng: Rng) -> np.ndarray: ...


@dataclasses.dataclass(kw_only=True)
class CenterCrop(Crop):
    """The middle of the image, for squares ADM's crop: see `center_crop`.

    `small` says what to do with images smaller than the crop: "upscale" enlarges them
    (bicubic), as ADM does; "error" refuses them, and the loader then counts them as
    unreadable.
    """

    small: Small = "upscale"

    def __call__(self, image: np.ndarray, size: Size, rng: Rng) -> np.ndarray:
        _check_small(self, image, size)
        return center_crop(image, *size)


@dataclasses.dataclass(kw_only=True)
class RandomCrop(Crop):
    """PixelFlow's augmentation: resize, then a part cut out at random.

    The image is resized (Lanczos) to just cover `size` * `scale`, rounded, and every
    place of the part is equally likely; evaluation takes the middle one. `small` says
    what to do with images that this enlarges: "upscale" accepts them, as PixelFlow
    does, "error" refuses them. Data that was prepared at `size` is enlarged: prepare
    it larger.
    """

    scale: Ratio = 1.125
    small: Small = "upscale"

    def __call__(self, image: np.ndarray, size: Size, rng: Rng) -> np.ndarray:
        if not 1 <= self.scale < math.inf:
            raise DataError(
                f"RandomCrop.scale is {self.scale}: the resized image must hold the "
                "crop, so set it to at least 1."
            )
        height, width = size
        needed = (round(height * self.scale), round(width * self.scale))
        _check_small(self, image, needed)
        pixels = resize_to_cover(image, *needed)
        room = [pixels.shape[0] - height, pixels.shape[1] - width]
        if rng is None:
            top, left = (spare // 2 for spare in room)
        else:
            top, left = rng.integers(0, [spare + 1 for spare in room])
        return pixels[top : top + height, left : left + width]


def _check_small(
    crop: CenterCrop | RandomCrop, image: np.ndarray, needed: Size
) -> None:
    """Raises where the crop's `small` refuses the image, or is no known choice."""
    if crop.small not in SMALL:
        raise DataError(
            f"{type(crop).__name__}.small is {crop.small!r}: set it to one of "
            f"{', '.join(SMALL)}."
        )
    height, width = image.shape[:2]
    if crop.small == "error" and (height < needed[0] or width < needed[1]):
        raise UnreadableImage(
            f"the image is {width}x{height}, smaller than {needed[1]}x{needed[0]} "
            'pixels. Remove it, lower the size, or set crop.small="upscale".'
        )


def _check_growth(image: np.ndarray, target: tuple[int, int], size: Size) -> None:
    """Raises for an image so narrow that covering `size` would take all memory.

    `target` is the width and height that it would be resized to.
    """
    height, width = size
    if target[0] * target[1] > max(SMALL_TARGET, MAX_ASPECT * height * width):
        raise UnreadableImage(
            f"the image is {image.shape[1]}x{image.shape[0]}, so narrow that it would "
            f"be enlarged to {target[0]}x{target[1]} to cover {width}x{height} pixels. "
            "Remove it, or crop it."
        )


def resize_short_side(image: np.ndarray, short: int) -> np.ndarray:
    """The image resized (Lanczos) so that its short side is `short`.

    The long side keeps the aspect ratio, rounded down, as torchvision's Resize has it.
    `image` is uint8 [h, w, 3], and so is the result.
    """
    return resize_to_cover(image, short, short)


def resize_to_cover(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The smallest image of the same aspect that covers `height` x `width`, by Lanczos.

    One side fits, the other is rounded down. `image` is uint8 [h, w, 3].
    """
    tall, wide = image.shape[:2]
    if tall * width >= wide * height:
        target = (width, int(width * tall / wide))
    else:
        target = (int(height * wide / tall), height)
    if target == (wide, tall):
        return image
    _check_growth(image, target, (height, width))
    return np.asarray(resize(image, target, Image.Resampling.LANCZOS))


def resize(
    pixels: np.ndarray, size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """Pillow's resize of uint8 [h, w, 3] to width and height.

    Pillow resizes rows before columns. Rows of a large image are resized part by part,
    to the same bits, so that it is never copied whole.
    """
    tall, wide = pixels.shape[:2]
    rows = max(1, BAND // wide)
    if rows >= tall:
        return Image.fromarray(pixels).resize(size, resample)
    narrow = Image.new("RGB", (size[0], tall))
    for top in range(0, tall, rows):
        part = Image.fromarray(pixels[top : top + rows])
        narrow.paste(part.resize((size[0], part.height), resample), (0, top))
    return narrow.resize(size, resample)


def center_crop(image: np.ndarray, height: int, width: int = 0) -> np.ndarray:
    """The middle of an image as uint8 [height, width, 3]; `width` 0: a square.

    For squares the crop of ADM (guided-diffusion, `center_crop_arr`), to the pixel:
    halves with a box filter while the image is at least twice as large, resizes
    (bicubic) so that it just covers the size, then cuts the centre. `image` is uint8
    [h, w, 3].
    """
    width = width or height
    if image.shape[:2] == (height, width):
        return image
    tall, wide = image.shape[:2]
    if tall >= 2 * height and wide >= 2 * width:
        picture = resize(image, (wide // 2, tall // 2), Image.Resampling.BOX)
    else:
        picture = Image.fromarray(image)
    while picture.height >= 2 * height and picture.width >= 2 * width:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    resized = (round(picture.width * scale), round(picture.height * scale))
    _check_growth(image, resized, (height, width))
    pixels = np.asarray(picture.resize(resized, Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def mirror(image: np.ndarray, out: np.ndarray) -> None:
    """Writes [h, w, 3] mirrored left to right into `out`."""
    for channel in range(image.shape[2]):  # NumPy's own copy takes four times as long
        out[..., channel] = image[:, ::-1, channel]


def normalise(image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """uint8 in 0..255 to float32 in [-1, 1], of any shape; in `out` where given."""
    scaled = np.empty(image.shape, np.float32) if out is None else out
    batch = image.ndim > 3
    # Image by image, while its numbers are in the cache.
    arrays = (scaled, image) if batch else (scaled[None], image[None])
    for target, pixels in zip(*arrays, strict=True):
        np.copyto(target, pixels)
        target /= np.float32(127.5)
        target -= 1
    return scaled
