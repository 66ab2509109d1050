"""Images to patches of pixels, and back; and images of another size, pixel by pixel."""

import numpy as np
from jax import Array

Patch = int | tuple[int, int]  # the side of a square, or height and width


def sides(patch: Patch) -> tuple[int, int]:
    """Height and width of a patch."""
    return patch if isinstance(patch, tuple) else (patch, patch)


def patchify(image: Array, patch: Patch) -> Array:
    """[b, h, w, c] to [b, n, pixels, c]; patches and their pixels row by row."""
    b, h, w, c = image.shape
    height, width = sides(patch)
    if h % height or w % width:
        side = height if height == width else f"{height} x {width}"
        raise ValueError(
            f"A patch of {side} does not divide an image of {h} x {w}: choose an "
            "image size that is a multiple of the patch."
        )
    rows, columns = h // height, w // width
    cut = image.reshape(b, rows, height, columns, width, c).swapaxes(2, 3)
    return cut.reshape(b, rows * columns, height * width, c)


def unpatchify(patches: Array, patch: Patch, height: int, width: int) -> Array:
    """The inverse of `patchify`: [b, n, pixels, c] to [b, height, width, c]."""
    b, c = len(patches), patches.shape[-1]
    sized = sides(patch)
    rows, columns = height // sized[0], width // sized[1]
    cut = patches.reshape(b, rows, columns, *sized, c).swapaxes(2, 3)
    return cut.reshape(b, height, width, c)


def nearest(image: Array, height: int, width: int) -> Array:
    """[b, h, w, c] to [b, height, width, c]: every pixel is one of the image's.

    Pixel i is number floor(i * old / new), the ratio in float32, as PyTorch's resizing
    of this name has it. White noise stays white unless an image grows.
    """
    for axis, new in ((1, height), (2, width)):
        old = image.shape[axis]
        if old != new:
            ratio = np.float32(old) / np.float32(new)
            source = np.floor(np.arange(new, dtype=np.float32) * ratio).astype(int)
            image = image.take(np.minimum(source, old - 1), axis)
    return image
