"""What a bad input is: what is done with it, and what the refusal must say."""

import contextlib
import io
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
from absl.testing import flagsaver

from pixelflow_jax import __main__ as commands
from pixelflow_jax import main  # noqa: F401  defines the flags that are saved below
from pixelflow_jax.errors import UserError

LINES = 3  # of a message, at most


class Row(NamedTuple):
    """One bad input.

    `run` is given an empty folder, and raises a UserError or ends in a SystemExit, as
    `command` does. `says` are the parts that the message must hold.
    """

    name: str
    run: Callable[[pathlib.Path], object]
    says: tuple[str, ...]


def command(*arguments: object) -> None:
    """Carry out `pixelflow ARGUMENTS` in this process; SystemExit where it refuses."""
    with flagsaver.flagsaver():
        code = commands.main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(code)


def refusal(row: Row, folder: pathlib.Path) -> str:
    """The message with which a bad input was refused."""
    error, out = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(out):
        try:
            row.run(folder)
        except SystemExit as stop:
            assert stop.code not in (0, None), out.getvalue()
            return error.getvalue().strip()
        except UserError as refused:
            return str(refused)
    pytest.fail(f"{row.name}: accepted, saying {out.getvalue()[-500:]!r}")


def check(row: Row, folder: pathlib.Path) -> None:
    """A refusal is short, names the mistake and its remedy, and shows no insides."""
    message = refusal(row, folder)
    assert message and "Traceback" not in message
    assert len(message.splitlines()) <= LINES, message
    for part in row.says:
        assert part in message, f"{part!r} is not in: {message}"
