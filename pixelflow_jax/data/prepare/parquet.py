"""Parquet files with a column of images and one of captions."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pixelflow_jax.data.captions import MAX_CAPTION, clean, most_bytes
from pixelflow_jax.data.decoding import MAX_FILE_BYTES, MAX_PIXELS, PixelLimit
from pixelflow_jax.data.encoded import EncodedSource
from pixelflow_jax.data.files import find_files
from pixelflow_jax.data.limits import Limits
from pixelflow_jax.data.source import Split, check_split, choose_split
from pixelflow_jax.errors import DataError, UnreadableImage
from pixelflow_jax.paths import portable, printable

Kind = Literal["image", "text"]
IMAGES = ("image", "jpg", "png", "webp", "image_bytes", "img", "bytes")
# A column of images that grows so far from what is stored, and so much, is an attack on
# memory; so is one of texts that has this many bytes in one group.
MAX_GROWTH, SMALL_CHUNK, MAX_TEXTS = 100, 2**26, 2**27
MAX_REASON = 200  # characters of an error in a message
CAPTIONS = ("caption", "captions", "text", "txt", "prompt", "long_caption")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet:
    """Rows with an encoded image and its caption or captions.

    `path` is a file, a folder or a pattern (see `files.find_files`). The image column
    holds files as bytes, or structs with "bytes" in them; the caption column texts or
    lists of texts. Empty names are guessed: see `columns`. A file that cannot be read
    counts as one unreadable image, a row without a caption too, unless
    `allow_missing`, or one above `max_pixels` or `max_caption` (characters). `holdout`
    is the share kept for the test split, by a hash of file name and row. Needs pyarrow.
    Raises DataError.
    """

    path: str
    image_column: str = ""
    caption_column: str = ""
    allow_missing: bool = False
    holdout: float = 0.0
    max_pixels: PixelLimit = MAX_PIXELS
    max_caption: int = MAX_CAPTION

    def open(self, split: Split, image_size: int = 0) -> EncodedSource:
        """Opens one split; reads the footers of all files."""
        check_split(split, self.holdout)
        limits = Limits(max_pixels=self.max_pixels, max_caption=self.max_caption)
        places = choose_split(
            (p for file in find_files(self.path, ".parquet") for p in list_rows(file)),
            lambda place: place.name,
            split,
            self.holdout,
            nothing=f"{self.path} holds no rows",
        )
        return EncodedSource(
            ParquetImages(places, self.columns(), limits),
            contiguous=True,
            allow_missing=self.allow_missing,
            limits=limits,
        )

    def columns(self) -> tuple[str, str]:
        """The columns of images and captions in the first file that can be read.

        Where a name is not given it is the first usual one (IMAGES, CAPTIONS), or the
        only column of its type. Raises DataError, naming all columns, where there is
        none.
        """
        parquet, why = _pyarrow(), ""
        for file in find_files(self.path, ".parquet"):
            try:
                schema = parquet.ParquetFile(file).schema_arrow
            except (OSError, ValueError) as error:
                why = why or f"{file.name}: {printable(str(error))[:200]}"
                continue
            kinds: dict[str, Kind | None] = {f.name: _kind(f.type) for f in schema}
            return (
                _choose("--image-column", self.image_column, kinds, "image", IMAGES),
                _choose(
                    "--caption-column", self.caption_column, kinds, "text", CAPTIONS
                ),
            )
        raise DataError(
            f"None of the parquet files of {self.path} can be read ({why}). Fetch them "
            "again."
        )


class RowPlace(NamedTuple):
    """Row `row` of a row group; `damage` says why the file holds nothing."""

    file: Path
    group: int
    row: int
    damage: str = ""

    @property
    def name(self) -> str:
        """What logs call it."""
        return portable(f"{self.file.name}[{self.group}:{self.row}]")


class ParquetImages:
    """The `EncodedImages` of rows, in their order, from two columns."""

    def __init__(
        self, places: list[RowPlace], columns: tuple[str, str], limits: Limits
    ):
        self._places, self._columns, self._limits = places, columns, limits

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """The file's name, the row group and the row."""
        return self._places[index].name

    def origin(self, index: int) -> str:
        """The parquet file."""
        return portable(str(self._places[index].file))

    def read(self, index: int) -> bytes:
        """The image file as it is; UnreadableImage where there is none."""
        place = self._places[index]
        if place.damage:
            raise UnreadableImage(
                f"{place.file} is damaged ({place.damage}); its rows are lost. Fetch "
                "it again."
            )
        value = self._value(place, self._columns[0], MAX_FILE_BYTES)
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
        most = self._limits.max_caption
        value = self._value(place, self._columns[1], most_bytes(most))
        texts = value if isinstance(value, list) else [value]
        return clean([text for text in texts if text is not None], place.name, most)

    def listing(self) -> Iterator[str]:
        """A line for each row group, and the columns."""
        yield " ".join(self._columns)
        groups = dict.fromkeys((p.file, p.group, p.damage) for p in self._places)
        for file, group, damage in groups:
            yield f"{file.name} {file.stat().st_size} {group} {damage}"

    def identity(self) -> Iterator[str]:
        """The same: files are few."""
        return self.listing()

    def _value(self, place: RowPlace, column: str, most: int) -> object:
        try:
            group = _group(place.file, place.group, self._columns)
            scalar = group[column][place.row]
            size = _bytes_of(scalar)
            if size > most:
                raise ValueError(f"its {column} has {size:,} bytes, above {most:,}")
            return scalar.as_py()
        except (OSError, ValueError, KeyError) as error:
            raise UnreadableImage(
                f"{printable(place.name)} cannot be read ({_brief(error)}). Mend or "
                f"fetch {printable(str(place.file))} again."
            ) from error


def list_rows(file: Path) -> list[RowPlace]:
    """Where the rows of a file are, or one place that says why it cannot be read."""
    parquet = _pyarrow()
    try:
        meta = parquet.ParquetFile(file).metadata
    except (OSError, ValueError) as error:
        return [RowPlace(file, 0, 0, _brief(error))]
    size = file.stat().st_size
    if meta.num_rows > size:  # not even a byte for each: no images
        return [RowPlace(file, 0, 0, f"{meta.num_rows:,} rows in {size:,} bytes")]
    return [
        RowPlace(file, group, row)
        for group in range(meta.num_row_groups)
        for row in range(meta.row_group(group).num_rows)
    ]


@functools.lru_cache(maxsize=2)  # neighbours come from one group
def _group(file: Path, group: int, columns: tuple[str, str]) -> dict:
    whole = _pyarrow().ParquetFile(file)
    kinds = {field.name: field.type for field in whole.schema_arrow}
    # A text that is stored once for many rows is then in memory once as well.
    shared = [name for name in columns if _is_text(kinds.get(name))]
    _check_growth(whole.metadata.row_group(group), columns)
    reader = _pyarrow().ParquetFile(file, read_dictionary=shared)
    table = reader.read_row_group(group, columns=list(columns))
    return {name: table.column(name) for name in columns}


def _check_growth(group: Any, columns: tuple[str, str]) -> None:
    """Raises ValueError where columns would unpack to far more than they are."""
    for number in range(group.num_columns):
        chunk = group.column(number)
        if chunk.path_in_schema.split(".")[0] not in columns:
            continue
        stored, whole = chunk.total_compressed_size, chunk.total_uncompressed_size
        is_text = chunk.path_in_schema.split(".")[0] == columns[1]
        if whole > (MAX_TEXTS if is_text else max(SMALL_CHUNK, MAX_GROWTH * stored)):
            raise ValueError(
                f"{chunk.path_in_schema} unpacks to {whole:,} bytes in one group"
            )


def _bytes_of(scalar: Any) -> int:
    """How many bytes a value has, before it becomes one of Python's."""
    from pyarrow import types

    kind = scalar.type
    if not scalar.is_valid:
        return 0
    if types.is_dictionary(kind):
        return _bytes_of(scalar.value)
    if types.is_struct(kind):
        return _bytes_of(scalar["bytes"]) if "bytes" in scalar else 0
    if hasattr(scalar, "as_buffer"):
        return scalar.as_buffer().size
    values = getattr(scalar, "values", None)  # of a list
    return 0 if values is None else values.nbytes


def _kind(kind: Any) -> Kind | None:
    """Whether a column's type can hold images or texts, or neither."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return _kind(kind.value_type)
    if _is(kind, "list", "large_list", "fixed_size_list", "list_view"):
        return "text" if _kind(kind.value_type) == "text" else None
    if _is_text(kind):
        return "text"
    if _is(kind, "binary", "large_binary", "binary_view", "fixed_size_binary"):
        return "image"
    has_bytes = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return "image" if has_bytes else None


def _is(kind: Any, *names: str) -> bool:
    """Whether a type is one of several, of which older pyarrow does not know all."""
    from pyarrow import types

    known = (getattr(types, f"is_{name}", None) for name in names)
    return kind is not None and any(test(kind) for test in known if test)


def _is_text(kind: Any) -> bool:
    return _is(kind, "string", "large_string", "string_view")


def _brief(error: Exception) -> str:
    """The first line of what pyarrow says, without what it adds of its own files."""
    return (str(error).splitlines() or [type(error).__name__])[0][:MAX_REASON]


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
