"""WebDataset tars: each image beside its caption, under one key."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pixelflow_jax.data.captions import (
    MAX_CAPTION,
    check_length,
    clean,
    first_readable,
    from_json,
    from_text,
    most_bytes,
)
from pixelflow_jax.data.decoding import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    OTHER_SUFFIXES,
    SUFFIXES,
)
from pixelflow_jax.data.encoded import EncodedSource, say_first_frames
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.limits import Limits
from pixelflow_jax.data.prepare.tar_members import Lost, Member, members
from pixelflow_jax.data.source import Split, check_split, choose_split
from pixelflow_jax.errors import UnreadableImage
from pixelflow_jax.paths import portable, printable

LOG = logging.getLogger(__name__)
IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
FOREIGN = frozenset(suffix[1:] for suffix in OTHER_SUFFIXES)
TEXTS = ("txt", "json")
SHOWN = 3  # names that a message lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tars:
    """Uncompressed tars of samples such as 0001.jpg with 0001.txt or 0001.json.

    `path` is a file, a folder or a pattern (see `files.find_files`). A .txt is one
    caption; a .json holds one or a list of them under `caption_key`, or else under
    "caption", "captions" or "text". Where both are there the .txt counts, unless it is
    empty. A sample without an image, a second image of one key, and each part that a
    damaged tar lost count as one unreadable image, a sample without a caption too,
    unless `allow_missing`, or one above `max_pixels` or `max_caption` (characters).
    `holdout` is the share kept for the test split, by a hash of the key. Raises
    DataError.
    """

    path: str
    caption_key: str = ""
    allow_missing: bool = False
    holdout: float = 0.0
    max_pixels: int = MAX_PIXELS
    max_caption: int = MAX_CAPTION

    def open(self, split: Split, image_size: int = 0) -> EncodedSource:
        """Opens one split; reads the headers of all tars."""
        check_split(split, self.holdout)
        limits = Limits(max_pixels=self.max_pixels, max_caption=self.max_caption)
        samples = choose_split(
            (s for file in find_files(self.path, ".tar") for s in list_samples(file)),
            lambda sample: sample.key,
            split,
            self.holdout,
            nothing=f"{self.path} holds no samples",
        )
        say_first_frames([s.name for s in samples if s.image and s.image.is_gif])
        return EncodedSource(
            TarImages(samples, self.caption_key, limits),
            contiguous=True,
            allow_missing=self.allow_missing,
            limits=limits,
        )


class Place(NamedTuple):
    """Where a member's bytes lie in its tar."""

    suffix: str
    offset: int
    size: int

    @property
    def is_gif(self) -> bool:
        """Whether it may have more frames than one."""
        return self.suffix == "gif"


@dataclasses.dataclass(kw_only=True)
class Sample:
    """One key of a tar; or what is lost of it, where `damage` says what and why.

    `foreign` is the suffix of an image beside it that is not read.
    """

    tar: Path
    key: str
    image: Place | None = None
    texts: dict[str, Place] = dataclasses.field(default_factory=dict)
    foreign: str = ""
    damage: str = ""

    @property
    def name(self) -> str:
        """The tar's name and the key, as logs and messages have them."""
        return portable(f"{self.tar.name}:{self.key}")


class TarImages:
    """The `EncodedImages` of samples, in their order."""

    def __init__(self, samples: list[Sample], caption_key: str, limits: Limits):
        self._samples, self._caption_key = samples, caption_key
        self._limits = limits

    def __len__(self) -> int:
        return len(self._samples)

    def name(self, index: int) -> str:
        """The tar's name and the key."""
        return self._samples[index].name

    def origin(self, index: int) -> str:
        """The tar."""
        return portable(str(self._samples[index].tar))

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        sample = self._samples[index]
        if sample.damage:
            raise UnreadableImage(sample.damage)
        if sample.image is None:
            is_there = f"only a .{sample.foreign}" if sample.foreign else "no image"
            raise UnreadableImage(
                f"{sample.name} has {is_there} ({', '.join(IMAGES)}). Pack the tar "
                "again, or leave it out."
            )
        return _bytes(sample, sample.image, MAX_FILE_BYTES)

    def captions(self, index: int) -> tuple[str, ...]:
        """That of the .txt, or those of the .json; NoCaption without both."""
        sample = self._samples[index]
        reads: dict[str, Callable] = {"txt": self._from_txt, "json": self._from_json}
        there = [reads[suffix] for suffix in TEXTS if suffix in sample.texts]
        if not there:
            return clean([], sample.name)
        return first_readable(functools.partial(read, sample) for read in there)

    def _from_txt(self, sample: Sample) -> tuple[str, ...]:
        text = from_text(self._text(sample, "txt"), sample.name)
        return clean([text], sample.name, self._limits.max_caption)

    def _from_json(self, sample: Sample) -> tuple[str, ...]:
        return from_json(
            self._text(sample, "json"),
            sample.name,
            self._caption_key,
            self._limits.max_caption,
        )

    def _text(self, sample: Sample, suffix: str) -> bytes:
        most = most_bytes(self._limits.max_caption)
        if sample.texts[suffix].size > most:
            size = sample.texts[suffix].size
            check_length(size, sample.name, self._limits.max_caption)
        return _bytes(sample, sample.texts[suffix], most)

    def listing(self) -> Iterator[str]:
        """A line for each sample: tar, key, and where its image lies."""
        for sample in self._samples:
            yield f"{sample.tar.name} {sample.key} {sample.image} {sample.damage}"


def list_samples(file: Path) -> list[Sample]:
    """The samples of a tar by their keys, and one more for each part that is lost.

    A member's key is its path up to the first dot of its name, as in WebDataset; up to
    the last dot, where that makes an image of its own: see `_Names`. An image whose key
    has one already is lost as well.
    """
    try:
        found = list(members(file))
    except OSError as error:
        found = [Lost(f"{error.strerror or error}")]
    visible = [m for m in found if isinstance(m, Member) and not _is_hidden(m.name)]
    names = _Names(visible)
    samples: dict[str, Sample] = {}
    lost = [_damaged(file, part) for part in found if isinstance(part, Lost)]
    for member in visible:
        key, suffix = names.split(member.name)
        if suffix in IMAGES or suffix in TEXTS or suffix in FOREIGN:
            sample = samples.setdefault(key, Sample(tar=file, key=key))
            lost += _add(sample, suffix, member)
    if names.fields:
        LOG.warning("Left out of %s, beside other images: %s.", file, names.fields)
    return [*samples.values(), *lost]


class _Names:
    """How the names of one tar's members are split into key and suffix.

    "22.05.png" is an image called 22.05, unless the tar has an image called 22 and no
    text called 22.05: then "05.png" is more that belongs to 22, a mask for one, and
    `fields` counts it.
    """

    def __init__(self, found: list[Member]):
        self._images: set[str] = set()
        self._texts: set[str] = set()
        self._dotted: set[str] = set()
        self._number, self._first = 0, ""
        for member in found:
            first, suffix = _at_first_dot(member.name)
            last, _, final = member.name.rpartition(".")
            if suffix in IMAGES:
                self._images.add(first)
            elif final.lower() in IMAGES and suffix != final:
                self._dotted.add(last)
            elif final.lower() in TEXTS:
                self._texts.add(last)

    def split(self, name: str) -> tuple[str, str]:
        """Key and suffix of a member, the suffix in small letters."""
        first, suffix = _at_first_dot(name)
        last, _, final = name.rpartition(".")
        final = final.lower()
        if "." not in suffix or final not in (*IMAGES, *TEXTS):
            return first, suffix
        alone = last in self._dotted and (
            first not in self._images or last in self._texts
        )
        if alone:
            return last.lstrip("/"), final
        if final in IMAGES:
            self._number += 1
            self._first = self._first or name
        return first, suffix

    @property
    def fields(self) -> str:
        """How many images belong to others, and the first; "" without any."""
        return f"{self._number} ({printable(self._first)})" if self._number else ""


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _at_first_dot(name: str) -> tuple[str, str]:
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}".lstrip("/"), suffix.lower()


def _damaged(file: Path, part: Lost) -> Sample:
    fault = (
        f"{printable(str(file))} is damaged ({printable(part.reason)}); what lay there "
        "is lost. Fetch it again."
    )
    return Sample(tar=file, key="", damage=fault)


def _add(sample: Sample, suffix: str, member: Member) -> list[Sample]:
    """Gives a sample its image or text; what is there already stays, and counts."""
    place = Place(suffix, member.offset, member.size)
    if suffix in TEXTS:
        sample.texts.setdefault(suffix, place)
    elif suffix in FOREIGN:
        sample.foreign = sample.foreign or suffix
    elif sample.image is None:
        sample.image = place
    else:
        fault = (
            f"{sample.name} has an image twice (.{sample.image.suffix} and .{suffix}): "
            "the first is taken. Pack the tar again with other names."
        )
        return [Sample(tar=sample.tar, key="", damage=fault)]
    return []


def _bytes(sample: Sample, place: Place, most: int) -> bytes:
    if place.offset < 0:
        raise UnreadableImage(
            f"The .{place.suffix} of {sample.name} is a link to nothing, or has holes. "
            "Pack the tar again with the files themselves."
        )
    if place.size > most:
        raise UnreadableImage(
            f"The .{place.suffix} of {sample.name} has {place.size:,} bytes, above "
            f"{most:,}. Leave it out."
        )
    try:
        with sample.tar.open("rb") as file:
            file.seek(place.offset)
            return file.read(place.size)
    except OSError as error:
        raise UnreadableImage(
            f"{sample.tar} cannot be read ({error.strerror}). Check that it is still "
            "there, and its permissions."
        ) from error
