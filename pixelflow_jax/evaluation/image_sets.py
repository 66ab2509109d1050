"""Sets of images on disk, read a batch at a time: npz files, folders, data sources."""

import concurrent.futures
import io
import logging
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from pixelflow_jax.data.listing import list_folder
from pixelflow_jax.data.source import Source, decode_image
from pixelflow_jax.errors import DataError, EvaluationError
from pixelflow_jax.paths import printable
from pixelflow_jax.sampling.spool import SPOOL

LOG = logging.getLogger(__name__)
IMAGES = "arr_0"  # the name in a sample file, as ADM's evaluator wants
DRAWN = ("samples.json", "samples.npz")  # in a folder of `pixelflow sample`
LABELS = ("arr_1", "labels")  # as ADM's sampler and as ours call them
STATISTICS = ("mu", "sigma", "mu_s", "sigma_s")
PNG, PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24  # how files begin; the place of their depth
Result = TypeVar("Result")
DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class ImageSet(Protocol):
    """Images of one size, numbered from 0."""

    @property
    def name(self) -> str:
        """What messages and records call it."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image."""
        ...

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each image [n], where the set says."""
        ...

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """The number of the first image, and images uint8 [b, h, w, 3]; b <= size.

        Raises EvaluationError or DataError for what is no such image.
        """
        ...


class NpzImages:
    """The images `arr_0` of an npz file, never in memory as a whole.

    `labels` are its `arr_1` or `labels`, where that is a number an image. Raises
    EvaluationError where the file is damaged or its images are not uint8 [n, h, w, 3].
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.name = str(path)
        shape, dtype = read_npz(path, _header)
        if dtype != np.uint8 or len(shape) != 4 or shape[-1] != 3 or 0 in shape:
            raise EvaluationError(
                f"{path} holds {IMAGES} of type {dtype} and shape {list(shape)}, not "
                "images uint8 [count, height, width, 3]: store them in 0..255, rounded "
                "once."
            )
        self._shape = shape
        labels = read_npz(path, _labels)
        fits = labels is not None and labels.shape == shape[:1]
        self.labels: np.ndarray | None = labels if fits else None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self._shape[1], self._shape[2]

    def __len__(self) -> int:
        return self._shape[0]

    def batches(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Batches of at most `size` images; EvaluationError where the file is cut."""
        one = int(np.prod(self._shape[1:]))
        try:
            with zipfile.ZipFile(self._path) as archive:
                with archive.open(f"{IMAGES}.npy") as file:
                    _array_header(file)
                    for first in range(0, len(self), size):
                        count = min(size, len(self) - first)
                        content = file.read(count * one)
                        if len(content) < count * one:
                            raise EOFError(f"it ends in image {first}")
                        images = np.frombuffer(content, np.uint8)
                        yield first, images.reshape(count, *self._shape[1:])
        except DAMAGE as error:
            raise _damaged(self._path, error) from error


class FileImages:
    """The image files below a folder, in the order of their paths.

    Each must have the size of the first; transparent parts are laid over white. Raises
    DataError where there is no image.
    """

    labels = None

    def __init__(self, root: pathlib.Path):
        listing = list_folder(root, alias_classes=False)
        if listing.left_out:
            LOG.warning("Left out of %s: %s.", printable(str(root)), listing.summary())
        self._root, self._files = root, listing.images
        self.name = str(root)
        height, width, _ = self._image(0).shape
        self.size = height, width

    def __len__(self) -> int:
        return len(self._files)

    def batches(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Batches of at most `size` images, decoded in threads."""
        with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as run:
            for first in range(0, len(self), size):
                numbers = range(first, min(first + size, len(self)))
                yield first, np.stack(list(run.map(self._checked, numbers)))

    def _checked(self, number: int) -> np.ndarray:
        image = self._image(number)
        if image.shape[:2] != self.size:
            raise EvaluationError(
                f"{self._root / self._files[number]} is {_size(image.shape[:2])}, but "
                f"{self._files[0]} is {_size(self.size)}: all images of a set must be "
                "of one size. Resize them, or move the others out of the folder."
            )
        return image

    def _image(self, number: int) -> np.ndarray:
        path = self._root / self._files[number]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path} cannot be read ({error.strerror}): check its permissions, or "
                "remove it."
            ) from error
        image = decode_image(content, str(path))
        if _is_deep(content):
            raise EvaluationError(
                f"{path} has more than 8 bits a channel, and metrics are those of "
                "uint8 images: round all images of the set to 8 bits once, and say how."
            )
        return image


class SourceImages:
    """The images of a data source, in its order, cut to one size.

    `crop` makes an image of any size one of `size`, (height, width); nothing is drawn
    at random.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        size: tuple[int, int],
        crop: Callable[[np.ndarray], np.ndarray],
    ):
        self._source, self._crop = source, crop
        self.name, self.size = name, size
        labels = getattr(source, "labels", None)
        self.labels = None if labels is None else np.asarray(labels)

    def __len__(self) -> int:
        return len(self._source)

    def batches(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Batches of at most `size` images; DataError for one that cannot be read."""
        with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as run:
            for first in range(0, len(self), size):
                numbers = range(first, min(first + size, len(self)))
                yield first, np.stack(list(run.map(self._image, numbers)))

    def _image(self, number: int) -> np.ndarray:
        return self._crop(self._source[number]["image"])


def open_images(path: str | os.PathLike) -> ImageSet:
    """The images of an npz file or a folder, also of one that `pixelflow sample` wrote.

    Raises EvaluationError for an npz file that carries statistics: an evaluator that
    took them instead of the images would measure another set. DataError where there
    is nothing of that name.
    """
    place = pathlib.Path(path).expanduser()
    if place.suffix != ".npz":
        if place.is_file():
            raise EvaluationError(
                f"{place} is neither a folder of images nor an npz file: store its "
                f"images with np.savez(path, images), as {IMAGES}."
            )
        return _in_folder(place)
    if not place.is_file():
        raise DataError(
            f"There is no file {place}: name a folder of images, or an npz file that "
            f"holds them as {IMAGES}."
        )
    carried = [name for name in STATISTICS if name in array_names(place)]
    if carried:
        raise EvaluationError(
            f"{place} carries statistics ({', '.join(carried)}) besides images: it is "
            "a reference, not a set of samples. Name it with --reference, or store "
            f"the images alone as {IMAGES}."
        )
    return NpzImages(place)


def _in_folder(place: pathlib.Path) -> ImageSet:
    """A folder's images; of one of ours those of its npz, and not its grid."""
    if (place / SPOOL).is_dir():
        raise EvaluationError(
            f"{place} is being drawn, or its draw was cut short: wait, or give the "
            "command that draws it again, and it goes on from there."
        )
    index, images = (place / name for name in DRAWN)
    if index.is_file() and images.is_file():
        return NpzImages(images)
    return FileImages(place)


def array_names(path: pathlib.Path) -> list[str]:
    """The names of the arrays in an npz file; EvaluationError where it is damaged."""
    return read_npz(path, lambda archive: [n[:-4] for n in archive.namelist()])


def read_npz(path: pathlib.Path, read: Callable[[zipfile.ZipFile], Result]) -> Result:
    """What `read` makes of an npz file; EvaluationError where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return read(archive)
    except EvaluationError:
        raise
    except DAMAGE as error:
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> EvaluationError:
    return EvaluationError(
        f"{path} cannot be read ({type(error).__name__}: {error}): it is cut short or "
        "no npz file. Download or write it again."
    )


def _header(archive: zipfile.ZipFile) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the images."""
    if f"{IMAGES}.npy" not in archive.namelist():
        names = ", ".join(name[:-4] for name in archive.namelist()) or "nothing"
        raise EvaluationError(
            f"{archive.filename} holds {names}, but no {IMAGES}: images of a set must "
            f"be called exactly {IMAGES}, as np.savez(path, images) calls them."
        )
    with archive.open(f"{IMAGES}.npy") as file:
        shape, fortran, dtype = _array_header(file)
    if fortran:
        raise EvaluationError(
            f"{archive.filename} holds {IMAGES} in Fortran's order: store "
            "np.ascontiguousarray of the images."
        )
    return shape, dtype


def _array_header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version < (2, 0) else npy.read_array_header_2_0
    return read(file)


def _labels(archive: zipfile.ZipFile) -> np.ndarray | None:
    """The class of each image; None where the file says none, or of other images."""
    for name in LABELS:
        if f"{name}.npy" in archive.namelist():
            with archive.open(f"{name}.npy") as file:
                return npy.read_array(file, allow_pickle=False)
    return None


def _is_deep(content: bytes) -> bool:
    """Whether an image file has more than 8 bits a channel, which decoding cuts."""
    if content.startswith(PNG):
        return content[PNG_DEPTH] > 8
    with Image.open(io.BytesIO(content)) as image:  # reads the header alone
        return image.mode[0] in "IF"


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
