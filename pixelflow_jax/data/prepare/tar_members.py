"""The members of a tar and what is lost of it: damage ends nothing, and is named.

A tar is read past its end mark, as `cat` joins several, and past blocks that are no
header. What lies between members is looked at: zeros are the end of one tar, anything
else is a member whose header was damaged.
"""

import errno
import os
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

BLOCK = tarfile.BLOCKSIZE
CHUNK = 2**20
MAX_HEADER = 2**20  # bytes of an extended header: the names of files, and no more
MAX_LOST = 100  # parts of one tar that are counted
MAX_NAME = 200  # characters of a name in a message
EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class Member(NamedTuple):
    """A file in a tar: its name, and where its bytes lie; -1 where they cannot be."""

    name: str
    offset: int
    size: int


class Lost(NamedTuple):
    """A part of a tar that cannot be read, and why."""

    reason: str


class _Header(tarfile.TarInfo):
    """A header that is not believed unseen, and that knows where it begins."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENDED and not 0 <= self.size <= MAX_HEADER:
            raise tarfile.ReadError(f"an extended header of {self.size:,} bytes")
        member = super()._proc_member(tar)  # pyright: ignore (made to be extended)
        member.offset = self.offset
        return member


def members(file: Path) -> Iterator[Member | Lost]:
    """What is in a tar, in its order, links as what they lead to.

    Of each part that is lost it says why, up to MAX_LOST of them. Raises OSError.
    """
    known: dict[str, Member] = {}
    ahead: list[tarfile.TarInfo] = []
    yield from _found(file, known, ahead)
    for header in reversed(ahead):  # one of them may lead to one behind it
        known[_name(header)] = _member(header, known)
    yield from (known[_name(header)] for header in ahead)


def _found(
    file: Path, known: dict[str, Member], ahead: list[tarfile.TarInfo]
) -> Iterator[Member | Lost]:
    """All but the links to what lies behind them, which are added to `ahead`."""
    whole, end, lost = file.stat().st_size, 0, 0
    with file.open("rb") as content, file.open("rb", buffering=0) as beside:
        tar: tarfile.TarFile | None = None
        start = _content_from(beside, 0, whole)
        while start < whole and lost < MAX_LOST:
            try:
                tar, header = _header(tar, content, start)
            except OSError:
                raise
            except Exception as error:  # a damaged header raises many types
                if not known and (kind := _compression(beside)):
                    yield Lost(f"it is compressed with {kind}")
                    return
                yield Lost(_brief(error))
                lost += 1
                end = start = start + BLOCK
                continue
            if header is None:
                break
            if _content_from(beside, end, header.offset) < header.offset:
                yield Lost(f"{header.offset - end:,} bytes at {end:,} are no header")
                lost += 1
            if header.size < 0 or (header.isreg() and _ends(header) > whole):
                yield Lost(f"{header.name[:MAX_NAME]} is cut off")
                return
            end, start = tar.offset, _content_from(beside, tar.offset, whole)
            if header.isfile() or header.islnk() or header.issym():
                member = _member(header, known)
                if member.offset < 0 and not header.isfile():
                    ahead.append(header)
                    continue
                known[member.name] = member
                yield member
        yield from _lost_at_end(beside, end, whole, empty=not known)


def _header(
    tar: tarfile.TarFile | None, content: BinaryIO, start: int
) -> tuple[tarfile.TarFile, tarfile.TarInfo | None]:
    """The next header from `start` on, in a tar that is opened for the first."""
    if tar is None:
        content.seek(start)
        options: Any = {"tarinfo": _Header, "ignore_zeros": True}
        tar = tarfile.TarFile(fileobj=content, mode="r", **options)
    else:
        tar.offset = start
    header = tar.next()
    tar.members.clear()  # pyright: ignore (it would keep all)
    return tar, header


def _ends(header: tarfile.TarInfo) -> int:
    """Where the bytes of a regular file end, unless it is stored with holes."""
    return header.offset_data + (0 if header.issparse() else header.size)


def _name(header: tarfile.TarInfo) -> str:
    """A member's name, the same with and without a folder of "./" before it."""
    return posixpath.normpath(header.name)


def _member(header: tarfile.TarInfo, known: dict[str, Member]) -> Member:
    if header.isreg() and not header.issparse():
        return Member(_name(header), header.offset_data, header.size)
    target = header.linkname
    if header.issym():
        target = posixpath.join(posixpath.dirname(header.name), target)
    found = known.get(posixpath.normpath(target))
    return Member(_name(header), *(found[1:] if found else (-1, 0)))


def _lost_at_end(
    content: BinaryIO, end: int, whole: int, empty: bool
) -> Iterator[Lost]:
    """What is wrong behind the last member: a whole tar ends with blocks of zeros."""
    if not whole:
        yield Lost("empty file")
    elif _content_from(content, end, whole) < whole:
        if empty:
            kind = _compression(content)
            yield Lost(f"it is compressed with {kind}" if kind else "it is no tar")
        else:
            yield Lost(f"{whole - end:,} bytes at its end are no header, cut off")
    elif whole - end < BLOCK:
        yield Lost("it has no end mark, so it was cut off")


def _compression(content: BinaryIO) -> str:
    """How a file is compressed, by its first bytes; "" where it is not."""
    content.seek(0)
    start = content.read(8)
    return next((k for magic, k in MAGIC.items() if start.startswith(magic)), "")


def _content_from(content: BinaryIO, start: int, end: int) -> int:
    """The first block, from `start` to `end`, that holds more than zeros, or `end`.

    `content` is not buffered, as holes are looked for behind Python's back.
    """
    content.seek(start)
    size = BLOCK  # most often the first one does
    while start < end:
        part = content.read(min(size, end - start))
        if part != bytes(len(part)):
            zeros = len(part) - len(part.lstrip(b"\0"))
            return start + zeros // BLOCK * BLOCK
        start = _behind_hole(content, start + max(len(part), 1), end)
        content.seek(start)
        size = CHUNK
    return end


def _behind_hole(content: BinaryIO, start: int, end: int) -> int:
    """Where something is stored from `start` on: a sparse file may claim terabytes."""
    if not hasattr(os, "SEEK_DATA"):
        return start
    try:
        found = os.lseek(content.fileno(), start, os.SEEK_DATA)
    except OSError as error:  # nothing is, or the file system cannot say
        return end if error.errno == errno.ENXIO else start
    return min(max(start, found // BLOCK * BLOCK), end)


def _brief(error: Exception) -> str:
    return f"{error or type(error).__name__}"[:MAX_NAME]
