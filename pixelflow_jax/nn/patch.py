"""Images to patches of pixels, and back."""

from jax import Array


def patchify(image: Array, patch: int) -> Array:
    """[b, h, w, c] to [b, n, patch * patch, c]; patches and pixels row by row."""
    b, h, w, c = image.shape
    if h % patch or w % patch:
        raise ValueError(
            f"A patch of {patch} does not divide an image of {h} x {w}: choose an "
            "image size that is a multiple of the patch."
        )
    rows, columns = h // patch, w // patch
    cut = image.reshape(b, rows, patch, columns, patch, c).swapaxes(2, 3)
    return cut.reshape(b, rows * columns, patch * patch, c)


def unpatchify(patches: Array, patch: int, height: int, width: int) -> Array:
    """The inverse of `patchify`: [b, n, patch * patch, c] to [b, height, width, c]."""
    b, c = len(patches), patches.shape[-1]
    rows, columns = height // patch, width // patch
    cut = patches.reshape(b, rows, columns, patch, patch, c).swapaxes(2, 3)
    return cut.reshape(b, height, width, c)
