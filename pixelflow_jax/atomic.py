"""Files that appear whole or not at all: the one place that moves them into place."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

PARTIAL = ".partial"


@contextlib.contextmanager
def atomic_write(
    path: Path, *, sync: bool = True, shared: bool = False
) -> Iterator[Path]:
    """The path of a partial file, which becomes `path` where the block succeeds.

    Where it fails the partial file is removed, and what lay at `path` stays. A killed
    process leaves its partial file to the next writer of the same path, unless another
    process may be writing it at the same time (`shared`): then each has its own, which
    `partials` finds. `sync` waits until the disk has the content, so that a loss of
    power leaves no empty file; leave it out where many files are cheap to make again.
    """
    own = f".{os.getpid()}" if shared else ""
    partial = path.with_name(f".{path.name}{own}{PARTIAL}")
    try:
        yield partial
        if sync:
            _sync(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_files(
    folder: Path, *, last: str, optional: Sequence[str] = ()
) -> Iterator[Path]:
    """A partial folder, whose files move to `folder` where the block succeeds.

    Where it fails all stays as it was. The file called `last` is removed first and
    moved last: a folder that was cut short has none, so readers that ask for it refuse
    the folder. `optional` files that the block did not write are removed as well; other
    files of the folder stay.
    """
    folder = folder.absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir()
    try:
        yield partial
        files = sorted(partial.iterdir(), key=lambda file: file.name == last)
        for file in files:
            _sync(file)
        new = []
        for stale in (last, *optional):
            (folder / stale).unlink(missing_ok=True)
        for file in files:
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for path in new:
            path.rmdir()


def partials(folder: Path, pattern: str) -> list[Path]:
    """The partial files that killed processes left for names of that glob pattern."""
    return list(folder.glob(f".{pattern}{PARTIAL}"))


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def set_aside(path: Path, name: str) -> Path:
    """Rename a file or folder to `name`, or name-2 and so on; returns its new path."""
    target, number = path.with_name(name), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{name}-{number}")
    os.rename(path, target)
    return target
