"""What lies in a folder of images: its images, and all that is left out, by name.

Every real folder is listed once, so links that lead back multiply nothing. Nothing is
opened, and files are not asked for more than the folder itself says of them, which
matters for millions of files on a network disk.
"""

import collections
import dataclasses
import os
import stat
from pathlib import Path

from pixelflow_jax.data.decoding import OTHER_SUFFIXES, SUFFIXES
from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import printable

TEXT = ".txt"
# What lies beside images on purpose, or is put there by systems: not worth a word.
COMPANIONS = frozenset(
    ".txt .json .jsonl .csv .tsv .md .rst .xml .yaml .yml .html .caption .npy .npz .pt "
    ".pkl .array_record .safetensors .parquet .db .ini .log .py .sh .toml .cls".split()
)
SHOWN = 3  # names of each kind that a message lists


@dataclasses.dataclass(kw_only=True)
class Kept:
    """How many there are of a kind, and the first few by name."""

    count: int = 0
    names: list[str] = dataclasses.field(default_factory=list)

    def add(self, name: str) -> None:
        """Counts one more."""
        self.count += 1
        if len(self.names) < SHOWN:
            self.names.append(name)

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.names) else ""
        return f"{self.count} ({', '.join(map(printable, self.names))}{more})"


@dataclasses.dataclass(kw_only=True)
class Listing:
    """The images below a folder, as sorted relative paths with forward slashes.

    `has_texts` says whether there are files of captions, and `texts` are those that are
    not called .txt in small letters, by their path without suffix. `left_out` counts
    files that are not read by what they are, and `foreign` images among them by the
    first folder of their path.
    """

    images: list[str] = dataclasses.field(default_factory=list)
    has_texts: bool = False
    texts: dict[str, str] = dataclasses.field(default_factory=dict)
    left_out: dict[str, Kept] = dataclasses.field(default_factory=dict)
    foreign: dict[str, Kept] = dataclasses.field(default_factory=dict)

    def leave_out(self, kind: str, name: str) -> None:
        """Counts a file or folder that is not read."""
        self.left_out.setdefault(kind, Kept()).add(name)

    def file(self, relative: str, regular: bool) -> None:
        """Sorts one file in; `regular`: neither a pipe nor a socket nor a device."""
        stem, suffix = os.path.splitext(relative)
        kind = suffix.lower()
        if not regular:
            self.leave_out("pipes, sockets or devices", relative)
        elif kind in SUFFIXES:
            self.images.append(relative)
        elif kind == TEXT:
            self.has_texts = True
            if suffix != TEXT:
                self.texts[stem] = relative
        elif kind not in COMPANIONS:
            self.leave_out(f"{kind or 'without suffix'}", relative)
            if kind in OTHER_SUFFIXES:
                top = relative.partition("/")[0] if "/" in relative else ""
                self.foreign.setdefault(top, Kept()).add(relative)

    def summary(self) -> str:
        """What is left out, in a line; "" where nothing is."""
        kinds = sorted(self.left_out.items(), key=lambda item: -item[1].count)
        return "; ".join(f"{printable(kind)}: {kept}" for kind, kept in kinds)


def list_folder(root: Path, *, alias_classes: bool) -> Listing:
    """All that lies below a folder; hidden files and folders are passed over.

    Links to folders are followed, each real folder once, where it really lies if that
    is below `root`. With `alias_classes` a link directly in `root` is a class of its
    own, even to a folder that another class has. Raises DataError where the folder is
    missing, is a file, or holds no image.
    """
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"The image folder {printable(str(root))!r} {state}: set path to a folder "
            "of images."
        )
    listing = _Walk(root, alias_classes).run()
    if not listing.images:
        others = listing.summary()
        found = f" What is there: {others}." if others else ""
        raise DataError(
            f"{printable(str(root))} holds no images ({', '.join(SUFFIXES)}), or they "
            f"cannot be listed: check the path and its permissions.{found}"
        )
    listing.images.sort()
    return listing


class _Walk:
    """One walk through a folder: real folders first, then where links lead."""

    def __init__(self, root: Path, alias_classes: bool):
        self._root, self._alias_classes = str(root), alias_classes
        self._real_root = os.path.realpath(root)
        self._seen: set[str] = set()
        self._links: collections.deque[str] = collections.deque()
        self._listing = Listing()

    def run(self) -> Listing:
        self._tree("", self._real_root, self._seen)
        while self._links:
            self._follow(self._links.popleft())
        return self._listing

    def _follow(self, link: str) -> None:
        """Walks through what a link leads to, unless that was or will be listed."""
        real = os.path.realpath(os.path.join(self._root, link))
        above = _is_inside(self._real_root, real)
        if above or (real in self._seen and not self._is_class(link)):
            self._listing.leave_out("links to folders that are listed already", link)
        elif self._is_class(link):
            own: set[str] = set()
            self._tree(link, real, own)
            self._seen |= own
        else:
            self._tree(link, real, self._seen)

    def _is_class(self, link: str) -> bool:
        return self._alias_classes and "/" not in link

    def _tree(self, relative: str, real: str, seen: set[str]) -> None:
        """Lists a folder and the real folders in it; remembers its links for later."""
        folders = [(relative, real)]
        links = []
        while folders:
            relative, real = folders.pop()
            if real in seen:
                continue
            seen.add(real)
            for entry in self._entries(relative):
                path = f"{relative}/{entry.name}" if relative else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append((path, os.path.join(real, entry.name)))
                elif entry.is_symlink() and entry.is_dir():
                    links.append(path)
                else:
                    self._listing.file(path, _is_regular(entry))
        self._links.extend(sorted(links))

    def _entries(self, relative: str) -> list[os.DirEntry]:
        try:
            with os.scandir(os.path.join(self._root, relative)) as entries:
                return [entry for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            self._listing.leave_out(
                f"folders that cannot be listed ({error.strerror})",
                relative or self._root,
            )
            return []


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_regular(entry: os.DirEntry) -> bool:
    """A file, or a link to nothing: that is named when it is read."""
    if entry.is_file():
        return True
    if not entry.is_symlink():
        return False
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True
