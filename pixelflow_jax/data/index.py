"""An index: the JSON file that says what the files beside it hold.

What it says is not believed unseen: it is small beside the files that it lists, its
entries are of the right types, and every file is of the size that it names.

It carries the version of its format. `IndexFormat.renamed` is the place to write down a
field that gets another name: files of earlier versions then keep loading.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import DataError


class IndexedFile(TypedDict):
    """A file of records as an index names it: relative path, size, and how many."""

    file: str
    bytes: int
    count: int


MAX_SMALL_INDEX = 2**24  # bytes that an index may have whatever lies beside it
MAX_REASON = 200  # characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexFormat:
    """One kind of index.

    `name` is its file's, `field` the one that lists the files beside it. Versions from
    `oldest` to `version` can be read; `renamed` has, for a version, old -> new names of
    the fields that it renamed, at whatever depth. The rest is for messages: `contents`
    and `files`, what the folder and the files hold, `absent`, what a folder without
    index is, and `command`, which writes it.
    """

    name: str
    field: str
    version: int
    oldest: int
    contents: str
    files: str
    absent: str
    command: str
    renamed: Mapping[int, Mapping[str, str]] = dataclasses.field(default_factory=dict)


class RecordFile(NamedTuple):
    """A file of records, of which `take` are read, from number `skip` on."""

    filename: str
    skip: int
    take: int


def read_index(folder: Path, format: IndexFormat) -> dict[str, Any]:
    """Reads an index, in today's names, and checks every file against it.

    Raises DataError where it is absent, damaged or of an unknown version, or where a
    file that it lists is.
    """
    path = folder / format.name
    try:
        index = json.loads(_read_index_file(path, format))
        version = index.get("version")
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} {format.absent} (no {format.name}). Check the path, or "
            f"run `{format.command}` again; it continues where it stopped."
        ) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise damaged(path, repr(error), format) from error
    _check_version(path, version, format)
    for number in range(version + 1, format.version + 1):
        index = _renamed(index, format.renamed.get(number, {}))
    try:
        entries: Sequence[IndexedFile] = index[format.field]
        _check_entries(entries)
        damage = [text for entry in entries if (text := find_damage(folder, entry))]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path, repr(error), format) from error
    if damage:
        raise DataError(
            f"{len(damage)} of {len(entries)} {format.files} in {folder} are missing "
            f"or damaged: {'; '.join(damage[:5])}. Copy them again, or run "
            f"`{format.command}` again, which writes what is missing."
        )
    return index


def write_index(folder: Path, format: IndexFormat, content: Mapping[str, Any]) -> None:
    """Writes an index, with its version, whole or not at all."""
    with atomic_write(folder / format.name) as partial:
        text = json.dumps({"version": format.version, **content})
        partial.write_text(text, encoding="utf-8")


def find_damage(folder: Path, entry: IndexedFile) -> str:
    """Why a file is not what an index says of it; "" if it is."""
    path = folder / entry["file"]
    if not path.is_file():
        return f"{entry['file']} is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{entry['file']} has {size} bytes instead of {entry['bytes']}"
    return ""


def record_files(folder: Path, entries: Sequence[IndexedFile]) -> list[RecordFile]:
    """The files of an index, as `records.Records` reads them."""
    return [
        RecordFile(str(folder / entry["file"]), skip=0, take=entry["count"])
        for entry in entries
    ]


def damaged(path: Path, reason: str, format: IndexFormat) -> DataError:
    """The error for an index that does not say what it should."""
    return DataError(
        f"{path} is damaged ({reason[:MAX_REASON]}). Prepare the {format.contents} "
        "again with --overwrite."
    )


def _read_index_file(path: Path, format: IndexFormat) -> str:
    """The text of an index, unless it is larger than what it lists can account for."""
    size, most = path.stat().st_size, MAX_SMALL_INDEX
    if size > most:
        others = (file for file in path.parent.rglob("*") if file != path)
        most += sum(file.stat().st_size for file in others if file.is_file())
    if size > most:
        raise damaged(path, f"{size:,} bytes for {most:,} bytes of files", format)
    return path.read_text("utf-8")


def _check_entries(entries: Any) -> None:
    """Raises TypeError or ValueError unless each is an `IndexedFile` below it."""
    if not isinstance(entries, list):
        raise TypeError("its list of files is none")
    for entry in entries:
        file, size, count = entry["file"], entry["bytes"], entry.get("count", 0)
        if not isinstance(file, str) or ".." in Path(file).parts or file[:1] == "/":
            raise ValueError(f"{file!r} does not lie below it")
        if not all(type(n) is int and n >= 0 for n in (size, count)):
            raise ValueError(f"{size!r} bytes, {count!r} records")


def _check_version(path: Path, version: object, format: IndexFormat) -> None:
    if not isinstance(version, int) or version < format.oldest:
        advice = f"prepare the {format.contents} again with --overwrite"
    elif version > format.version:
        advice = "a newer pixelflow_jax wrote it, so install that one to read it"
    else:
        return
    raise DataError(
        f"{path} has version {version} and this program reads version "
        f"{format.version}: {advice}."
    )


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """The same JSON with other names of fields."""
    if isinstance(node, list):
        return [_renamed(item, names) for item in node]
    if isinstance(node, dict):
        return {names.get(k, k): _renamed(item, names) for k, item in node.items()}
    return node
