"""An index: the JSON file that says what the files beside it hold.

It carries the version of its format. `IndexFormat.renamed` is the place to write down a
field that gets another name: files of earlier versions then keep loading.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import DataError


class IndexedFile(TypedDict):
    """A file of records as an index names it: relative path, size, and how many."""

    file: str
    bytes: int
    count: int


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


@dataclasses.dataclass
class RecordFile:
    """A whole file, in the form in which array_record takes read instructions."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def read_index(folder: Path, format: IndexFormat) -> dict[str, Any]:
    """Reads an index, in today's names, and checks every file against it.

    Raises DataError where it is absent, damaged or of an unknown version, or where a
    file that it lists is.
    """
    path = folder / format.name
    try:
        index = json.loads(path.read_text("utf-8"))
        version = index.get("version")
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} {format.absent} (no {format.name}). Check the path, or "
            f"run `{format.command}` again; it continues where it stopped."
        ) from error
    except (ValueError, AttributeError) as error:
        raise _damaged(path, error, format) from error
    _check_version(path, version, format)
    for number in range(version + 1, format.version + 1):
        index = _renamed(index, format.renamed.get(number, {}))
    try:
        entries: Sequence[IndexedFile] = index[format.field]
        damage = [text for entry in entries if (text := find_damage(folder, entry))]
    except (KeyError, TypeError) as error:
        raise _damaged(path, error, format) from error
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
    """The files of an index, for array_record to read."""
    return [
        RecordFile(str(folder / entry["file"]), 0, entry["count"], entry["count"])
        for entry in entries
    ]


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


def _damaged(path: Path, error: Exception, format: IndexFormat) -> DataError:
    return DataError(
        f"{path} is damaged ({error!r}). Prepare the {format.contents} again with "
        "--overwrite."
    )


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """The same JSON with other names of fields."""
    if isinstance(node, list):
        return [_renamed(item, names) for item in node]
    if isinstance(node, dict):
        return {names.get(k, k): _renamed(item, names) for k, item in node.items()}
    return node
