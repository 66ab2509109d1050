"""Parquet files with a column of images and one of captions."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pixelflow_jax.data.captions import clean
from pixelflow_jax.data.encoded import EncodedSource
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.source import Split, check_split, choose_split
from pixelflow_jax.errors import DataError, UnreadableImage

Kind = Literal["image", "text"]
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

    def open(self, split: Split, image_size: int = 0) -> EncodedSource:
        """Opens one split; reads the footers of all files."""
        check_split(split, self.holdout)
        places = choose_split(
            (p for file in find_files(self.path, ".parquet") for p in list_rows(file)),
            lambda place: place.name,
            split,
            self.holdout,
            nothing=f"{self.path} holds no rows",
        )
        images = ParquetImages(places, self.columns())
        return EncodedSource(images, contiguous=True, allow_missing=self.allow_missing)

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
            kinds: dict[str, Kind | None] = {f.name: _kind(f.type) for f in schema}
            return (
                _choose("--image-column", self.image_column, kinds, "image", IMAGES),
                _choose(
                    "--caption-column", self.caption_column, kinds, "text", CAPTIONS
                ),
            )
        raise DataError(f"None of the parquet files of {self.path} can be read.")


class RowPlace(NamedTuple):
    """Row `row` of a row group; `damage` says why the file holds nothing."""

    file: Path
    group: int
    row: int
    damage: str = ""

    @property
    def name(self) -> str:
        """What logs call it."""
        return f"{self.file.name}[{self.group}:{self.row}]"


class ParquetImages:
    """The `EncodedImages` of rows, in their order, from two columns."""

    def __init__(self, places: list[RowPlace], columns: tuple[str, str]):
        self._places, self._columns = places, columns

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """The file's name, the row group and the row."""
        return self._places[index].name

    def origin(self, index: int) -> str:
        """The parquet file."""
        return str(self._places[index].file)

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        place = self._places[index]
        if place.damage:
            raise UnreadableImage(
                f"{place.file} is damaged ({place.damage}); its rows are lost. Fetch "
                "it again."
            )
        value = self._value(place, self._columns[0])
        encoded = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(encoded, bytes) or not encoded:
            raise UnreadableImage(
                f"{place.name} holds no image bytes: leave it out, or store the image "
                "itself and not only its path."
            )
        return encoded

    def captions(self, index: int) -> tuple[str, ...]:
        """The text, or the texts of the list; NoCaption where there is none."""
        place = self._places[index]
        value = self._value(place, self._columns[1])
        texts = value if isinstance(value, list) else [value]
        return clean([text for text in texts if text is not None], place.name)

    def listing(self) -> Iterator[str]:
        """A line for each row group, and the columns."""
        yield " ".join(self._columns)
        groups = dict.fromkeys((p.file, p.group, p.damage) for p in self._places)
        for file, group, damage in groups:
            yield f"{file.name} {file.stat().st_size} {group} {damage}"

    def _value(self, place: RowPlace, column: str) -> object:
        try:
            group = _group(place.file, place.group, self._columns)
            return group[column][place.row].as_py()
        except (OSError, ValueError, KeyError) as error:
            raise UnreadableImage(
                f"{place.name} cannot be read ({error}). Fetch {place.file} again."
            ) from error


def list_rows(file: Path) -> list[RowPlace]:
    """Where the rows of a file are, or one place that says why it cannot be read."""
    parquet = _pyarrow()
    try:
        meta = parquet.ParquetFile(file).metadata
    except (OSError, ValueError) as error:
        return [RowPlace(file, 0, 0, str(error))]
    return [
        RowPlace(file, group, row)
        for group in range(meta.num_row_groups)
        for row in range(meta.row_group(group).num_rows)
    ]


@functools.lru_cache(maxsize=2)  # neighbours come from one group
def _group(file: Path, group: int, columns: tuple[str, str]) -> dict:
    table = _pyarrow().ParquetFile(file).read_row_group(group, columns=list(columns))
    return {name: table.column(name) for name in columns}


def _kind(kind: Any) -> Kind | None:
    """Whether a column's type can hold images or texts, or neither."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return "text" if _kind(kind.value_type) == "text" else None
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    if types.is_binary(kind) or types.is_large_binary(kind):
        return "image"
    has_bytes = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return "image" if has_bytes else None


def _choose(
    flag: str,
    given: str,
    kinds: dict[str, Kind | None],
    wanted: Kind,
    usual: tuple[str, ...],
) -> str:
    """The column that is `given`, or else the first usual or the only fitting one."""
    fitting = [name for name, kind in kinds.items() if kind == wanted]
    candidates = [name for name in ((given,) if given else usual) if name in fitting]
    if not candidates and not given and len(fitting) == 1:
        candidates = fitting
    if not candidates:
        columns = ", ".join(f"{n} ({k or 'other'})" for n, k in kinds.items())
        raise DataError(
            f"Which column holds the {wanted}s? Set {flag} to one of those that can: "
            f"the columns are {columns}."
        )
    return candidates[0]


def _pyarrow():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            "Parquet files need pyarrow: pip install 'pixelflow_jax[parquet]'."
        ) from error
    return pyarrow.parquet
