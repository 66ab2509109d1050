"""ImageNet (ILSVRC 2012) as it is published: tars of tars, or folders made of them.

What is known to be odd in it needs no care here, as images are read by what they are
and not by their names: n02105855_2933.JPEG is a PNG, 22 files are CMYK, some have notes
of cameras that are damaged or ask to be turned. docs/images.md has the rules.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from pixelflow_jax.data.decoding import MAX_PIXELS
from pixelflow_jax.data.encoded import EncodedImages, EncodedSource
from pixelflow_jax.data.folder import FolderImages
from pixelflow_jax.data.limits import Limits
from pixelflow_jax.data.listing import list_folder
from pixelflow_jax.data.prepare.imagenet_labels import (
    WNID,
    validation_classes,
    words_of,
)
from pixelflow_jax.data.prepare.nested_tars import TarPart, inner_tars, list_tars
from pixelflow_jax.data.source import UNLABELLED, Split, check_split
from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import local_path, printable

LOG = logging.getLogger(__name__)
Check = Literal["md5", "counts", "none"]


class Official(NamedTuple):
    """What is known of a split: its tar, that one's MD5, its folders, and how many."""

    tar: str
    md5: str
    folders: tuple[str, ...]
    images: int


CLASSES = 1000
SPLITS: dict[Split, Official] = {
    "train": Official(
        "ILSVRC2012_img_train.tar",
        "1d675b47d978889d74fa0da5fadfb00e",
        ("train", "ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train"),
        1_281_167,
    ),
    "test": Official(
        "ILSVRC2012_img_val.tar",
        "29b22e2961454d5413ddabcf34fc5622",
        ("val", "ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val"),
        50_000,
    ),
}


class Images(NamedTuple):
    """The image files of a split, and the id of the class of each."""

    files: EncodedImages
    wnids: list[str]
    contiguous: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet:
    """The 1,000 classes of ILSVRC 2012 in the folder `path`.

    The train split is ILSVRC2012_img_train.tar (tars in a tar), or folder train with a
    folder or tar for each class; the test split ILSVRC2012_img_val.tar, or folder val,
    sorted by class or with a file that tells the classes (see `imagenet_labels`).
    Kaggle's folders are found as well. Labels follow the sorted WordNet ids. `check`
    compares with what was published: "counts", the numbers of classes and images,
    "md5", the tars too; "none" takes parts. `workers` processes list the tars. Raises
    DataError where a split is absent, or is not what `check` says.
    """

    path: str
    check: Check = "counts"
    max_pixels: int = MAX_PIXELS
    workers: int = 1

    def splits(self) -> tuple[Split, ...]:
        """Which of the splits are there."""
        return tuple(split for split in SPLITS if self._place(split) is not None)

    def open(self, split: Split, image_size: int = 0) -> EncodedSource:
        """Opens one split; reads the headers of all tars."""
        check_split(split)
        place = self._place(split)
        if place is None:
            raise DataError(
                f"{printable(self.path)!r} has neither {SPLITS[split].tar} nor a "
                f"folder {SPLITS[split].folders[0]} of images: name the folder that "
                "has."
            )
        images = self._images(split, place)
        wnids = sorted(set(images.wnids)) if split == "train" else self._wnids(images)
        if self.check != "none":
            self._check(split, place, len(images.wnids), len(wnids))
        numbers = {wnid: number for number, wnid in enumerate(wnids)}
        names = words_of(self._root, wnids)
        labels = np.array([numbers[wnid] for wnid in images.wnids], np.int32)
        return EncodedSource(
            Named(images.files, labels, names),
            contiguous=images.contiguous,
            allow_missing=False,
            class_names=names,
            labels=labels,
            limits=Limits(max_pixels=self.max_pixels),
        )

    @property
    def _root(self) -> Path:
        return local_path(self.path, "The folder of ImageNet", DataError)

    def _place(self, split: Split) -> Path | None:
        """The tar or folder of a split."""
        names = (SPLITS[split].tar, *SPLITS[split].folders)
        return next((p for n in names if (p := self._root / n).exists()), None)

    def _images(self, split: Split, place: Path) -> Images:
        if place.is_file() and split == "train":
            return _of_tars(inner_tars(place, WNID), self.workers)
        if place.is_file():
            return self._validation(_of_tars([TarPart(place)], 1))
        tars = sorted(p for p in place.glob("n*.tar") if WNID.fullmatch(p.stem))
        if tars:
            return _of_tars([TarPart(p, p.stem) for p in tars], self.workers)
        return self._of_folder(split, place)

    def _of_folder(self, split: Split, place: Path) -> Images:
        names = list_folder(place, alias_classes=True).images
        folders = [name.partition("/")[0] for name in names]
        limits = Limits(max_pixels=self.max_pixels)
        files = FolderImages(str(place), names, None, UNLABELLED, False, limits)
        images = Images(files, folders, contiguous=False)
        if all(map(WNID.fullmatch, folders)):
            return images
        if split == "train":
            odd = next(name for name in folders if not WNID.fullmatch(name))
            raise DataError(
                f"{printable(str(place))} has a folder {printable(odd)!r}, which is no "
                "class of ImageNet (n01440764, ...): take it away, or prepare the "
                "folder as `shards`."
            )
        return self._validation(images)

    def _validation(self, images: Images) -> Images:
        """The classes of images that lie in no folders of classes."""
        class_of = validation_classes(self._root)
        names = map(images.files.name, range(len(images.files)))
        return images._replace(wnids=[class_of(name) for name in names])

    def _wnids(self, images: Images) -> list[str]:
        """The classes in label order, of which the test split may lack some."""
        place = self._place("train")
        if place is None:
            return sorted(set(images.wnids))
        if place.is_file():
            known = {part.wnid for part in inner_tars(place, WNID)}
        else:
            known = {p.stem for p in place.iterdir() if WNID.fullmatch(p.stem)}
        foreign = sorted(set(images.wnids) - known)
        if foreign:
            raise DataError(
                f"{len(foreign)} classes of the test split ({foreign[0]}, ...) are not "
                f"in {printable(str(place))}: fetch that again."
            )
        return sorted(known)

    def _check(self, split: Split, place: Path, images: int, classes: int) -> None:
        official = SPLITS[split]
        if (images, classes) != (official.images, CLASSES):
            raise DataError(
                f"{printable(str(place))} has {images:,} images of {classes:,} "
                f"classes; ImageNet has {official.images:,} of {CLASSES:,} there. "
                "Fetch it again, or take what is there with --check none."
            )
        if self.check == "md5" and place.is_file():
            if (found := _md5(place)) != official.md5:
                raise DataError(
                    f"{printable(str(place))} has the MD5 {found}, and {official.md5} "
                    "was published: some of its bytes are others. Fetch it again."
                )


class Named:
    """`EncodedImages` whose caption is the name of their class."""

    def __init__(
        self, files: EncodedImages, labels: np.ndarray, names: tuple[str, ...]
    ):
        self._files, self._labels, self._names = files, labels, names
        self.name, self.origin, self.read = files.name, files.origin, files.read
        self.identity = files.identity

    def __len__(self) -> int:
        return len(self._files)

    def captions(self, index: int) -> tuple[str, ...]:
        """The name of the class."""
        return (self._names[self._labels[index]],)

    def listing(self) -> Iterator[str]:
        """The files, the classes and their names."""
        yield " ".join(self._names)
        yield hashlib.sha256(self._labels.tobytes()).hexdigest()
        yield from self._files.listing()


def _of_tars(parts: list[TarPart], workers: int) -> Images:
    files, wnids = list_tars(parts, workers)
    return Images(files, wnids, contiguous=True)


def _md5(path: Path) -> str:
    LOG.warning("Computing the MD5 of %s: minutes for each 100 GB.", path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
