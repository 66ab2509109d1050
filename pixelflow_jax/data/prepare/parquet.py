"""Parquet files with a column of images and one of captions."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pixelflow_jax.data.captions import allow_missing, clean
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.source import (
    UNLABELLED,
    check_holdout,
    check_split,
    decode_image,
    in_holdout,
)
from pixelflow_jax.errors import DataError, UnreadableImage

IMAGES = ("image", "jpg", "png", "webp", "image_bytes", "img", "bytes")
CAPTIONS = ("caption", "captions", "text", "txt", "prompt", "long_caption")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet:
    """Rows with an encoded image and its caption or captions.

    `path` is a file, a folder or a pattern (see `files.find_files`). The image column
    holds files as bytes, or structs with "bytes" in them; the caption column texts or
    lists of texts. Empty names are guessed: see `columns`. A file that cannot be read
    counts as one unreadable image, a row without a caption too, unless
    `allow_missing`. `holdout` is the share kept for the test split, by a hash of file
    name and row. Needs pyarrow. Raises DataError.
    """

    path: str
    image_column: str = ""
    caption_column: str = ""
    allow_missing: bool = False
    holdout: float = 0.0

    def open(self, split: str, image_size: int = 0) -> "ParquetSource":
        """Opens one split; reads the footers of all files."""
        check_split(split)
        check_holdout(self.holdout)
        files = find_files(self.path, ".parquet")
        rows = [row for file in files for row in list_rows(file)]
        test = split == "test"
        rows = [row for row in rows if in_holdout(row.name, self.holdout) == test]
        if not rows:
            raise DataError(
                f"{self.path} holds no rows in the {split} split with "
                f"holdout={self.holdout}: correct the path or the share."
            )
        return ParquetSource(rows, self.columns(), self.allow_missing)

    def columns(self) -> tuple[str, str]:
        """The columns of images and captions in the first file that can be read.

        Where a name is not given it is the first usual one (IMAGES, CAPTIONS), or the
        only column of its type. Raises DataError, naming all columns, where there is
        none.
        """
        parquet = _pyarrow()
        for file in find_files(self.path, ".parquet"):
            try:
                schema = parquet.ParquetFile(file).schema_arrow
            except (OSError, ValueError):
                continue
            kinds = {field.name: _kind(field.type) for field in schema}
            return (
                _choose("--image-column", self.image_column, kinds, "image", IMAGES),
                _choose(
                    "--caption-column", self.caption_column, kinds, "text", CAPTIONS
                ),
            )
        raise DataError(f"None of the parquet files of {self.path} can be read.")


class Row(NamedTuple):
    """Row `row` of a row group; `damage` says why the file holds nothing."""

    file: Path
    group: int
    row: int
    damage: str = ""

    @property
    def name(self) -> str:
        """What logs call it."""
        return f"{self.file.name}[{self.group}:{self.row}]"


class ParquetSource:
    """Rows of all files, in their order; see Parquet."""

    sizes = None
    contiguous = True
    class_names = UNLABELLED

    def __init__(self, rows: list[Row], columns: tuple[str, str], allow_missing: bool):
        self._rows, self._columns = rows, columns
        self._allow_missing = allow_missing
        self.labels = np.zeros(len(rows), np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        row = self._rows[index]
        image = decode_image(self.read(index), row.name)
        caption = self._value(row, self._columns[1])
        texts = caption if isinstance(caption, list) else [caption]
        present = [text for text in texts if text is not None]
        return {
            "image": image,
            "label": 0,
            "captions": allow_missing(
                lambda: clean(present, row.name), self._allow_missing
            ),
            "name": row.name,
            "origin": str(row.file),
        }

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        row = self._rows[index]
        if row.damage:
            raise UnreadableImage(
                f"{row.file} is damaged ({row.damage}); its rows are lost. Fetch it "
                "again."
            )
        value = self._value(row, self._columns[0])
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not encoded:
            raise UnreadableImage(
                f"{row.name} holds no image bytes: leave it out, or store the image "
                "itself and not only its path."
            )
        return encoded

    def listing(self) -> Iterator[str]:
        """A line for each row group, and the columns."""
        yield " ".join(self._columns)
        groups = dict.fromkeys((row.file, row.group, row.damage) for row in self._rows)
        for file, group, damage in groups:
            yield f"{file.name} {file.stat().st_size} {group} {damage}"

    def _value(self, row: Row, column: str) -> object:
        try:
            return _group(row.file, row.group, self._columns)[column][row.row].as_py()
        except (OSError, ValueError, KeyError) as error:
            raise UnreadableImage(
                f"{row.name} cannot be read ({error}). Fetch {row.file} again."
            ) from error


def list_rows(file: Path) -> list[Row]:
    """The rows of a file, or one that says why it cannot be read."""
    parquet = _pyarrow()
    try:
        meta = parquet.ParquetFile(file).metadata
    except (OSError, ValueError) as error:
        return [Row(file, 0, 0, str(error))]
    return [
        Row(file, group, row)
        for group in range(meta.num_row_groups)
        for row in range(meta.row_group(group).num_rows)
    ]


@functools.lru_cache(maxsize=2)  # neighbours come from one group
def _group(file: Path, group: int, columns: tuple[str, str]) -> dict:
    table = _pyarrow().ParquetFile(file).read_row_group(group, columns=list(columns))
    return {name: table.column(name) for name in columns}


def _kind(kind: object) -> str:
    """Whether a column's type can hold images or texts, or neither."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return "text" if _kind(kind.value_type) == "text" else ""
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "image"
    return (
        "image" if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else ""
    )


def _choose(
    flag: str, given: str, kinds: dict[str, str], wanted: str, usual: tuple[str, ...]
) -> str:
    fitting = [name for name, kind in kinds.items() if kind == wanted]
    names = (given,) if given else usual
    found = [name for name in names if name in fitting]
    if not found and not given and len(fitting) == 1:
        found = fitting
    if not found:
        described = ", ".join(f"{n} ({k or 'other'})" for n, k in kinds.items())
        raise DataError(
            f"Which column holds the {wanted}s? Set {flag} to one of those that can: "
            f"the columns are {described}."
        )
    return found[0]


def _pyarrow():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "Parquet files need pyarrow: pip install 'pixelflow_jax[parquet]'."
        ) from error
    return pyarrow.parquet
