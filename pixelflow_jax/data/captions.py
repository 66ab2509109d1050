"""Captions: text out of files, and what is wrong with it."""

import json
from collections.abc import Callable, Iterable

from pixelflow_jax.errors import NoCaption

KEYS = ("caption", "captions", "text")  # where JSON files keep them, in this order


def clean(texts: Iterable[object], name: str) -> tuple[str, ...]:
    """The different texts that say something, with single spaces between words.

    Raises NoCaption, which calls the image `name`, where none is left or one is no
    text.
    """
    spaced: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise NoCaption(
                f"{name}: its caption is {text!r}, not a text. Mend it, or use "
                "--allow-missing-captions."
            )
        spaced.append(" ".join(text.split()))
    captions = tuple(dict.fromkeys(text for text in spaced if text))
    if not captions:
        raise NoCaption(
            f"{name} has no caption, or an empty one. Write one, or use "
            "--allow-missing-captions."
        )
    return captions


def from_text(content: bytes, name: str) -> str:
    """The text of a file; NoCaption where it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")  # Windows editors put a mark in front
    except UnicodeDecodeError as error:
        raise NoCaption(
            f"{name}: its caption is not UTF-8 (byte {error.start}). Save it as UTF-8, "
            "or use --allow-missing-captions."
        ) from error


def from_json(content: bytes, name: str, key: str = "") -> tuple[str, ...]:
    """Captions of a JSON file, under `key` or else the first of KEYS that is there.

    The value is a text or a list of them. Raises NoCaption.
    """
    text = from_text(content, name)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise NoCaption(f"{name}: its .json file is damaged ({error}).") from error
    if not isinstance(values, dict):
        raise NoCaption(f"{name}: its .json file holds no object with captions in it.")
    keys = (key,) if key else KEYS
    value = next((values[k] for k in keys if k in values), ())
    return clean(value if isinstance(value, list) else [value] if value else [], name)


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
