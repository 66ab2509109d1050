"""Captions: text out of files, and what is wrong with it."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable

from pixelflow_jax.errors import NoCaption
from pixelflow_jax.paths import printable

KEYS = ("caption", "captions", "text")  # where JSON files keep them, in this order
MAX_CAPTION = 1_000_000  # characters; longer than any caption, shorter than an attack
BYTES_IN_CHARACTER = 4  # of UTF-8, at most
SHOWN = 60  # characters of what a message quotes
MARK = "\ufeff"  # which Windows editors put in front, and some tools twice
# In lines of a file: others, such as U+2028 and form feed, stand inside of captions.
LINE = re.compile(r"\r\n|\r|\n")
SURROGATE = re.compile("[\ud800-\udfff]")
SILENT = frozenset(("Cc", "Cf", "Cs", "Zs", "Zl", "Zp"))  # categories of no ink


def clean(
    texts: Iterable[object], name: str, max_caption: int = MAX_CAPTION
) -> tuple[str, ...]:
    """The different texts that say something, with single spaces between words.

    Raises NoCaption, which calls the image `name`, where none is left, or one is no
    text, not Unicode, or longer than `max_caption` characters.
    """
    spaced: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise _bad(
                name, f"its caption is {_short(repr(text))}, not a text. Mend it"
            )
        check_length(len(text), name, max_caption)
        if SURROGATE.search(text):
            raise _bad(name, "its caption holds half a surrogate pair. Mend it")
        spaced.append(" ".join(text.split()))
    captions = tuple(dict.fromkeys(text for text in spaced if says_something(text)))
    if not captions:
        raise NoCaption(
            f"{printable(name)} has no caption, or an empty one. Write one, or use "
            "--allow-missing-captions."
        )
    return captions


def says_something(text: str) -> bool:
    """Whether there is more in it than spaces, marks and controls."""
    return any(unicodedata.category(character) not in SILENT for character in text)


def check_length(length: int, name: str, max_caption: int) -> None:
    """Raises NoCaption where `length` characters are too many."""
    if length > max_caption:
        raise _bad(
            name,
            f"its caption has {length:,} characters, above "
            f"max_caption={max_caption:,}. Shorten it",
        )


def most_bytes(max_caption: int) -> int:
    """How large a file of captions may be, in bytes."""
    return BYTES_IN_CHARACTER * max_caption


def lines(text: str) -> list[str]:
    """The lines of a file, which end in a newline of any system and in nothing else."""
    return LINE.split(text)


def from_text(content: bytes, name: str) -> str:
    """The text of a file; NoCaption where it is not UTF-8."""
    try:
        return content.decode("utf-8").lstrip(MARK)
    except UnicodeDecodeError as error:
        raise _bad(
            name, f"its caption is not UTF-8 (byte {error.start}). Save it as UTF-8"
        ) from error


def from_json(
    content: bytes, name: str, key: str = "", max_caption: int = MAX_CAPTION
) -> tuple[str, ...]:
    """Captions of a JSON file, under `key` or else the first of KEYS that has any.

    The value is a text or a list of them. Raises NoCaption.
    """
    text = from_text(content, name)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise _bad(name, f"its .json file is damaged ({reason}). Mend it") from error
    if not isinstance(values, dict):
        raise _bad(name, "its .json file holds no object with captions in it. Mend it")
    keys = (key,) if key else KEYS
    value = next((values[k] for k in keys if not _is_empty(values.get(k))), [])
    return clean(value if isinstance(value, list) else [value], name, max_caption)


def allow_missing(
    read: Callable[[], tuple[str, ...]], allow_missing: bool
) -> tuple[str, ...]:
    """What `read` returns; one empty caption where it finds none and that is allowed.

    Raises NoCaption.
    """
    try:
        return read()
    except NoCaption:
        if allow_missing:
            return ("",)
        raise


def first_readable(
    reads: Iterable[Callable[[], tuple[str, ...]]],
) -> tuple[str, ...]:
    """What the first of several readers that finds a caption returns.

    Raises the NoCaption of the first where none does.
    """
    failure: NoCaption | None = None
    for read in reads:
        try:
            return read()
        except NoCaption as error:
            failure = failure or error
    raise failure or NoCaption("There is no caption.")


def _bad(name: str, what: str) -> NoCaption:
    return NoCaption(f"{printable(name)}: {what}, or use --allow-missing-captions.")


def _is_empty(value: object) -> bool:
    return value in (None, []) or (isinstance(value, str) and not says_something(value))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
