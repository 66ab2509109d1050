"""Tars in a tar, one for each class, as ImageNet is published."""

import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pixelflow_jax.data.decoding import MAX_FILE_BYTES
from pixelflow_jax.data.prepare.processes import run_tasks
from pixelflow_jax.data.prepare.tar_members import Lost, Member, members
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.paths import printable

END = 2 * tarfile.RECORDSIZE  # bytes of zeros that may end a tar


class TarPart(NamedTuple):
    """A tar: a file, or a part of one; and the class of its images, where it has one.

    `size` -1: to the end.
    """

    file: Path
    wnid: str = ""
    offset: int = 0
    size: int = -1


Found = tuple[TarPart, list[Member]]


class TarFiles:
    """The `EncodedImages` in tars, by offset and size, sorted by class and place."""

    def __init__(self, tars: Sequence[Path], found: Sequence[Found]):
        self._tars = list(tars)
        places = {tar: number for number, tar in enumerate(tars)}
        numbers = [places[part.file] for part, members in found for _ in members]
        every = [member for _, members in found for member in members]
        self._numbers = np.array(numbers, np.int32)
        self._places = np.array([(m.offset, m.size) for m in every], np.int64)
        self._names = np.array([os.fsencode(m.name) for m in every])

    def __len__(self) -> int:
        return len(self._numbers)

    def name(self, index: int) -> str:
        """The name in the tar, such as n01440764_10026.JPEG."""
        return os.fsdecode(bytes(self._names[index]))

    def origin(self, index: int) -> str:
        """The tar."""
        return str(self._tars[self._numbers[index]])

    def read(self, index: int) -> bytes:
        """The file as it is; UnreadableImage where it cannot be read."""
        offset, size = map(int, self._places[index])
        if not 0 <= size <= MAX_FILE_BYTES:
            raise UnreadableImage(f"{printable(self.name(index))} has {size:,} bytes.")
        try:
            with open(self.origin(index), "rb") as tar:
                tar.seek(offset)
                return tar.read(size)
        except OSError as error:
            raise UnreadableImage(
                f"{self.origin(index)} cannot be read ({error.strerror or error})."
            ) from error

    def captions(self, index: int) -> tuple[str, ...]:
        """None: classes have names, their images are called by them."""
        return ("",)

    def listing(self) -> Iterator[str]:
        """A line for each image: its name, where it lies, how long it is."""
        for index in range(len(self)):
            offset, size = self._places[index]
            yield f"{self.name(index)} {offset} {size}"

    def identity(self) -> Iterator[str]:
        """The same: all headers were read already."""
        return self.listing()


def list_tars(parts: Sequence[TarPart], workers: int) -> tuple[TarFiles, list[str]]:
    """All files in tars, by class, in the order in which they lie there; their classes.

    Raises DataError where a tar is damaged.
    """
    found = sorted(run_tasks(_list_tar, parts, workers), key=lambda one: one[0])
    files = TarFiles(sorted({part.file for part in parts}), found)
    return files, [part.wnid for part, inside in found for _ in inside]


def inner_tars(outer: Path, pattern: re.Pattern) -> list[TarPart]:
    """The tars in a tar whose names, without suffix, are classes by `pattern`.

    Raises DataError where the outer one is damaged or has none.
    """
    found = list(members(outer))
    lost = [part.reason for part in found if isinstance(part, Lost)]
    if lost:
        raise DataError(
            f"{printable(str(outer))} is damaged ({printable(lost[0])}): fetch it "
            "again."
        )
    parts = []
    for member in found:
        if isinstance(member, Member):
            name = Path(member.name)
            if name.suffix == ".tar" and pattern.fullmatch(name.stem):
                parts.append(TarPart(outer, name.stem, member.offset, member.size))
    if not parts:
        raise DataError(
            f"{printable(str(outer))} holds no tars of classes (n01440764.tar, ...): "
            "it is not the published one, fetch it again."
        )
    return parts


def _list_tar(part: TarPart) -> Found:
    """The images of one tar, with their places in its file; DataError for damage."""
    inside = []
    try:
        with part.file.open("rb") as file:
            whole = part.file.stat().st_size if part.size < 0 else part.size
            window = io.BufferedReader(_Window(file, part.offset, whole))
            with tarfile.open(fileobj=window, mode="r:") as tar:
                for header in tar:
                    name = Path(header.name).name
                    if header.isfile() and not name.startswith("."):
                        offset = part.offset + header.offset_data
                        inside.append(Member(name, offset, header.size))
                    tar.members.clear()  # pyright: ignore (it would keep all)
                # A damaged header ends a tar as its end does, which is zeros.
                window.seek(min(tar.offset, whole))
                left, rest = whole - tar.offset, window.read(END)
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(part, f"{error}") from error
    if left > END or left < 0 or any(rest):
        raise _damaged(part, f"{left:,} bytes behind its end")
    return part, inside


def _damaged(part: TarPart, reason: str) -> DataError:
    inner = f" in {part.file.name}" if part.size >= 0 else ""
    name = f"{part.wnid}.tar" if inner else str(part.file)
    return DataError(f"{printable(name)}{inner} is damaged ({reason}): fetch it again.")


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: io.BufferedReader, start: int, size: int):
        self._file, self._start, self._size, self._at = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
        self._at = base[whence] + offset
        return self._at

    def readinto(self, buffer) -> int:
        self._file.seek(self._start + self._at)
        left = max(0, self._size - self._at)
        content = self._file.read(min(len(buffer), left))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
