"""Ours beside the strongest form of the official code, on one kind of card.

python -m benchmarks.against --markdown [--into benchmarks/RESULTS.md]
python -m benchmarks.against --only 'pixnerd-*' --cache CACHE

What the official code takes is kept as data, results/official.jsonl: a line a baseline,
with what it is. Several may stand for a case; the fastest is the one to beat. Ours is
the newest row of results/against.jsonl; rows whose "which" is "before" are of another
commit, measured in turns with it in the same sitting (see `turns`). Shares of the
matmul rate are of the same rate for both sides, that of our newest row.
"""

import argparse
import dataclasses
import json
import math
import pathlib

from benchmarks import harness, markdown, perceptual, speed, suite
from benchmarks.case import FLOW, SAMPLE, TRAIN, Case
from benchmarks.worker import COUNT

OFFICIAL = harness.RESULTS / "official.jsonl"
RESULTS = harness.RESULTS / "against.jsonl"
COLUMNS = ["case", "official", "strongest official", "ours before: waited", "queued"]
COLUMNS += ["**ours now**: waited", "queued", "times before", "times the strongest"]
COLUMNS += ["MFU: strongest", "ours, queued", "must", "aim"]
BEFORE, NOW = "before", "now"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """A case and what it has to take, in milliseconds a run."""

    case: Case
    must: float
    aim: float


def goals() -> list[Goal]:
    """All cases, with figures that hold on one H200."""
    rows = {row.case.name: row.case for row in speed.ROWS}
    full = perceptual.case(speed.PIXGEN, 128, perceptual.OWN, True)
    more = [
        dataclasses.replace(full, name="pixelgen-full-128"),
        Case(
            what=TRAIN,
            config=speed.PIXNERD,
            batch=128,
            changes=FLOW,
            name="pixnerd-train-128",
        ),
    ]
    rows |= {case.name: case for case in more}
    return [
        Goal(case=rows[name], must=must, aim=aim)
        for name, must, aim in (
            ("pixnerd-train-32", 70, 62),
            ("pixnerd-train-128", 240, 212),
            ("pixelgen-train-32", 70, 62),
            ("pixelgen-train-128", 235, 206),
            ("pixelgen-full-32", 98, 85),
            ("pixelgen-full-128", 325, 275),
            ("pixelflow-train-16", 235, 195),
            ("pixnerd-euler50-1", 95, 70),
            ("pixnerd-euler50-32", 1600, 1500),
            ("pixelgen-heun50-1", 180, 130),
            ("pixelgen-heun50-32", 3000, 2800),
            ("pixelflow-4x30-1", 1000, 800),
        )
    ]


def baselines(path: pathlib.Path = OFFICIAL) -> dict[str, list[dict]]:
    """The official code's figures by case, the fastest first."""
    found: dict[str, list[dict]] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["case"], []).append(row)
    return {case: sorted(rows, key=lambda r: r["ms"]) for case, rows in found.items()}


def line(goal: Goal, official: list[dict], ours: dict[str, dict]) -> list[object]:
    """The cells of a case; `ours` holds what was measured, "before" and "now"."""
    strongest, slowest = official[0], official[-1]
    before, now = ours.get(BEFORE, {}), ours.get(NOW, {})
    unit = _seconds if goal.case.what == SAMPLE else _milliseconds
    cells = [goal.case.name, unit(slowest["ms"])]
    cells.append(unit(strongest["ms"]) if len(official) > 1 else "the same")
    cells += [unit(before.get("ms")), unit(before.get("queued_ms"))]
    cells += [f"**{unit(now.get('ms'))}**", unit(now.get("queued_ms"))]
    cells.append(_times(before, now))
    cells.append(f"{strongest['ms'] / now['ms']:.2f}" if now else "")
    cells += [_share(now, strongest["ms"]), _share(now, now.get("queued_ms"))]
    return [*cells, unit(goal.must), unit(goal.aim)]


def _times(before: dict, now: dict) -> str:
    """How much faster queued runs are now: a ratio of one sitting, where both ran."""
    if not ("queued_ms" in before and "queued_ms" in now):
        return ""
    return f"{before['queued_ms'] / now['queued_ms']:.2f}"


def _share(row: dict, ms: float | None) -> str:
    """What part of the matmul rate of `row` its operations use in that time."""
    if ms is None or "model_tflop" not in row:
        return ""
    return f"{100e3 * row['model_tflop'] / row['matmul_tflops'] / ms:.0f} %"


def _milliseconds(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.1f} ms"


def _seconds(ms: float | None) -> str:
    return "-" if ms is None else f"{ms / 1e3:.3f} s"


def newest(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """By case the newest rows that did not fail: "now" and "before"."""
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        if "failed" not in row and not math.isnan(row.get("ms", math.nan)):
            found.setdefault(row["case"], {})[row.get("which", NOW)] = row
    return found


def render(rows: list[dict], counts: dict[str, dict]) -> str:
    """The table in Markdown, and what each baseline and each of our rows is."""
    official, ours = baselines(), newest(rows)
    for name, both in ours.items():
        known = counts.get(name, {})
        ours[name] = {k: suite.with_operations(row, known) for k, row in both.items()}
    lines = [line(g, official[g.case.name], ours.get(g.case.name, {})) for g in goals()]
    kinds = dict.fromkeys(row["what"] for some in official.values() for row in some)
    on = next(iter(official.values()))[0]["device"]
    legend = f"Official on {on}: {'; '.join(kinds)}."
    now = [both[NOW] for both in ours.values() if NOW in both]
    table = markdown.table(COLUMNS, lines)
    return f"{table}\n\n{legend}\n\n{markdown.source(now)}".rstrip()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    suite.add_arguments(parser)
    parser.set_defaults(json=RESULTS)
    parser.add_argument("--only", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--markdown", action="store_true", help="render, run nothing")
    parser.add_argument("--into", type=pathlib.Path, help="fill the place there")
    return parser.parse_args()


def main() -> None:
    """Measure the cases and print the table, or only render what was measured."""
    args = arguments()
    if not args.markdown:
        names = speed.matching([goal.case.name for goal in goals()], args.only)
        suite.run([g.case for g in goals() if g.case.name in names], args)
    if args.phase == COUNT and not args.markdown:
        return
    counts = speed.newest(harness.read(speed.OPERATIONS))
    text = render(harness.read(args.json), counts)
    if args.into:
        markdown.fill(args.into, "against", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
