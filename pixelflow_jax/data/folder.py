"""A folder of image files, a class for each sub-folder."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pixelflow_jax.data.captions import (
    MAX_CAPTION,
    clean,
    from_text,
    lines,
    most_bytes,
)
from pixelflow_jax.data.decoding import MAX_FILE_BYTES, MAX_PIXELS, SUFFIXES, PixelLimit
from pixelflow_jax.data.encoded import EncodedSource, say_first_frames
from pixelflow_jax.data.files import read_whole
from pixelflow_jax.data.limits import Limits
from pixelflow_jax.data.listing import Listing, list_folder
from pixelflow_jax.data.source import (
    UNLABELLED,
    SourceConfig,
    Split,
    check_split,
    choose_split,
    spread,
)
from pixelflow_jax.errors import DataError, NoCaption, UnreadableImage
from pixelflow_jax.paths import local_path, portable, printable
from pixelflow_jax.values import Count, Place, Rate

LOG = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class ImageFolder(SourceConfig):
    """Every image under `path`, found recursively and sorted by relative path.

    With `labels` the class is the first-level sub-folder (sorted by name; hidden ones
    and those without images are left out); without, all are of the one class "image".
    A .txt file of the same name holds the captions, one a line; without it the caption
    is the class name, or empty where there are no classes. With `captions` every image
    must have such a file, and counts as unreadable where that is absent, empty or not
    UTF-8; `allow_missing` gives it an empty caption instead. So does an image of more
    than `max_pixels` (its header is asked before it is decoded), and one whose captions
    have more than `max_caption` characters. `holdout` is the share kept for the test
    split, by a hash of the relative path. What is left out is named in a warning.
    Raises DataError where the path is missing, empty or not as `labels` says, or where
    all images of a class are of formats that are not read.
    """

    path: Place = ""
    labels: bool = True
    captions: bool = False
    allow_missing: bool = False
    holdout: Rate = 0.0
    max_pixels: PixelLimit = MAX_PIXELS
    max_caption: Count = MAX_CAPTION

    def open(self, split: Split, image_size: int = 0) -> EncodedSource:
        """Opens one split; see the class for its errors."""
        check_split(split, self.holdout)
        limits = Limits(max_pixels=self.max_pixels, max_caption=self.max_caption)
        root = local_path(self.path, "The image folder", DataError)
        listing = list_folder(root, alias_classes=self.labels)
        files, class_names = listing.images, UNLABELLED
        if listing.left_out:
            LOG.warning("Left out of %s: %s.", printable(str(root)), listing.summary())
        if self.labels:
            _check_classes(root, listing)
            files, class_names = self._labelled(root, files)
        files = choose_split(
            files, str, split, self.holdout, nothing=f"{root} holds no images"
        )
        say_first_frames([file for file in files if file.lower().endswith(".gif")])
        images = FolderImages(
            str(root),
            files,
            listing.texts if listing.has_texts else None,
            class_names,
            self.captions,
            limits,
        )
        return EncodedSource(
            images,
            contiguous=False,
            allow_missing=self.allow_missing,
            class_names=tuple(map(portable, class_names)),
            labels=images.labels,
            limits=limits,
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


def _check_classes(root: Path, listing: Listing) -> None:
    """Raises DataError where a class would vanish, and the labels of others shift."""
    classes = {file.partition("/")[0] for file in listing.images}
    lost = [name for name in sorted(listing.foreign) if name and name not in classes]
    if lost:
        kept = listing.foreign[lost[0]]
        more = f" and {len(lost) - 1} other folders" if len(lost) > 1 else ""
        raise DataError(
            f"The class folder {printable(lost[0])!r}{more} of {printable(str(root))} "
            f"holds images, but none of a format that is read: {kept}. Convert them to "
            f"one of {', '.join(SUFFIXES)}, or take the folder away."
        )


class FolderImages:
    """The `EncodedImages` of files below `root`, named by their relative paths.

    `texts` are files of captions with unusual names, by the image's path without
    suffix; None: there are no files of captions at all, so none is looked for.
    """

    def __init__(
        self,
        root: str,
        files: list[str],
        texts: dict[str, str] | None,
        class_names: tuple[str, ...],
        must_have_captions: bool,
        limits: Limits,
    ):
        self._root, self._class_names, self._texts = root, class_names, texts
        self._must_have_captions, self._limits = must_have_captions, limits
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
        return portable(self._relative(index))

    def origin(self, index: int) -> str:
        """The file itself."""
        return portable(self._path(index))

    def read(self, index: int) -> bytes:
        """The file as it is; raises UnreadableImage where it cannot be read."""
        try:
            return read_whole(self._path(index), MAX_FILE_BYTES)
        except OSError as error:
            raise UnreadableImage(
                f"{printable(self.name(index))} cannot be read "
                f"({error.strerror or error}). Check the file and its permissions."
            ) from error

    def captions(self, index: int) -> tuple[str, ...]:
        """The lines of the .txt beside the image, or else the name of its class."""
        if self._texts is None and not self._must_have_captions:
            return self._class_name(index)
        stem, _ = os.path.splitext(self._relative(index))
        file = f"{self._root}/{stem}.txt"
        if self._texts and stem in self._texts and not os.path.exists(file):
            file = f"{self._root}/{self._texts[stem]}"
        if not self._must_have_captions and not os.path.exists(file):
            return self._class_name(index)
        return _file_captions(file, self.name(index), self._limits.max_caption)

    def _class_name(self, index: int) -> tuple[str, ...]:
        names = self._class_names
        return ("",) if names == UNLABELLED else (portable(names[self.labels[index]]),)

    def _relative(self, index: int) -> str:
        return os.fsdecode(bytes(self._files[index]))

    def _path(self, index: int) -> str:
        # Strings: a pathlib.Path takes longer to make than a small file to read.
        return f"{self._root}/{self._relative(index)}"

    def listing(self) -> Iterator[str]:
        """One line for each file, which changes when a file does: name and size."""
        for index in range(len(self)):
            yield f"{self._relative(index)} {_size(self._path(index))}"

    def identity(self) -> Iterator[str]:
        """The name of each file, and the sizes of a few: others are not asked for."""
        yield from map(self._relative, range(len(self)))
        for index in spread(len(self)):
            yield f"{_size(self._path(index))}"


def _size(path: str) -> int:
    """Bytes of a file; -1 where it is gone."""
    return os.path.getsize(path) if os.path.exists(path) else -1


def _file_captions(file: str, name: str, max_caption: int) -> tuple[str, ...]:
    try:
        limit = f"max_caption={max_caption:,}"
        content = read_whole(file, most_bytes(max_caption), limit)
    except OSError as error:
        raise NoCaption(
            f"{printable(name)}: {printable(os.path.basename(file))} cannot be read "
            f"({error.strerror or error}). Write it, or use --allow-missing-captions."
        ) from error
    return clean(lines(from_text(content, name)), name, max_caption)
