"""The memory of a preparation: which shards are finished, and what they belong to.

progress.jsonl holds a header and then a line for each finished shard. Lines are only
added, so a kill can cost the last one at most.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

from pixelflow_jax.atomic import atomic_write, partials
from pixelflow_jax.data.index import IndexedFile, find_damage
from pixelflow_jax.data.shards import FORMAT
from pixelflow_jax.errors import DataError

PROGRESS = "progress.jsonl"


class Header(TypedDict):
    """The first line: a digest of what is prepared, and how it is."""

    listing: str
    options: dict[str, Any]


def begin(
    out: Path, header: Header, splits: Iterable[str], overwrite: bool
) -> dict[str, Any]:
    """Makes the folders; returns the shards finished earlier, as noted, by file.

    Raises DataError where `out` belongs to another header or to something else.
    """
    progress = out / PROGRESS
    if overwrite:
        _remove_shards(out)
    if progress.is_file():
        lines = _read_progress(progress)
        if lines and lines[0] != header:
            raise DataError(
                f"{out} was begun with {_changes(lines[0], header)}: use --overwrite "
                "to start anew, another OUT, or the earlier source and options."
            )
        finished = {line["file"]: line for line in lines[1:]}
        entries = {f: cast(IndexedFile, x) for f, x in finished.items()}
        done = {f: x for f, x in entries.items() if not find_damage(out, x)}
        _rewrite(progress, [header, *done.values()])
        for file in _partials(out):
            file.unlink()
    elif out.is_dir() and any(out.iterdir()):
        raise DataError(
            f"{out} is not empty and was not made by this command: choose another OUT."
        )
    else:
        done = {}
        out.mkdir(parents=True, exist_ok=True)
        note(out, header)
    for split in splits:
        (out / split).mkdir(exist_ok=True)
    return done


def _rewrite(path: Path, lines: list[Mapping[str, Any]]) -> None:
    """Drops a torn line, which would spoil the next one added."""
    with atomic_write(path) as partial:
        partial.write_text("".join(json.dumps(x) + "\n" for x in lines), "utf-8")


def _changes(earlier: dict[str, Any], header: Header) -> str:
    options = earlier.get("options", {})
    changed = [
        f"{name}={options.get(name)} (now {value})"
        for name, value in header["options"].items()
        if options.get(name) != value
    ]
    if earlier.get("listing") != header["listing"]:
        changed.append("other source files")
    return ", ".join(changed)


def _remove_shards(out: Path) -> None:
    """Removes what this module wrote and nothing else."""
    for file in (*out.glob("*/shard-*.array_record*"), *_partials(out)):
        file.unlink()
    for file in (*out.glob(f"*/{FORMAT.name}"), out / PROGRESS):
        file.unlink(missing_ok=True)
    if out.is_dir():
        for folder in ("train", "test"):
            if (out / folder).is_dir() and not any((out / folder).iterdir()):
                (out / folder).rmdir()


def _partials(out: Path) -> list[Path]:
    """What killed processes left."""
    return [file for folder in (out, *out.glob("*/")) for file in partials(folder, "*")]


def note(out: Path, line: Mapping[str, Any]) -> None:
    """Adds a line that survives a kill: the header, or a finished shard."""
    with (out / PROGRESS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read_progress(path: Path) -> list[dict[str, Any]]:
    """The lines up to the one a kill cut off; DataError where they are not ours."""
    lines: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    wanted = [{"listing", "options"}, *[{"file", "bytes", "count"}] * len(lines)]
    pairs = zip(lines, wanted, strict=False)
    if not all(isinstance(line, dict) and names <= {*line} for line, names in pairs):
        raise DataError(
            f"{path} was not written by this command, or is damaged: choose another "
            "OUT, or use --overwrite to start anew."
        )
    return lines
