"""Prompts: read from files, and turned into what a text model is conditioned on."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from pixelflow_jax import sharding
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.data.plan import CaptionEncoder
from pixelflow_jax.errors import DataError, PromptError

MOST = 100_000_000  # bytes of a file of prompts: about a million of them


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
        with path.open("rb") as file:  # a device may have no end
            content = file.read(MOST + 1)
    except OSError as error:
        raise DataError(
            f"The prompts in {path} cannot be read: {error.strerror}."
        ) from error
    if len(content) > MOST:
        raise DataError(
            f"{path} holds more than {MOST:,} bytes of prompts: draw from parts of it, "
            "one after the other."
        )
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
    comments = len(filled) - len(prompts)
    if not prompts:
        raise DataError(
            f"{path} holds no prompts, only {blank} blank lines and {comments} "
            "comments (#): write one prompt a line."
        )
    return PromptFile(prompts, blank, comments)


class Prompts:
    """The tokenizer and the encoder of a text model, opened when they are first used.

    `conditioner` is the model's, made to read prompts where it read captions ahead of
    time.
    """

    example: int | str = ""

    def __init__(self, conditioner: Conditioner):
        self.conditioner = conditioner.for_prompts()
        self._caption_encoder: CaptionEncoder | None = None
        self._frozen_params: dict | None = None

    def load(self, mesh: Mesh) -> dict:
        """The encoder's parameters on the devices; WeightsError without its weights."""
        if self._frozen_params is None:
            self._frozen_params = sharding.place(self.conditioner.load(), mesh)
        return self._frozen_params

    def read(
        self, wanted: Sequence[int | str], negative: str | Sequence[str]
    ) -> dict[str, np.ndarray]:
        """What the conditioner reads for prompts with negatives, one for all or each.

        "tokens" int32 and "mask" bool [n, length], and the same of the negatives as
        "negative_tokens" and "negative_mask". Every distinct text is read once. Raises
        PromptError for what is no prompt, WeightsError without a tokenizer.
        """
        negatives = [negative] * len(wanted) if isinstance(negative, str) else negative
        if len(negatives) != len(wanted):
            raise PromptError(
                f"There are {len(negatives)} negative prompts for {len(wanted)} "
                "prompts: give one for all, or one for each."
            )
        prompts = [_text(one) for one in wanted]
        negatives = [_text(one) for one in negatives]
        distinct = list(dict.fromkeys([*prompts, *negatives]))
        if self._caption_encoder is None:
            self._caption_encoder = self.conditioner.caption_encoder()
        if self._caption_encoder is None:
            raise PromptError(
                f"The conditioner {type(self.conditioner).__name__} reads no prompts."
            )
        arrays = self._caption_encoder(distinct)
        places = {text: place for place, text in enumerate(distinct)}
        given = {}
        for prefix, texts in (("", prompts), ("negative_", negatives)):
            rows = [places[text] for text in texts]
            given |= {f"{prefix}{name}": array[rows] for name, array in arrays.items()}
        return given


def _text(text: object) -> str:
    """The text itself; PromptError for what is none, or cannot be written as one."""
    if not isinstance(text, str):
        raise PromptError(
            f"This model draws from prompts, which are str, not {text!r}."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"The prompt {text!r:.60} is not UTF-8: it came from bytes of another "
            "encoding."
        ) from error
    return text
