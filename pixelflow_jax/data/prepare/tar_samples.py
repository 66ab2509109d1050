"""How the members of a tar make samples: an image and its texts under one key."""

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

from pixelflow_jax.data.decoding import OTHER_SUFFIXES, SUFFIXES
from pixelflow_jax.data.prepare.tar_members import Lost, Member, members
from pixelflow_jax.paths import portable, printable

LOG = logging.getLogger(__name__)
IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
FOREIGN = frozenset(suffix[1:] for suffix in OTHER_SUFFIXES)
TEXTS = ("txt", "json")


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
