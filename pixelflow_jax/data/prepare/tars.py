"""WebDataset tars: each image beside its caption, under one key."""

import dataclasses
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pixelflow_jax.data.captions import clean, from_json, from_text
from pixelflow_jax.data.encoded import EncodedSource
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.source import Split, check_split, choose_split
from pixelflow_jax.errors import UnreadableImage

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tars:
    """Uncompressed tars of samples such as 0001.jpg with 0001.txt or 0001.json.

    `path` is a file, a folder or a pattern (see `files.find_files`). A .txt is one
    caption; a .json holds one or a list of them under `caption_key`, or else under
    "caption", "captions" or "text". Where both are there the .txt counts. A sample
    without an image, and what a damaged tar lost, count as one unreadable image each, a
    sample without a caption too, unless `allow_missing`. `holdout` is the share kept
    for the test split, by a hash of the key. Raises DataError.
    """

    path: str
    caption_key: str = ""
    allow_missing: bool = False
    holdout: float = 0.0

    def open(self, split: Split, image_size: int = 0) -> EncodedSource:
        """Opens one split; reads the headers of all tars."""
        check_split(split, self.holdout)
        samples = choose_split(
            (s for file in find_files(self.path, ".tar") for s in list_samples(file)),
            lambda sample: sample.key,
            split,
            self.holdout,
            nothing=f"{self.path} holds no samples",
        )
        images = TarImages(samples, self.caption_key)
        return EncodedSource(images, contiguous=True, allow_missing=self.allow_missing)


class Place(NamedTuple):
    """Where a member's bytes lie in its tar."""

    suffix: str
    offset: int
    size: int


@dataclasses.dataclass(kw_only=True)
class Sample:
    """One key of a tar; `damage` says why the tar ends with it, "" if it does not."""

    tar: Path
    key: str
    image: Place | None = None
    texts: dict[str, Place] = dataclasses.field(default_factory=dict)
    damage: str = ""


class TarImages:
    """The `EncodedImages` of samples, in their order."""

    def __init__(self, samples: list[Sample], caption_key: str):
        self._samples, self._caption_key = samples, caption_key

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        """The tar's name and the key."""
        sample = self._samples[index]
        return f"{sample.tar.name}:{sample.key}"

    def origin(self, index: int) -> str:
        """The tar."""
        return str(self._samples[index].tar)

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        sample = self._samples[index]
        if sample.damage:
            raise UnreadableImage(
                f"{sample.tar} is damaged ({sample.damage}); what follows its last "
                "whole sample is lost. Fetch it again."
            )
        if sample.image is None:
            raise UnreadableImage(
                f"{self.name(index)} has no image "
                f"({', '.join(IMAGES)}). Pack the tar again, or leave it out."
            )
        return _bytes(sample, sample.image)

    def captions(self, index: int) -> tuple[str, ...]:
        """That of the .txt, or those of the .json; NoCaption without both."""
        sample, name = self._samples[index], self.name(index)
        if "txt" in sample.texts:
            return clean([from_text(_bytes(sample, sample.texts["txt"]), name)], name)
        if "json" in sample.texts:
            content = _bytes(sample, sample.texts["json"])
            return from_json(content, name, self._caption_key)
        return clean([], name)

    def listing(self) -> Iterator[str]:
        """A line for each sample: tar, key, and where its image lies."""
        for sample in self._samples:
            yield f"{sample.tar.name} {sample.key} {sample.image} {sample.damage}"


def list_samples(file: Path) -> list[Sample]:
    """The samples of a tar by their keys, and one more that says it is damaged.

    A member's key is its path up to the first dot of its name, as in WebDataset.
    """
    samples: dict[str, Sample] = {}
    damage = ""
    try:
        with tarfile.open(file, "r:") as tar:
            whole = file.stat().st_size
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > whole:
                    damage = f"{member.name} is cut off"
                    break
                _add(samples, file, member)
    except (tarfile.TarError, OSError) as error:
        damage = str(error)
    lost = [Sample(tar=file, key="", damage=damage)] if damage else []
    return [*samples.values(), *lost]


def _add(samples: dict[str, Sample], file: Path, member: tarfile.TarInfo) -> None:
    folder, _, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    suffix = suffix.lower()
    key = f"{folder}/{stem}".lstrip("/")
    if suffix not in (*IMAGES, *TEXTS):
        return
    sample = samples.setdefault(key, Sample(tar=file, key=key))
    place = Place(suffix, member.offset_data, member.size)
    if suffix in TEXTS:
        sample.texts[suffix] = place
    else:
        sample.image = place


def _bytes(sample: Sample, place: Place) -> bytes:
    try:
        with sample.tar.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)
    except OSError as error:
        raise UnreadableImage(
            f"{sample.tar} cannot be read ({error.strerror}). Check that it is still "
            "there, and its permissions."
        ) from error
