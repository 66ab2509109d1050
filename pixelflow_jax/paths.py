"""Paths as users write them, and names as a terminal and a file of ours can hold them.

Names of files are bytes. Where they are not UTF-8 Python marks the odd bytes with lone
surrogates, which no terminal, JSON or msgpack takes: `portable` writes them out.
"""

import errno
import os
import re
import tempfile
from collections.abc import Collection
from pathlib import Path

from pixelflow_jax.errors import UserError

PATTERN = re.compile(r"[][*?\\]")  # what glob does not take for itself
SURROGATES = re.compile("[\ud800-\udfff]")
# Path("gs://bucket") has one slash left, which other names may have as well.
SCHEME = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]+)(?<=gs|s3|hf|az):/|([A-Za-z][A-Za-z0-9+.-]+)://"
)


def local_path(text: str | Path, what: str, error: type[UserError] = UserError) -> Path:
    """The path that `text` names on this machine, with "~" replaced.

    Raises `error` where it is empty or names a store such as gs://bucket; `what` is the
    flag or field that it was given as.
    """
    text = str(text)
    scheme = SCHEME.match(text)
    if scheme:
        raise error(
            f"{what} is {printable(text)!r}: {scheme[1] or scheme[2]}:// is neither "
            "read nor written here, but for weights and shards to read, which gs:// "
            "and s3:// may hold. Mount the bucket, or copy it, and give that path."
        )
    if not text.strip():
        raise error(f"{what} is empty: give it a path.")
    if "\0" in text:
        raise error(f"{what} is {text!r}: no path holds a zero byte. Correct it.")
    try:
        return Path(text).expanduser()
    except RuntimeError as unknown:
        raise error(
            f"{what} is {text!r}: there is no such user. Write the path out."
        ) from unknown


class PlainAlias:
    """Another name for a folder, for libraries that take its own for a pattern.

    `path` is the folder itself, or, where its name holds brackets and the like, a link
    to it, which is there for as long as this object is. Where some of what is in it is
    to be `hidden`, it is a folder of links to all else, to be read only.
    """

    def __init__(self, folder: Path, hidden: Collection[str] = ()):
        self.path = folder
        if not hidden and not PATTERN.search(str(folder)):
            return
        self._holder = tempfile.TemporaryDirectory(prefix="pixelflow_jax-")
        self.path = Path(self._holder.name, "link")
        if not hidden:
            self.path.symlink_to(folder, target_is_directory=True)
            return
        self.path.mkdir()
        for inside in folder.iterdir():
            if inside.name not in hidden:
                (self.path / inside.name).symlink_to(inside)


def check_writable(folder: Path) -> None:
    """Raises OSError unless a file can be written to a folder.

    By writing one, which leaves nothing: of a disk that takes no files, permissions say
    nothing, and to root they say yes.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"x")  # a full disk takes empty ones


def check_target(file: Path, error: type[UserError] = UserError) -> None:
    """Raises `error` unless a file can be written, before the work for it."""
    try:
        check_writable(file.absolute().parent)
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as problem:
        raise error(
            f"Cannot write {printable(str(file))} ({problem.strerror}): name a file in "
            "a folder that is there and that this user may write to."
        ) from problem


def portable(name: str) -> str:
    r"""A file's name as UTF-8, odd bytes as \xNN; other names stay as they are."""
    return SURROGATES.sub(lambda match: _escaped(match[0]), name)


def printable(text: str, keep: str = "") -> str:
    r"""Text for a terminal: control and odd characters as \x1b or \u2028.

    Escape sequences in the name of a class or file are shown, not obeyed. `keep` holds
    those that stay, such as the ends of lines.
    """
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python marks a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
