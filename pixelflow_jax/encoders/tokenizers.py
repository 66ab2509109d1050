"""Texts as numbers: the tokenizers that feed text encoders."""

import logging
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pixelflow_jax.errors import WeightsError
from pixelflow_jax.tensors.locate import Origin, find
from pixelflow_jax.tensors.reader import first_line

LOG = logging.getLogger(__name__)
INSTALL = "pip install 'pixelflow_jax[text]'"

# Files that together hold a vocabulary, and those that may lie beside them.
WHOLE = "tokenizer.json"
VOCABULARIES = (WHOLE,), ("spiece.model",), ("vocab.txt",), ("vocab.json", "merges.txt")
TOKENIZER_FILES = (
    *(name for names in VOCABULARIES for name in names),
    *("tokenizer_config.json", "special_tokens_map.json", "config.json"),
)
SHOWN = 30  # characters of a text on either side of its cut
NO_LIMIT = 2**62  # transformers would warn of longer texts before they are cut


class Special(NamedTuple):
    """A token that stands for no part of a text."""

    name: str
    number: int


class Frame(NamedTuple):
    """The special tokens around every text, and what fills the rest behind them.

    `tokenizer` is transformers' class for folders without a tokenizer.json.
    """

    tokenizer: str
    padding: Special
    before: tuple[Special, ...] = ()
    after: tuple[Special, ...] = ()

    @property
    def size(self) -> int:
        """How many tokens it adds to a text."""
        return len(self.before) + len(self.after)

    def around(
        self, numbers: Sequence[int], length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [length] and mask bool [length] of a text that fits."""
        before, after = ([s.number for s in part] for part in (self.before, self.after))
        numbers = [*before, *numbers, *after]
        if len(numbers) > length:
            raise ValueError(f"{len(numbers)} tokens do not fit into {length}.")
        tokens = np.full(length, self.padding.number, np.int32)
        tokens[: len(numbers)] = numbers
        return tokens, np.arange(length) < len(numbers)


class TextReader:
    """Turns texts into the tokens of an encoder, each as long as all others.

    A longer text is cut at its end, which is warned of once a text and counted in
    `cut`. The tokenizer is opened when it is first used, in each process anew, so that
    a reader can be sent to worker processes. `folder` holds it (see `tensors.locate`),
    `origin` is for messages, `vocabulary` is how many tokens the encoder knows.
    """

    def __init__(
        self, folder: str, origin: Origin, frame: Frame, vocabulary: int, length: int
    ):
        if length <= frame.size:
            raise ValueError(
                f"A length of {length} leaves no room for a text: {origin.network} "
                f"takes {frame.size} tokens for itself."
            )
        self.length = length
        self.cut = 0
        self._folder, self._origin = folder, origin
        self._frame, self._vocabulary = frame, vocabulary
        self._shown: set[int] = set()  # by their hashes: captions come by the million
        self._tokenizer: Any = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_tokenizer": None}

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts as "tokens" int32 [n, length] and "mask" bool [n, length].

        Padding is on the right. Raises ValueError for what is no text, and what
        `check` raises.
        """
        _refuse_others(texts)
        tokens = np.empty((len(texts), self.length), np.int32)
        mask = np.empty((len(texts), self.length), bool)
        for row, text in enumerate(texts):
            numbers = self._numbers(text)
            tokens[row], mask[row] = self._frame.around(numbers, self.length)
        return {"tokens": tokens, "mask": mask}

    def check(self) -> None:
        """Opens the tokenizer; WeightsError where it is absent or another encoder's."""
        if self._tokenizer is None:
            tokenizer = _open(self._folder, self._origin, self._frame.tokenizer)
            self._refuse_another(tokenizer)
            self._tokenizer = tokenizer

    def _numbers(self, text: str) -> list[int]:
        """The tokens of the text alone, as many as fit."""
        self.check()
        read = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True
        )
        numbers, room = read["input_ids"], self.length - self._frame.size
        if len(numbers) > room:
            self._warn(text, read["offset_mapping"][room][0], len(numbers) - room)
        return numbers[:room]

    def _warn(self, text: str, place: int, lost: int) -> None:
        self.cut += 1
        if hash(text) in self._shown:
            return
        self._shown.add(hash(text))
        kept, gone = text[:place].rstrip(), text[place:].lstrip()
        kept = kept if len(kept) <= SHOWN else f"...{kept[-SHOWN:]}"
        gone = gone if len(gone) <= SHOWN else f"{gone[:SHOWN]}..."
        LOG.warning(
            "A text is longer than %d tokens and is cut (number %d): %r is read, %r "
            "(the last %d tokens) is not.",
            self.length,
            len(self._shown),
            kept,
            gone,
            lost,
        )

    def _refuse_another(self, tokenizer: Any) -> None:
        """WeightsError for a tokenizer that does not belong to the encoder."""
        size, embedded = 1 + max(tokenizer.get_vocab().values()), self._vocabulary
        frame, problems = self._frame, []
        if size > embedded:
            problems.append(f"it has {size} tokens, more than the encoder's {embedded}")
        if 2 * size < embedded:  # embeddings are rounded up, but not by so much
            problems.append(f"it has {size} tokens, the encoder {embedded}")
        for name, number in (frame.padding, *frame.before, *frame.after):
            theirs = tokenizer.convert_tokens_to_ids(name)
            if theirs != number:
                problems.append(f"its {name} is {theirs}, the encoder's is {number}")
        if problems:
            raise WeightsError(
                f"The tokenizer in {self._folder} is not that of "
                f"{self._origin.network}: {'; '.join(problems)}. {self._origin.remedy}"
            )


def _refuse_others(texts: Sequence[str]) -> None:
    """ValueError for what is no sequence of texts."""
    if isinstance(texts, str | bytes):
        raise ValueError("A list of texts is read, not one text: put it in a list.")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"Text {i} is {type(text).__name__}, not str: {text!r:.60}. Bytes are "
                'decoded with .decode("utf-8").'
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Text {i} cannot be written in UTF-8: {text!r:.60} was decoded from "
                "bytes of another encoding."
            ) from error


def _open(named: str, origin: Origin, kind: str) -> Any:
    """The tokenizer of a folder, which must hold a vocabulary.

    Without one, transformers would make a tokenizer that knows next to nothing.
    """
    # Its advice, that PyTorch is absent, is none here.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        import transformers
    except ImportError as error:
        also = "" if named else f". {origin.remedy}"  # both are told at once
        raise WeightsError(
            f"Reading texts needs the package transformers: {INSTALL}{also}"
        ) from error
    path = find(named, origin, TOKENIZER_FILES)
    folder = path if path.is_dir() else path.parent
    if not any(all((folder / n).is_file() for n in names) for names in VOCABULARIES):
        content = ", ".join(sorted(file.name for file in folder.iterdir())[:12])
        known = ", ".join(" and ".join(names) for names in VOCABULARIES)
        raise WeightsError(
            f"{folder} holds no tokenizer: none of {known}, but "
            f"{content or 'nothing'}. {origin.remedy}"
        )
    whole = folder / WHOLE
    try:
        if whole.is_file():  # needs no class of its own
            general = transformers.PreTrainedTokenizerFast
            return general(tokenizer_file=str(whole), model_max_length=NO_LIMIT)
        own = getattr(transformers, kind)
        return own.from_pretrained(folder, model_max_length=NO_LIMIT)
    except Exception as error:  # each format and damage has an exception of its own
        raise WeightsError(
            f"The tokenizer in {folder} cannot be read ({first_line(error)}): bring "
            f"its {WHOLE}, or what it asks for ({INSTALL}). {origin.remedy}"
        ) from error
