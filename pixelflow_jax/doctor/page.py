"""Checks one after the other, over all processes, as one page of text."""

import textwrap
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from pixelflow_jax import distributed
from pixelflow_jax.errors import UserError

State = Literal["ok", "FAILED", "skipped"]
WIDTH = 96  # columns of a line
LAST = 3  # lines of a traceback that are shown


class Skip(Exception):
    """A check that says nothing here, and why."""


class Check(NamedTuple):
    """A name, and a function that returns lines to show, or raises what is wrong."""

    name: str
    run: Callable[[], list[str]]


class Outcome(NamedTuple):
    """What came of a check in all processes, with the lines of the first."""

    name: str
    state: State
    seconds: float
    lines: list[str]


def examine(checks: list[Check]) -> Iterator[Outcome]:
    """Carry out checks, in every process the same; one has failed if it has in any.

    Whatever goes wrong in a check is its outcome: the next one is carried out all the
    same.
    """
    for check in checks:
        start = time.perf_counter()
        state, lines = _carried_out(check)
        every = distributed.everyones([state, lines])
        failed = [(i, told) for i, (state, told) in enumerate(every) if state != "ok"]
        if failed:
            index, lines = failed[0]
            state = every[index][0]
            if len(every) > 1:
                numbers = ", ".join(str(i) for i, _ in failed)
                lines = [f"in process {numbers} of {len(every)}:", *lines]
        yield Outcome(check.name, state, time.perf_counter() - start, lines)


def _carried_out(check: Check) -> tuple[State, list[str]]:
    try:
        return "ok", check.run()
    except Skip as reason:
        return "skipped", [str(reason)]
    except UserError as error:
        return "FAILED", [f"{type(error).__name__}: {error}"]
    except Exception as error:  # whatever a compiler, a driver or a kernel raises
        where = traceback.extract_tb(error.__traceback__)[-LAST:]
        places = [f"  {f.filename}:{f.lineno} in {f.name}" for f in where]
        return "FAILED", [f"{type(error).__name__}: {error}", *places]


def shown(outcome: Outcome) -> str:
    """The lines of a check, folded to a page's width."""
    head = f"{outcome.name:<12}{outcome.state:<8}{outcome.seconds:6.1f} s  "
    rows = []
    for line in "\n".join(outcome.lines).splitlines():
        rows += textwrap.wrap(line, WIDTH - len(head)) or [""]
    first, *rest = rows or [""]
    return "\n".join([(head + first).rstrip(), *(" " * len(head) + r for r in rest)])


def summary(outcomes: list[Outcome]) -> str:
    """The last line of the page."""
    failed = [one.name for one in outcomes if one.state == "FAILED"]
    skipped = sum(one.state == "skipped" for one in outcomes)
    said = f"{len(outcomes) - len(failed) - skipped} ok, {skipped} skipped"
    return f"{said}, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}"
