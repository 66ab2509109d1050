"""Prompts: read from files, and turned into what a text model is conditioned on."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pixelflow_jax.data.errors import DataError

Reader = Callable[[Sequence[str]], dict[str, np.ndarray]]


class PromptFile(NamedTuple):
    """The prompts of a file, and how many of its lines hold none."""

    prompts: list[str]
    blank: int
    comments: int


def read_prompts(path: str | pathlib.Path) -> PromptFile:
    """A prompt a line, in UTF-8; blank lines and those that begin with # are skipped.

    Raises DataError for a file that is absent, in another encoding, or without prompts.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The prompts in {path} cannot be read: {error.strerror}."
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} (0x{content[error.start]:02x}, "
            f"in line {line}) belongs to no character. Save it as UTF-8, such as by "
            f"iconv -f latin1 -t utf-8."
        ) from error
    lines = [line.strip() for line in text.split("\n")]
    filled = [line for line in lines if line]
    prompts = [line for line in filled if not line.startswith("#")]
    blank = len(lines) - len(filled) - (not lines[-1])  # the end of the last line
    found = PromptFile(prompts, blank, len(filled) - len(prompts))
    if not prompts:
        raise DataError(
            f"{path} holds no prompts, only {found.blank} blank lines and "
            f"{found.comments} comments (#): write one prompt a line."
        )
    return found


def tokenized(
    read: Reader, prompts: Sequence[str], negative: str | Sequence[str]
) -> dict[str, np.ndarray]:
    """What conditioner Text reads for prompts with negative ones, one for all or each.

    "tokens" int32 and "mask" bool [n, length], and the same of the negative prompts as
    "negative_tokens" and "negative_mask". Every distinct text is read once. Raises
    ValueError for what is no prompt.
    """
    negatives = [negative] * len(prompts) if isinstance(negative, str) else negative
    if len(negatives) != len(prompts):
        raise ValueError(
            f"There are {len(negatives)} negative prompts for {len(prompts)} prompts: "
            "give one for all, or one for each."
        )
    others = [text for text in (*prompts, *negatives) if not isinstance(text, str)]
    if others:
        raise ValueError(
            f"This model draws from prompts, which are str, not {others[0]!r}."
        )
    distinct = list(dict.fromkeys([*prompts, *negatives]))
    places = {text: place for place, text in enumerate(distinct)}
    arrays = read(distinct)
    given = {}
    for prefix, texts in (("", prompts), ("negative_", negatives)):
        rows = [places[text] for text in texts]
        given |= {f"{prefix}{name}": array[rows] for name, array in arrays.items()}
    return given
