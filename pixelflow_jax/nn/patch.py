"""Images to patches of pixels, and back; and images of another size, pixel by pixel."""

import numpy as np
from jax import Array
from jaxtyping import Shaped

Patch = int | tuple[int, int]  # the side of a square, or height and width


def sides(patch: Patch) -> tuple[int, int]:
    """Height and width of a patch."""
    return patch if isinstance(patch, tuple) else (patch, patch)


def patchify(
    image: Shaped[Array, "b height width c"], patch: Patch
) -> Shaped[Array, "b n pixels c"]:
    """The patches of images, and the pixels of patches, row by row."""
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


def unpatchify(
    patches: Shaped[Array, "b n pixels c"], patch: Patch, height: int, width: int
) -> Shaped[Array, "b {height} {width} c"]:
    """The inverse of `patchify`."""
    b, c = len(patches), patches.shape[-1]
    down, across = sides(patch)
    rows, columns = height // down, width // across
    cut = patches.reshape(b, rows, columns, down, across, c).swapaxes(2, 3)
    return cut.reshape(b, height, width, c)


def nearest(
    image: Shaped[Array, "b _ _ c"], height: int, width: int
) -> Shaped[Array, "b {height} {width} c"]:
    """Images of another size, every pixel of which is one of the image's.

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
