"""Digests of a checkpoint's files, and what to do where they do not agree.

A bit that flips on a disk is restored as another number, without a word. So each
checkpoint holds digests.json: the size and digest of each of its files, written before
the checkpoint is committed. It is read before anything else of it is.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
import sys
import time
from collections.abc import Iterable
from typing import Literal

from pixelflow_jax import digests
from pixelflow_jax.atomic import atomic_write, set_aside
from pixelflow_jax.errors import CheckpointError

NAME = "digests.json"
METADATA = "_CHECKPOINT_METADATA"  # Orbax's, in every checkpoint
LATE = "commit_timestamp_nsecs"  # what is added to it when the digests are written
# In that metadata: this checkpoint was written with digests.
MARK = {"digests": digests.SUMS}
SETTLING = 600.0  # seconds that Orbax may take to write them
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that is being written
# Before the step, in the name of one that was set aside: as its files are damaged, or
# as what followed it was at fault.
DAMAGED, SUSPECT = "damaged-", "suspect-"
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
    files = _hashed(folder, names, digests.SUMS)
    content = {"kind": digests.SUMS, "files": files, "digest": _of_digests(files)}
    with atomic_write(folder / NAME) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def settle(folder: pathlib.Path) -> None:
    """Wait until Orbax's metadata are as they will stay: it writes them in a thread.

    They then hold MARK. Raises TimeoutError where they never do.
    """
    end = time.monotonic() + SETTLING
    while not _is_marked(folder / METADATA):
        if time.monotonic() > end:
            raise TimeoutError(f"{METADATA} was not written within {SETTLING:g} s")
        time.sleep(0.02)


def _is_marked(metadata: pathlib.Path) -> bool:
    try:
        return json.loads(metadata.read_bytes())["custom_metadata"] == MARK
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False  # absent, or half of it


def examine(folder: pathlib.Path) -> Finding:
    """Read all files of a checkpoint and compare them with their digests.

    Files that no digest is of do not count. A checkpoint of an earlier version is
    "without digests".
    """
    written, kind = _read(folder)
    if written is None:
        if _marked(folder):
            return Finding("damaged", (f"{NAME} is absent or not what was written",))
        return Finding("without digests")
    sizes = _files(folder)
    problems = {}
    for name, (size, _) in written.items():
        if name not in sizes:
            problems[name] = f"{name} is absent"
        elif sizes[name][0] != size and name != METADATA:
            problems[name] = f"{name} has {sizes[name][0]} of {size} bytes"
    whole = [name for name in written if name not in problems]
    for name, (_, digest) in _hashed(folder, whole, kind).items():
        if digest != written[name][1]:
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


def hidden(directory: pathlib.Path, aside: bool) -> list[str]:
    """The checkpoints whose metadata are damaged, by name: with them none is listed.

    Says so of each; with `aside` it is renamed to damaged-STEP as well, and none is
    left. Raises CheckpointError where there is no other checkpoint.
    """
    steps = [path for path in checkpoints(directory) if _is_step(path.name)]
    damaged = [path for path in steps if _is_opaque(path)]
    if damaged and len(damaged) == len(steps):
        raise CheckpointError(unreadable(damaged[-1], examine(damaged[-1]), ()))
    for path in damaged:
        text = f"The checkpoint {path} is {examine(path)}"
        if aside:
            kept = set_aside(path, f"{DAMAGED}{path.name}")
            _say(f"{text}; it is kept as {kept.name}.")
        else:
            _say(f"{text}; it is passed over.")
    return [] if aside else [path.name for path in damaged]


def _is_opaque(folder: pathlib.Path) -> bool:
    path = folder / METADATA
    if not path.is_file():
        return False
    written, _ = _read(folder)
    if written and METADATA in written:
        return _metadata(path) != written[METADATA][1]
    try:
        return not isinstance(json.loads(path.read_bytes()), dict)
    except (ValueError, RecursionError):
        return True


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
    aside = [path for path in found if path.name.startswith((DAMAGED, SUSPECT))]
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
        aside = path.name.startswith((DAMAGED, SUSPECT))
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


def _hashed(folder: pathlib.Path, names: list[str], kind: str) -> Digests:
    """Size and digest of each file."""
    paths = [folder / name for name in names]
    found = dict(zip(names, digests.of_files(paths, kind), strict=True))
    if METADATA in found:
        found[METADATA] = (found[METADATA][0], _metadata(folder / METADATA))
    return found


def _metadata(path: pathlib.Path) -> str:
    """The digest of what Orbax says of a checkpoint, but for when it was complete."""
    content = path.read_bytes()
    with contextlib.suppress(ValueError, RecursionError):
        facts = json.loads(content)
        if isinstance(facts, dict):
            facts.pop(LATE, None)
        content = json.dumps(facts, sort_keys=True).encode()
    one = hashlib.blake2b(content, digest_size=32).digest()
    return hashlib.blake2b(one, digest_size=32).hexdigest()


def _of_digests(files: Digests) -> str:
    """The digest of the digests, which tells whether they are as written."""
    lines = [f"{name}\n{size}\n{digest}\n" for name, (size, digest) in files.items()]
    text = "".join(sorted(lines)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=32).hexdigest()


def _read(folder: pathlib.Path) -> tuple[Digests | None, str]:
    """The digests of a checkpoint, or None where there are none to read; their kind."""
    try:
        content = json.loads((folder / NAME).read_bytes())
        files = {str(k): (int(n), str(d)) for k, (n, d) in content["files"].items()}
        kind = content.get("kind", digests.CRC)
        valid = _of_digests(files) == content["digest"] and kind in digests.KINDS
        return (files if valid else None), kind
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None, ""


def _marked(folder: pathlib.Path) -> bool:
    """Whether a checkpoint was written with digests, or has a file of them."""
    if (folder / NAME).exists():
        return True
    with_mark = f'"{next(iter(MARK))}"'.encode()
    metadata = folder / METADATA
    return metadata.is_file() and with_mark in metadata.read_bytes()


def _say(line: str) -> None:
    print(line, file=sys.stderr)
