"""Two commits in turns, in one sitting on one device: what a change brought.

git worktree add ../before COMMIT
python -m benchmarks.turns ../before --only 'pixnerd-*' --rounds 2

Every case runs in two processes, one of the other checkout ("before") and one of this
one ("now"). All compile first, a few at once; then each pair in turn has the device to
itself: before, now, before, now, in the order of `--only`. Name what needs most memory
last: the programs of cases still to come take some of it. The other commit may be
older than this command: what its benchmarks lack is taken from here, the package and
its cases are its own. Rows go to the same file as those of `benchmarks.against`, whose
table shows both.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent import futures

from benchmarks import against, harness, speed, suite
from benchmarks.case import Case
from benchmarks.turn import READY
from benchmarks.worker import COMPILE

SIDES = against.BEFORE, against.NOW
# Of the machine, measured by this commit for both.
RATES = "matmul_tflops", "copy_tbs"


class Side:
    """The process of one commit with one case."""

    def __init__(self, which: str, case: Case, args: argparse.Namespace) -> None:
        self.which, self.case = which, case
        self.errors = tempfile.TemporaryFile("w+")
        root = args.other.resolve() if which == against.BEFORE else harness.ROOT
        command = [sys.executable, "-m", "benchmarks.turn", "--case", case.to_json()]
        command += ["--repeats", str(args.repeats), "--seconds", str(args.seconds)]
        command += ["--rates"] if which == against.NOW else []
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env=_environment(root, args.commit if which == against.BEFORE else ""),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ready(self) -> bool:
        """Wait until it has compiled; False where it ended instead."""
        return any(line.strip() == READY for line in self.process.stdout)

    def turn(self) -> dict:
        """The record of one turn; raises RuntimeError where the process ended."""
        try:
            self.process.stdin.write("turn\n")
            self.process.stdin.flush()
        except OSError:  # it has ended: its output ends as well
            pass
        for line in self.process.stdout:
            if line.startswith(harness.ROW):
                return json.loads(line.removeprefix(harness.ROW))
        raise RuntimeError(self.why())

    def why(self) -> str:
        """Why it ended, in a few words."""
        self.process.wait()
        self.errors.seek(0)
        return harness.reason(self.errors.read())

    def end(self) -> None:
        """Give its memory back."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


def _environment(root: pathlib.Path, commit: str) -> dict[str, str]:
    """A process's variables: its checkout first, ours behind it for what it lacks."""
    path = [str(root), str(harness.ROOT), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, **suite.ENVIRONMENTS[COMPILE]}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    if root != harness.ROOT:
        found.pop("COMMIT", None)  # it is ours; the other asks its own git
    return found | ({"COMMIT": commit} if commit else {})


def combined(records: list[dict]) -> dict:
    """One record of a side's turns: medians over them, each turn's own beside them."""
    turns = [record["rows"][0] for record in records]
    row = turns[-1] | {
        name: statistics.median(turn[name] for turn in turns)
        for name in ("ms", "queued_ms", "images_s", *RATES)
        if name in turns[0]
    }
    row["fastest_ms"] = min(turn["fastest_ms"] for turn in turns)
    row["turns"] = [[turn["ms"], turn["queued_ms"]] for turn in turns]
    return {**records[-1], "rows": [row]}


def in_turns(sides: list[Side], rounds: int) -> list[dict]:
    """The sides' records of one case, after `rounds` turns of each."""
    turns: dict[str, list[dict]] = {side.which: [] for side in sides}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for side in sides:
            try:
                turns[side.which].append(side.turn())
            except RuntimeError as error:
                failed.setdefault(side.which, str(error))
    records = [
        _failed(failed[side.which])
        if side.which in failed
        else combined(turns[side.which])
        for side in sides
    ]
    rates = {k: v for r in records for k, v in r["rows"][0].items() if k in RATES}
    for side, record in zip(sides, records, strict=True):
        what = {"which": side.which, "case": side.case.label}
        what |= dataclasses.asdict(side.case)
        record["rows"] = [what | rates | record["rows"][0]]
        columns = ("ms", "queued_ms", "turns", "matmul_tflops")
        suite.say(f"{side.case.label}, {side.which}", record["rows"][0], columns)
    return records


def _failed(why: str) -> dict:
    return {**harness.environment(), "rows": [{"failed": why}]}


def started(cases: list[Case], args: argparse.Namespace) -> list[list[Side]]:
    """The pairs of processes of all cases, `args.jobs` of them compiling at once."""
    slots, begun = threading.Semaphore(args.jobs), time.monotonic()

    def compiled(case: Case, which: str) -> Side:
        with slots:
            side = Side(which, case, args)
            words = "compiled" if side.ready() else "ended"
        passed = time.monotonic() - begun
        print(f"{case.label}, {which}: {words} after {passed:.0f} s", flush=True)
        return side

    with futures.ThreadPoolExecutor(2 * len(cases)) as pool:
        running = [[pool.submit(compiled, c, w) for w in SIDES] for c in cases]
        return [[one.result() for one in pair] for pair in running]


def run(cases: list[Case], args: argparse.Namespace) -> list[dict]:
    """Measure all cases in turns; every row is on disk as soon as it is there."""
    rows, begun = [], time.monotonic()
    pairs = started(cases, args)
    try:
        for sides in pairs:
            if time.monotonic() - begun > args.deadline:
                print(f"{sides[0].case.label}: no time was left", flush=True)
                continue
            for record in in_turns(sides, args.rounds):
                harness.append(args.json, record)
                rows += record["rows"]
            for side in sides:
                side.end()
    finally:
        for side in (side for sides in pairs for side in sides):
            side.end()
    return rows


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.set_defaults(json=against.RESULTS)
    add = parser.add_argument
    add("other", type=pathlib.Path, help="the checkout of the other commit")
    add("--commit", default="", help="its name, where it has no git of its own")
    add("--only", nargs="+", default=["*"], help="names or patterns")
    add("--rounds", type=int, default=2, help="turns of each commit")
    add("--seconds", type=float, default=math.inf, help="for the runs of a turn")
    jobs = max(1, (os.cpu_count() or 1) // suite.CORES_A_JOB)
    add("--jobs", type=int, default=jobs, help="processes that compile at once")
    add("--deadline", type=float, default=math.inf, help="seconds; no case begins then")
    args = parser.parse_args()
    if not (args.other / "benchmarks" / "case.py").is_file():
        parser.error(
            f"{args.other} is no checkout of this repository: there is no "
            "benchmarks/case.py. Make one with: git worktree add ../before COMMIT"
        )
    return args


def main() -> None:
    """Measure the cases in turns and print what came of them."""
    args = arguments()
    cases = {goal.case.name: goal.case for goal in against.goals()}
    found = (speed.matching(list(cases), [pattern]) for pattern in args.only)
    names = dict.fromkeys(name for some in found for name in some)
    rows = run([cases[name] for name in names], args)
    shown = ("case", "which", "ms", "queued_ms", "peak_gb", "matmul_tflops", "failed")
    harness.print_table([{k: r[k] for k in shown if k in r} for r in rows])


if __name__ == "__main__":
    main()
