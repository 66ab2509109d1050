"""Lines of results as rows of tables, and what a claim comes to."""

import pathlib
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.study import records
from benchmarks.study.rows import ROWS, SEEDS, Claim

SHOWN = {
    "fd_lite0": ("FD-lite0", 1),
    "fd_lite0_heldout": ("FD-lite0, held out", 1),
    "fd_st": ("FD-ST", 4),
    "fd_st_heldout": ("FD-ST, held out", 4),
    "kid_lite0_heldout": ("KID-lite0, held out", 4),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "precision_heldout": ("precision, held out", 3),
    "recall_heldout": ("recall, held out", 3),
    "copied": ("copied", 2),
}
NOT_RUN = "not run"


class Spread(NamedTuple):
    """Mean and standard deviation over seeds, and how many there are."""

    mean: float
    deviation: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The deviation is that of a sample; 0 for one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), deviation, len(values))

    def words(self, digits: int) -> str:
        """Such as 12.3 ± 0.4."""
        return f"{self.mean:.{digits}f} ± {self.deviation:.{digits}f}"


Lines = dict[str, list[dict]]  # by row


def read(path: pathlib.Path, budget: str) -> Lines:
    """The results of each row at a budget, the last of each seed."""
    found: dict[tuple[str, int], dict] = {}
    for line in records.read(path):
        if line["budget"] == budget:
            found[line["row"], line["seed"]] = line
    rows: Lines = {}
    for (name, _), line in sorted(found.items()):
        rows.setdefault(name, []).append(line)
    return rows


def name_of(metric: str) -> str:
    """What tables call a metric."""
    return SHOWN[metric][0]


def spread(lines: list[dict], metric: str) -> Spread | None:
    """A metric over the seeds of a row; None where it was not measured."""
    values = [line["results"].get(metric) for line in lines]
    return Spread.of(values) if values and None not in values else None


def best_of(
    names: Sequence[str], lines: Lines, metric: str
) -> tuple[str, Spread] | None:
    """The row of the smallest mean, None where none was run with several seeds."""
    spreads = {name: spread(lines.get(name, []), metric) for name in names}
    known = {name: one for name, one in spreads.items() if one and one.count > 1}
    if not known:
        return None
    name = min(known, key=lambda name: known[name].mean)
    return name, known[name]


def verdict(claim: Claim, lines: Lines) -> str:
    """Whether it agrees, does not, or cannot be told at this size, with the figures.

    A difference counts where it is more than twice its standard error over the seeds.
    """
    partner = dict(zip(claim.than, claim.better, strict=False))
    others = [n for n in claim.than if not claim.paired or partner[n] in lines]
    than = best_of(others, lines, claim.metric)
    chosen = (partner[than[0]],) if claim.paired and than else claim.better
    better = best_of(chosen, lines, claim.metric)
    if better is None or than is None:
        return NOT_RUN
    difference = than[1].mean - better[1].mean
    error = sum(one.deviation**2 / one.count for one in (better[1], than[1])) ** 0.5
    word = "agrees" if difference > 0 else "does not"
    if abs(difference) <= 2 * error:
        word = "cannot tell at this size"
    digits = SHOWN[claim.metric][1]
    return (
        f"{word}: {ROWS[better[0]].label} {better[1].words(digits)}, "
        f"{ROWS[than[0]].label} {than[1].words(digits)}"
    )


def table(claim: Claim, lines: Lines) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of a claim's table; rows that were not run say so."""
    columns = ["", "seeds", "params", "MFLOP an image"]
    columns += [title for title, _ in SHOWN.values()]
    columns += ["sweep's best", "s a row"]
    return columns, [_cells(name, lines[name]) for name in claim.rows if name in lines]


def _cells(name: str, lines: list[dict]) -> list[object]:
    first = lines[0]
    figures = []
    for key, (_, digits) in SHOWN.items():
        found = spread(lines, key)
        figures.append(found.words(digits) if found else "not measured")
    return [
        ROWS[name].label,
        str(len(lines)),
        f"{first['params'] / 1e6:.2f}M",
        f"{first['forward_mflops']:.0f}",
        *figures,
        "; ".join(dict.fromkeys(_best(line["best"]) for line in lines)),
        f"{_seconds(lines):.0f}",
    ]


def _seconds(lines: list[dict]) -> float:
    """Training and measuring of a row; seeds that ran side by side count once."""
    runs = {tuple(line.get("seconds", {}).items()) for line in lines}
    return sum(s for run in runs for part, s in run if part in ("train", "measure"))


def _best(point: dict) -> str:
    scale, steps, ema = point["scale"], point["steps"], point["ema"]
    where = (
        "" if point["interval"] == "all" or scale == 1 else f" on {point['interval']}"
    )
    return f"scale {scale:g}{where}, {steps} steps, EMA {ema}"


def beside(names: Sequence[str], usual: Lines, other: Lines) -> list[list[object]]:
    """FD-lite0 of rows at two budgets, the best of the second first."""
    rows = []
    for name in names:
        pair = [spread(lines.get(name, []), "fd_lite0") for lines in (usual, other)]
        if None not in pair:
            rows.append((ROWS[name].label, *pair))
    rows.sort(key=lambda row: row[2].mean)
    return [[label, *(one.words(1) for one in pair)] for label, *pair in rows]


def missing(lines: Lines) -> list[str]:
    """Rows that lack seeds."""
    return [name for name in ROWS if len(lines.get(name, ())) < len(SEEDS)]
