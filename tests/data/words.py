"""A reader of captions small enough to check by hand: a number for each word."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

END, FIRST, VOCABULARY = 1, 2, 30


def number(word: str) -> int:
    """The token of a word, the same in every process."""
    digest = hashlib.sha256(word.encode()).digest()
    return FIRST + digest[0] % (VOCABULARY - FIRST)


@dataclasses.dataclass(frozen=True)
class WordReader:
    """Texts -> "tokens" and "mask" [n, length]; an end token behind the words."""

    length: int

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        tokens = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            ids = [number(word) for word in text.split()][: self.length - 1] + [END]
            row[: len(ids)] = ids
        return {"tokens": tokens, "mask": tokens > 0}

    def check(self) -> None:
        """Nothing can be wrong with it."""


@dataclasses.dataclass(frozen=True)
class Codepoints:
    """Texts -> their first `length` code points: tells every caption apart."""

    length: int

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        points = np.zeros((len(texts), self.length), np.int32)
        for row, text in zip(points, texts, strict=True):
            row[: len(text)] = [ord(c) for c in text[: self.length]]
        return {"points": points}


def texts(batch: dict) -> list[str]:
    """What Codepoints read."""
    return ["".join(map(chr, row[row > 0])) for row in batch["points"]]
