"""Which sampling settings are best: points of a grid, measured once each, and shown.

Reported numbers depend on the average, the guidance scale and its interval, the shift,
the steps and the solver as much as on the method. A sweep draws the same noise and the
same classes at every point; each result is a line of a file, so that a sweep that was
cut goes on where it was.
"""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import EvaluationError

Value = str | float | int
Point = dict[str, Value]  # by axis; what is not swept stays as it is
Row = dict[str, float]  # results by metric

# From the slowest to the fastest: other weights are loaded as seldom as can be.
AXES = ("ema", "solver", "steps", "shift", "interval", "scale")
ALWAYS = "all"  # the interval without ends
HIGHER = ("is", "precision", "recall", "density", "coverage")  # is better
POSTHOC_WIDTHS = (0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usual:
    """What a model draws with where nothing is said, from which values are chosen.

    `averages` are those that there are, `solvers` all that can be named.
    """

    averages: tuple[str, ...]
    solvers: tuple[str, ...]
    solver: str
    steps: int
    shift: float
    scale: float

    def values(self, axis: str) -> list[Value]:
        """Sensible values of an axis, the usual one among them."""
        if axis == "ema":
            return list(self.averages)
        if axis == "solver":
            return list(dict.fromkeys([self.solver, "euler", "heun", "adams2"]))
        if axis == "steps":
            return [max(1, round(self.steps * f)) for f in (0.25, 0.5, 1, 2)]
        if axis == "shift":
            return sorted({1.0, 1.5, 2.0, 3.0, float(self.shift)})
        if axis == "interval":
            return [ALWAYS, "0:0.9", "0.1:1", "0.1:0.9", "0.2:1", "0.3:1"]
        above = max(self.scale - 1, 0.5)
        shares = (0.25, 0.5, 0.75, 1, 1.5, 2)
        return [1.0, *(round(1 + above * share, 3) for share in shares)]


def parse(text: str, usual: Usual) -> dict[str, list[Value]]:
    """The axes that `--sweep` names and their values, the slowest axis first.

    "ema,scale" chooses values by itself; "scale=1,1.5,2;steps=20,50" names them.
    Raises EvaluationError for what is neither.
    """
    named: dict[str, list[Value]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        axis, equals, values = part.partition("=")
        axes = [axis] if equals else part.split(",")
        for one in map(str.strip, axes):
            if one not in AXES or one in named:
                twice = (
                    "names an axis twice" if one in named else f"has no axis {one!r}"
                )
                raise EvaluationError(
                    f"--sweep={text!r} {twice}: the axes are {', '.join(AXES)}. Write "
                    '--sweep=ema,scale, or --sweep="scale=1,1.5,2;steps=20,50".'
                )
            chosen = values.split(",") if equals else usual.values(one)
            read = [_value(one, str(value).strip(), usual) for value in chosen]
            named[one] = list(dict.fromkeys(read))
    if not named:
        raise EvaluationError(
            f"--sweep is empty: name axes, such as --sweep=scale, of {', '.join(AXES)}."
        )
    return {axis: named[axis] for axis in AXES if axis in named}


def _value(axis: str, text: str, usual: Usual) -> Value:
    """One value of an axis; EvaluationError for what is none."""
    wanted = {
        "steps": "a whole number above 0",
        "shift": "a number above 0",
        "scale": "a number of at least 0",
        "interval": f"LOW:HIGH, such as 0.1:1, or {ALWAYS!r}",
        "solver": f"one of {', '.join(usual.solvers)}",
        "ema": "the name of an average, such as 0.9999 or posthoc:0.1",
    }
    try:
        if axis == "ema" and text:
            return text
        if axis == "solver" and text in usual.solvers:
            return text
        if axis == "steps" and int(text) >= 1:
            return int(text)
        if axis == "interval" and (text == ALWAYS or _ends(text)):
            return text
        if axis == "scale" and 0 <= float(text) < math.inf:
            return float(text)
        if axis == "shift" and 0 < float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise EvaluationError(f"--sweep: {axis}={text!r} must be {wanted[axis]}.")


def _ends(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(":"))
    if not low < high:
        raise ValueError(text)
    return low, high


def interval_ends(text: str) -> tuple[float, float]:
    """The times between which guidance acts, of an axis' value."""
    return (-math.inf, math.inf) if text == ALWAYS else _ends(text)


def points(axes: Mapping[str, Sequence[Value]]) -> list[Point]:
    """All combinations, each once: without guidance its interval says nothing."""
    every = [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]
    if "interval" in axes:
        first = axes["interval"][0]
        every = [_plain(point, first) for point in every]
    return [json.loads(key) for key in dict.fromkeys(map(_key, every))]


def _plain(point: Point, interval: Value) -> Point:
    return {**point, "interval": interval} if point.get("scale") == 1 else point


def _key(point: Point) -> str:
    return json.dumps(point)


def words(point: Point) -> str:
    """A point for people: "ema=0.9999 scale=1.5"."""
    return " ".join(f"{axis}={_short(value)}" for axis, value in point.items())


def _short(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class Ledger:
    """The results of a sweep, a line of JSON a point, in a file that only grows.

    `facts` are what makes two results comparable (weights, count, seed, reference,
    networks): lines of others are left alone. `main` says whether this process writes.
    """

    def __init__(self, path: pathlib.Path, facts: Mapping[str, object], main: bool):
        self._path, self._facts, self._main = path, dict(facts), main
        self.rows: dict[str, Row] = {}
        lines = []
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                if row["facts"] == self._facts:
                    self.rows[_key(row["point"])] = row["results"]
                lines.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # the line that a kill cut short
        if path.exists() and main:
            with atomic_write(path) as partial:
                partial.write_text("".join(lines), "utf-8")

    def get(self, point: Point) -> Row | None:
        """The results at a point, None where it is still to be measured."""
        return self.rows.get(_key(point))

    def add(self, point: Point, results: Row, **more: object) -> None:
        """Keep the results at a point, on disk when this returns."""
        self.rows[_key(point)] = dict(results)
        if not self._main:
            return
        row = {"point": point, "results": results, **more, "facts": self._facts}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def run(
    wanted: Sequence[Point],
    ledger: Ledger,
    measure: Callable[[Point], Row],
    say: Callable[[str], object] = print,
) -> None:
    """Measure the points that `ledger` lacks, one after the other, and say so.

    The time left is told from the points measured in this sitting. Raises what
    `measure` raises, and EvaluationError for a result that is not finite.
    """
    waiting = [point for point in wanted if ledger.get(point) is None]
    before = len(wanted) - len(waiting)
    if before:
        say(f"{before} of {len(wanted)} points were measured before")
    began = time.monotonic()
    for done, point in enumerate(waiting, 1):
        started = time.monotonic()
        results = measure(point)
        _check_finite(point, results)
        now = time.monotonic()
        ledger.add(point, results, seconds=round(now - started, 3))
        left = (now - began) / done * (len(waiting) - done)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
        say(
            f"[{before + done}/{len(wanted)}] {words(point)}: {shown} "
            f"({now - started:.0f} s, about {_duration(left)} left)"
        )


def _check_finite(point: Point, results: Row) -> None:
    bad = [name for name, value in results.items() if not math.isfinite(value)]
    if bad:
        raise EvaluationError(
            f"{', '.join(bad)} is not finite at {words(point)}: leave that point out, "
            "or look at its images with `pixelflow sample`. The other points are kept."
        )


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of a metric is the better one."""
    return metric.split("_")[0] in HIGHER


def main_metrics(rows: Iterable[Row]) -> list[str]:
    """The metrics of results, without the deviations that some come with."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if not name.endswith("_std")]


def best(ledger: Ledger, wanted: Sequence[Point], metric: str) -> Point:
    """The point of the best value; of equal ones the first."""
    measured = [point for point in wanted if metric in (ledger.get(point) or {})]
    sign = -1 if higher_is_better(metric) else 1
    return min(measured, key=lambda point: sign * (ledger.get(point) or {})[metric])
