"""The directions that a data set's patches fill most, for `flow.asymmetric`."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import ConfigError, DataError

CHUNK = 16  # images that are doubled in width at once
BASIS = "basis"  # of the constant, and of the array in a file of `write_basis`


class Gram:
    """The uncentred Gram matrix of patches, [numbers, numbers], float64, summed up."""

    def __init__(self, patch: int):
        self.patch = patch
        self.images = 0
        self.matrix = np.zeros((0, 0))

    def add(self, images: Float[np.ndarray, "n h w c"]) -> None:
        """Add the patches of images in [-1, 1]; DataError where none fits in."""
        n, height, width, channels = images.shape
        p, rows, columns = self.patch, height // self.patch, width // self.patch
        if height % p or width % p:
            raise DataError(
                f"A patch of {p} does not divide images of {height} x {width}."
            )
        for start in range(0, n, CHUNK):
            some = images[start : start + CHUNK]
            cut = some.reshape(-1, rows, p, columns, p, channels).swapaxes(2, 3)
            flat = cut.reshape(-1, p * p * channels).astype(np.float64)
            own = flat.T @ flat
            self.matrix = own if self.images == 0 else self.matrix + own
            self.images += len(some)

    def directions(self) -> tuple[np.ndarray, np.ndarray]:
        """Rising eigenvalues, and the eigenvectors as columns, float64.

        The largest entry of each is positive, so that all machines find the same.
        """
        values, vectors = np.linalg.eigh(self.matrix)
        largest = np.take_along_axis(
            vectors, np.abs(vectors).argmax(0, keepdims=True), 0
        )
        return values, vectors * np.where(largest < 0, -1, 1)


def write_basis(path: Path, gram: Gram) -> None:
    """Write all directions of a Gram matrix, with their eigenvalues, as .npz."""
    values, vectors = gram.directions()
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            **{BASIS: vectors.astype(np.float32), "eigenvalues": values},
            images=gram.images,
        )


def read_basis(path: str) -> np.ndarray:
    """Directions [numbers, count] of rising weight; ConfigError for no such file."""
    try:
        with np.load(Path(path).expanduser()) as file:
            directions = file[BASIS]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"prediction.basis={path!r} is no file that `pixelflow prepare basis` "
            f"wrote ({type(error).__name__}: {error}): name such a file, or leave the "
            "field empty to compute it from the training data."
        ) from error
    if directions.ndim != 2 or not np.isfinite(directions).all():
        raise ConfigError(f"prediction.basis={path!r} holds no finite matrix.")
    return directions
