"""Files named by a path, a folder, a glob pattern, or numbers in braces."""

import glob
import logging
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from pixelflow_jax.errors import DataError
from pixelflow_jax.paths import local_path, printable

LOG = logging.getLogger(__name__)
# What compressed tars are called; they have no random access.
COMPRESSED = re.compile(r"\.(tar\.\w+|tgz|tbz2?|txz|tzst|zip)$", re.IGNORECASE)
MAX_ALTERNATIVES = 1_000_000  # files that braces may stand for
SHOWN = 3


def find_files(pattern: str, suffix: str) -> list[Path]:
    """The files of that suffix that `pattern` names, sorted, each real file once.

    A folder stands for all files in it and below, in capitals as well;
    "a{000..012}.tar" and "{a,b}.tar" stand for each of them; a file or folder that
    has brackets in its name is itself. Compressed tars in a folder are left out with a
    warning. Raises DataError where there is none, or one is absent.
    """
    paths: list[Path] = []
    compressed: list[Path] = []
    whole = str(local_path(pattern, f"The path of {suffix} files", DataError))
    known, rest = _known(whole)
    for ending in _alternatives(rest):
        name = known + ending
        path = Path(name)
        if path.is_dir():
            below = [path / file for file in _below(path)]
            paths += [file for file in below if file.suffix.lower() == suffix]
            compressed += [file for file in below if COMPRESSED.search(file.name)]
        elif path.is_file():
            paths.append(path)
        else:
            pattern_below = glob.escape(known) + ending
            matches = [Path(m) for m in glob.glob(pattern_below, recursive=True)]
            if not matches:
                raise DataError(
                    f"There is no file {printable(name)!r}: give a file, a folder, a "
                    f"pattern such as 'data/*{suffix}' or numbers such as "
                    f"'data/{{000..012}}{suffix}', in quotes."
                )
            paths += matches
    files = _once(path for path in sorted(paths) if path.is_file())
    named = _named(compressed) if suffix == ".tar" else ""
    if not files:
        raise DataError(
            f"{printable(pattern)!r} holds no {suffix} files: "
            + (f"unpack what is compressed: {named}." if named else "correct the path.")
        )
    if named:
        LOG.warning("Compressed tars are left out, gunzip them first: %s.", named)
    return files


def read_whole(path: str | Path, most: int, limit: str = "") -> bytes:
    """The content of a file; OSError where it is none, or has more than `most` bytes.

    `limit` is the field that says so, for the message.
    A pipe by the name of a file would otherwise be waited for, for ever.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is a pipe, socket, device or folder")
    if found.st_size > most:
        reason = f", for {limit}" if limit else ""
        raise OSError(f"it has {found.st_size:,} bytes, above {most:,}{reason}")
    with open(path, "rb") as file:
        return file.read()


def _below(folder: Path) -> Iterator[str]:
    """All files below a folder, relative to it; links to folders are not followed."""
    for place, _, names in os.walk(folder):
        relative = os.path.relpath(place, folder)
        yield from (os.path.join(relative, name) for name in names)


def _once(paths: Iterable[Path]) -> list[Path]:
    """Leaves out what is the same real file under another name."""
    real: dict[str, Path] = {}
    for path in paths:
        real.setdefault(os.path.realpath(path), path)
    return sorted(real.values())


def _known(pattern: str) -> tuple[str, str]:
    """The part of a pattern that is there as it is written, and what is left of it.

    So brackets and braces in the name of an outer folder are no pattern.
    """
    if os.path.exists(pattern):
        return pattern, ""
    known, rest = "", pattern
    while "/" in rest:
        head, _, tail = rest.partition("/")
        if not os.path.isdir(f"{known}{head}/"):
            break
        known, rest = f"{known}{head}/", tail
    return known, rest


def _named(files: list[Path]) -> str:
    names = ", ".join(printable(file.name) for file in sorted(files)[:SHOWN])
    return f"{len(files)} ({names})" if files else ""


def _alternatives(pattern: str) -> list[str]:
    """The names that braces stand for; the pattern alone where it has none."""
    brace = re.search(r"\{([^{}]*)\}", pattern)
    if brace is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", brace[1])
    if numbers:
        first, last = numbers.groups()
        if int(last) - int(first) >= MAX_ALTERNATIVES:
            raise DataError(
                f"{{{brace[1]}}} stands for more than {MAX_ALTERNATIVES:,} files: "
                "correct the numbers, or give a pattern with *."
            )
        middles = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        middles = brace[1].split(",")
    before, after = pattern[: brace.start()], pattern[brace.end() :]
    return [
        name for middle in middles for name in _alternatives(before + middle + after)
    ]
