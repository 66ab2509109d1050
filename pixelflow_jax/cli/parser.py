"""Parsers of the commands that are no runs: brief errors, values in range."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from pixelflow_jax.cli.terminal import give_up

WRONG = 2  # exit code of a command line that cannot be read


class Parser(argparse.ArgumentParser):
    """An argument parser whose help keeps its lines, and which refuses briefly."""

    def __init__(self, **options: Any):
        """Options as of argparse's own."""
        raw = argparse.RawDescriptionHelpFormatter
        options.setdefault("formatter_class", raw)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """End the command with a paragraph, exit code 2."""
        message = message.removeprefix("argument ").rstrip(".")
        give_up(f"{message}. See `{self.prog} --help`.", WRONG)

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """End the command where words are left that no flag of the parser takes."""
        if not words:
            return
        known = [flag for action in self._actions for flag in action.option_strings]
        complaints = []
        for word in words:
            flag = word.split("=")[0]
            near = difflib.get_close_matches(flag.replace("_", "-"), known, 1)
            meant = f", did you mean {near[0]}?" if near else ""
            complaints.append(f"{flag} is no flag or word of `{self.prog}`{meant}")
        self.error("; ".join(complaints))


def at_least(least: int) -> Callable[[str], int]:
    """What reads a whole number that is `least` or more."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} must be a whole number of at least {least}"
            )
        return number

    return read


def between(low: float, high: float) -> Callable[[str], float]:
    """What reads a number in [low, high]."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r} must be a number from {low:g} to {high:g}"
            )
        return number

    return read


def nonempty(text: str) -> str:
    """What reads a path, which cannot be empty."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty: name a file or a folder")
    return text
