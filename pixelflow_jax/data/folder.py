"""A folder of image files, a class for each sub-folder."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pixelflow_jax.data.captions import clean, from_text
from pixelflow_jax.data.encoded import EncodedSource
from pixelflow_jax.data.source import (
    UNLABELLED,
    SourceConfig,
    Split,
    check_split,
    choose_split,
)
from pixelflow_jax.errors import DataError, NoCaption, UnreadableImage
from pixelflow_jax.values import Place, Rate

LOG = logging.getLogger(__name__)
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".avif",
)


@dataclasses.dataclass(kw_only=True)
class ImageFolder(SourceConfig):
    """Every image under `path`, found recursively and sorted by relative path.

    With `labels` the class is the first-level sub-folder (sorted by name; hidden ones
    and those without images are left out); without, all are of the one class "image".
    A .txt file of the same name holds the captions, one a line; without it the caption
    is the class name, or empty where there are no classes. With `captions` every image
    must have such a file, and counts as unreadable where that is absent, empty or not
    UTF-8; `allow_missing` gives it an empty caption instead. `holdout` is the share
    kept for the test split, by a hash of the relative path. Raises DataError where the
    path is missing, empty or not as `labels` says.
    """

    path: Place = ""
    labels: bool = True
    captions: bool = False
    allow_missing: bool = False
    holdout: Rate = 0.0

    def open(self, split: Split, image_size: int = 0) -> EncodedSource:
        """Opens one split; see the class for its errors."""
        check_split(split, self.holdout)
        root = Path(self.path).expanduser()
        files = list_images(root)
        class_names = UNLABELLED
        if self.labels:
            files, class_names = self._labelled(root, files)
        files = choose_split(
            files, str, split, self.holdout, nothing=f"{root} holds no images"
        )
        images = FolderImages(str(root), files, class_names, self)
        return EncodedSource(
            images,
            contiguous=False,
            allow_missing=self.allow_missing,
            class_names=class_names,
            labels=images.labels,
        )

    def _labelled(
        self, root: Path, files: list[str]
    ) -> tuple[list[str], tuple[str, ...]]:
        inside = [file for file in files if "/" in file]
        if not inside:
            raise DataError(
                f"{root} has no sub-folders with images, so its {len(files)} images "
                "have no classes: set labels=False (--no-labels) to use them without, "
                "or put each class in a folder of its own."
            )
        if len(inside) < len(files):
            LOG.warning(
                "%d images lie outside the class folders of %s: left out.",
                len(files) - len(inside),
                root,
            )
        return inside, tuple(sorted({file.split("/", 1)[0] for file in inside}))


class FolderImages:
    """The `EncodedImages` of files below `root`, named by their relative paths."""

    def __init__(
        self,
        root: str,
        files: list[str],
        class_names: tuple[str, ...],
        config: ImageFolder,
    ):
        self._root, self._class_names = root, class_names
        self._must_have_captions = config.captions
        # One array of bytes pickles to workers many times faster than a million str.
        self._files = np.array([os.fsencode(file) for file in files])
        numbers = {name: number for number, name in enumerate(class_names)}
        self.labels = np.array(
            [numbers.get(file.split("/", 1)[0], 0) for file in files], np.int32
        )

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The file's path relative to the root, with forward slashes."""
        return os.fsdecode(bytes(self._files[index]))

    def origin(self, index: int) -> str:
        """The file itself."""
        return str(Path(self._root, self.name(index)))

    def read(self, index: int) -> bytes:
        """The file as it is; raises UnreadableImage where it cannot be read."""
        try:
            return Path(self.origin(index)).read_bytes()
        except OSError as error:
            raise UnreadableImage(
                f"{self.name(index)} cannot be read ({error.strerror}). Check the file "
                "and its permissions."
            ) from error

    def captions(self, index: int) -> tuple[str, ...]:
        """The lines of the .txt beside the image, or else the name of its class."""
        file = Path(self.origin(index)).with_suffix(".txt")
        if not self._must_have_captions and not file.exists():
            names = self._class_names
            return ("",) if names == UNLABELLED else (names[self.labels[index]],)
        return _file_captions(file, self.name(index))

    def listing(self) -> Iterator[str]:
        """One line for each file, which changes when a file does: name and size."""
        for index in range(len(self)):
            path = Path(self.origin(index))
            yield f"{self.name(index)} {path.stat().st_size if path.exists() else -1}"


def _file_captions(file: Path, name: str) -> tuple[str, ...]:
    try:
        return clean(from_text(file.read_bytes(), name).splitlines(), name)
    except OSError as error:
        raise NoCaption(
            f"{name}: {file.name} cannot be read ({error.strerror}). Write it, or use "
            "--allow-missing-captions."
        ) from error


def list_images(root: Path) -> list[str]:
    """Relative paths of all images under a folder, sorted, with forward slashes.

    Raises DataError where the folder is missing, is a file, or holds no image.
    """
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"The image folder {str(root)!r} {state}: set path to a folder of images."
        )
    images: list[str] = []
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = Path(folder).relative_to(root)
        images.extend(
            (relative / name).as_posix()
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        )
    if not images:
        raise DataError(
            f"{root} holds no images ({', '.join(SUFFIXES)}), or they cannot be "
            "listed: check the path and its permissions."
        )
    return sorted(images)
