"""Digests of a checkpoint's files, and what to do where they do not agree.

A bit that flips on a disk is restored as another number, without a word. So each
checkpoint holds digests.json: the size and digest of each of its files, written before
the checkpoint is committed. It is read before anything else of it is.

The digest is BLAKE2b over the CRC-32 of each block of 16 MiB. It is for accidents: all
of one or two bits in a block are seen, larger ones but for one in 2^32. BLAKE2b over
all bytes would take five times as long, a fifth of what the save does.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Literal

from pixelflow_jax.atomic import atomic_write, set_aside
from pixelflow_jax.errors import CheckpointError

NAME = "digests.json"
METADATA = "_CHECKPOINT_METADATA"  # Orbax's, in every checkpoint
LATE = "commit_timestamp_nsecs"  # what is added to it when the digests are written
# In that metadata: this checkpoint was written with digests.
MARK = {"digests": "crc32-blake2b"}
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is being written
DAMAGED = "damaged-"  # before the step, in the name of one that was set aside
BLOCK = 1 << 24  # bytes that are hashed at once: large files are shared by threads
PART = 1 << 18  # bytes that are read at once: they stay in the cache
THREADS = 8
SHOWN = 3  # files in a message

State = Literal["good", "damaged", "without digests"]
Digests = dict[str, tuple[int, str]]  # by path inside the checkpoint: size and digest


@dataclasses.dataclass(frozen=True)
class Finding:
    """How a checkpoint is, and what is wrong with which files."""

    state: State
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = len(self.problems) - SHOWN
        shown = [*self.problems[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
        return f"{self.state}: {', '.join(shown)}" if shown else self.state


def write(folder: pathlib.Path) -> None:
    """Write the digests of all files in `folder` into it."""
    names = sorted(name for name in _files(folder) if name != NAME)
    digests = dict(zip(names, _hashed(folder, names), strict=True))
    content = {"files": digests, "digest": _of_digests(digests)}
    with atomic_write(folder / NAME) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def examine(folder: pathlib.Path) -> Finding:
    """Read all files of a checkpoint and compare them with their digests.

    Files that no digest is of do not count. A checkpoint of an earlier version is
    "without digests".
    """
    digests = _read(folder)
    if digests is None:
        if _marked(folder):
            return Finding("damaged", (f"{NAME} is absent or not what was written",))
        return Finding("without digests")
    sizes = _files(folder)
    problems = {}
    for name, (size, _) in digests.items():
        if name not in sizes:
            problems[name] = f"{name} is absent"
        elif sizes[name][0] != size and name != METADATA:
            problems[name] = f"{name} has {sizes[name][0]} of {size} bytes"
    whole = [name for name in digests if name not in problems]
    for name, (_, digest) in zip(whole, _hashed(folder, whole), strict=True):
        if digest != digests[name][1]:
            problems[name] = f"{name} holds other bytes than were written"
    if not problems:
        return Finding("good")
    return Finding("damaged", tuple(problems[name] for name in sorted(problems)))


def examined(folder: pathlib.Path) -> Finding:
    """`examine`, once for a checkpoint whose files have not changed since."""
    return _examined(folder, tuple(sorted(_files(folder).items())))


@functools.lru_cache(maxsize=64)
def _examined(folder: pathlib.Path, _files: tuple) -> Finding:
    return examine(folder)


def newest(directory: pathlib.Path, steps: Iterable[int], aside: bool) -> int | None:
    """The newest step whose checkpoint is not damaged; None where there is none.

    Says what it passes over, and renames that to damaged-STEP where `aside`. Raises
    CheckpointError where all are damaged, or the newest has another name than its step.
    """
    latest_first = sorted(steps, reverse=True)
    _check_names(directory, latest_first[0] if latest_first else -1)
    passed: dict[int, Finding] = {}
    for step in latest_first:
        finding = examined(directory / str(step))
        if finding.state != "damaged":
            break
        passed[step] = finding
    else:
        if passed:
            step = latest_first[0]
            raise CheckpointError(unreadable(directory / str(step), passed[step], ()))
        return None
    for bad, finding in passed.items():
        text = f"The checkpoint {directory}/{bad} is {finding}. Step {step} is taken"
        if aside:
            kept = set_aside(directory / str(bad), f"{DAMAGED}{bad}")
            text += f"; the damaged one is kept as {kept.name}"
        _say(f"{text}.")
    return step


def unreadable(folder: pathlib.Path, finding: Finding, earlier: Iterable[int]) -> str:
    """What to say of a damaged checkpoint, and that deleting it leads to `earlier`."""
    least = max(earlier, default=None)
    instead = "begin anew" if least is None else f"go on from step {least}"
    return (
        f"The checkpoint {folder} cannot be read: it is {finding}. Restore it from a "
        f"copy, or delete that folder to {instead}."
    )


def remove_unfinished(directory: pathlib.Path) -> None:
    """Remove what interrupted saves have left, and say so."""
    for folder in unfinished(directory):
        shutil.rmtree(folder, ignore_errors=True)
        _say(f"Removed {folder}, which an interrupted save had left.")


def unfinished(directory: pathlib.Path) -> list[pathlib.Path]:
    """The folders of saves that are not complete."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if UNFINISHED in path.name)


def checkpoints(directory: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints, by step, and then those that were set aside."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if path.is_dir()]
    steps = [path for path in found if _is_step(path.name)]
    aside = [path for path in found if path.name.startswith(DAMAGED)]
    return [*sorted(steps, key=lambda path: int(path.name)), *sorted(aside)]


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name


def _check_names(directory: pathlib.Path, latest: int) -> None:
    """Raises CheckpointError for a later checkpoint whose folder was renamed."""
    if not directory.is_dir():
        return
    for path in sorted(directory.iterdir()):
        number = re.fullmatch(r"[^\d.]*0*(\d{1,18})", path.name, re.ASCII)
        later = number and int(number[1]) > latest and not _is_step(path.name)
        aside = path.name.startswith(DAMAGED)
        if number and later and not aside and (path / METADATA).is_file():
            raise CheckpointError(
                f"{path} looks like the checkpoint of step {number[1]} under another "
                f"name, and is newer than all others. Rename it to {number[1]} to go "
                "on from it, or move it elsewhere."
            )


def _files(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """All files below a folder: size and time of change, by path."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            facts = path.stat()
            name = path.relative_to(folder).as_posix()
            found[name] = facts.st_size, facts.st_mtime_ns
    return found


def _hashed(folder: pathlib.Path, names: list[str]) -> Iterator[tuple[int, str]]:
    """Size and digest of each file: BLAKE2b over the CRC-32 of its blocks."""
    threads = min(THREADS, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting = []
        for name in names:
            path = folder / name
            size = path.stat().st_size
            blocks = [pool.submit(_block, path, at) for at in range(0, size, BLOCK)]
            if name == METADATA:
                blocks = [pool.submit(_metadata, path)]
            waiting.append((size, blocks))
        for size, blocks in waiting:
            whole = hashlib.blake2b(digest_size=32)
            for block in blocks:
                whole.update(block.result())
            yield size, whole.hexdigest()


def _block(path: pathlib.Path, start: int) -> bytes:
    """The CRC-32 of a block."""
    check, left = 0, BLOCK
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (part := file.read(min(left, PART))):
            check = zlib.crc32(part, check)
            left -= len(part)
    return check.to_bytes(4, "big")


def _metadata(path: pathlib.Path) -> bytes:
    """The digest of what Orbax says of a checkpoint, but for when it was complete."""
    content = path.read_bytes()
    with contextlib.suppress(ValueError, RecursionError):
        facts = json.loads(content)
        if isinstance(facts, dict):
            facts.pop(LATE, None)
        content = json.dumps(facts, sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=32).digest()


def _of_digests(digests: Digests) -> str:
    """The digest of the digests, which tells whether they are as written."""
    lines = [f"{name}\n{size}\n{digest}\n" for name, (size, digest) in digests.items()]
    text = "".join(sorted(lines)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=32).hexdigest()


def _read(folder: pathlib.Path) -> Digests | None:
    """The digests of a checkpoint; None where there are none that can be read."""
    try:
        content = json.loads((folder / NAME).read_bytes())
        digests = {str(k): (int(n), str(d)) for k, (n, d) in content["files"].items()}
        return digests if _of_digests(digests) == content["digest"] else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _marked(folder: pathlib.Path) -> bool:
    """Whether a checkpoint was written with digests, or has a file of them."""
    if (folder / NAME).exists():
        return True
    with_mark = f'"{next(iter(MARK))}"'.encode()
    metadata = folder / METADATA
    return metadata.is_file() and with_mark in metadata.read_bytes()


def _say(line: str) -> None:
    print(line, file=sys.stderr)
