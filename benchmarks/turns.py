"""Two commits in turns, in one sitting on one device: what a change brought.

git worktree add ../before COMMIT
python -m benchmarks.turns ../before --only 'pixnerd-*' --rounds 2

Every turn is a process of its own, so that no commit's memory is in the other's way.
All of them compile first, a few at once; then one after the other has the device to
itself: before, now, before, now, case by case in the order of `--only`. All wait with
their programs until then: name a few cases at once. The other commit may be older than
this command: what its benchmarks lack is taken from here, the package and its cases are
its own. Rows go to the same file as those of `benchmarks.against`, whose table shows
both.
"""

import argparse
import dataclasses
import itertools
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


class Turn:
    """The process of one turn of one commit at one case."""

    def __init__(
        self, which: str, case: Case, args: argparse.Namespace, cache: pathlib.Path
    ) -> None:
        self.which, self.case = which, case
        self.errors = tempfile.TemporaryFile("w+")
        other = which == against.BEFORE
        root = args.other.resolve() if other else harness.ROOT
        command = [sys.executable, "-m", "benchmarks.turn", "--case", case.to_json()]
        command += ["--repeats", str(args.repeats), "--seconds", str(args.seconds)]
        command += [] if other else ["--rates"]
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env=_environment(root, args.commit if other else "") | suite.cached(cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def ready(self) -> bool:
        """Wait until it has compiled; False where it ended instead."""
        return any(line.strip() == READY for line in self.process.stdout)

    def take(self) -> dict:
        """The record of the turn; its process ends, and so do its allocations."""
        output, _ = self.process.communicate("go\n")
        for line in output.splitlines():
            if line.startswith(harness.ROW):
                return json.loads(line.removeprefix(harness.ROW))
        return {**harness.environment(), "rows": [{"failed": self.why()}]}

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
    """One record of a commit's turns: medians over them, each turn's own beside them.

    The first that failed, where one did.
    """
    turns = [record["rows"][0] for record in records]
    for record, turn in zip(records, turns, strict=True):
        if "failed" in turn:
            return record
    row = turns[-1] | {
        name: statistics.median(turn[name] for turn in turns)
        for name in ("ms", "queued_ms", "images_s", *RATES)
        if name in turns[0]
    }
    row["fastest_ms"] = min(turn["fastest_ms"] for turn in turns)
    row["turns"] = [[turn["ms"], turn["queued_ms"]] for turn in turns]
    return {**records[-1], "rows": [row]}


def in_turns(turns: list[Turn]) -> list[dict]:
    """The record of each commit at one case, when all have had their turns."""
    taken: dict[str, list[dict]] = {which: [] for which in SIDES}
    for turn in turns:
        taken[turn.which].append(turn.take())
    records = [combined(taken[which]) for which in SIDES]
    rates = {k: v for r in records for k, v in r["rows"][0].items() if k in RATES}
    case = turns[0].case
    for which, record in zip(SIDES, records, strict=True):
        what = {"which": which, "case": case.label, **dataclasses.asdict(case)}
        record["rows"] = [what | rates | record["rows"][0]]
        columns = ("ms", "queued_ms", "turns", "matmul_tflops")
        suite.say(f"{case.label}, {which}", record["rows"][0], columns)
    return records


def started(
    cases: list[Case], args: argparse.Namespace, cache: pathlib.Path
) -> list[list[Turn]]:
    """The turns of each case in their order, `args.jobs` of them compiling at once.

    The first turns come first, so that the others find their programs in the cache.
    """
    slots, begun = threading.Semaphore(args.jobs), time.monotonic()

    def compiled(which: str, case: Case) -> Turn:
        with slots:
            turn = Turn(which, case, args, cache)
            words = "compiled" if turn.ready() else "ended"
        passed = time.monotonic() - begun
        print(f"{case.label}, {which}: {words} after {passed:.0f} s", flush=True)
        return turn

    found: list[list[Turn]] = [[] for _ in cases]
    with futures.ThreadPoolExecutor(len(SIDES) * len(cases)) as pool:
        for _ in range(args.rounds):
            all_of_them = itertools.product(cases, SIDES)
            running = [
                pool.submit(compiled, which, case) for case, which in all_of_them
            ]
            for number, one in enumerate(running):
                found[number // len(SIDES)].append(one.result())
    return found


def run(cases: list[Case], args: argparse.Namespace) -> list[dict]:
    """Measure all cases in turns; every row is on disk as soon as it is there."""
    rows, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        found = started(cases, args, pathlib.Path(cache))
        try:
            for turns in found:
                if time.monotonic() - begun > args.deadline:
                    print(f"{turns[0].case.label}: no time was left", flush=True)
                    continue
                for record in in_turns(turns):
                    harness.append(args.json, record)
                    rows += record["rows"]
        finally:
            for turn in itertools.chain(*found):
                turn.end()
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
