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
import contextlib
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
from collections.abc import Iterator
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
        self.compile_budget, self.budget = args.compile_budget, args.budget
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        other = which == against.BEFORE
        root = args.other.resolve() if other else harness.ROOT
        command = [sys.executable, "-m", "benchmarks.turn", "--case", case.to_json()]
        command += ["--repeats", str(args.repeats), "--seconds", str(args.seconds)]
        command += [] if other else ["--rates"]
        self.commit = args.commit if other else harness.commit()
        self.process = subprocess.Popen(
            command,
            cwd=root,
            env=_environment(root, self.commit) | suite.cached(cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            errors="replace",
        )
        self.late = ""  # what took too long

    def ready(self) -> bool:
        """Wait until it has compiled; False where it ended instead."""
        with self._at_most(self.compile_budget, "compiling"):
            return any(line.strip() == READY for line in self.process.stdout)

    def take(self) -> dict:
        """The record of the turn; its process ends, and so do its allocations."""
        with self._at_most(self.budget, "the turn"):
            output, _ = self.process.communicate("go\n")
        for line in output.splitlines():
            if line.startswith(harness.ROW):
                return json.loads(line.removeprefix(harness.ROW))
        where = {**harness.environment(), "commit": self.commit}
        return {**where, "rows": [{"failed": self.why()}]}

    def why(self) -> str:
        """Why it ended, in a few words."""
        code = self.process.wait()
        self.errors.seek(0)
        errors = self.errors.read()
        sys.stderr.write(errors[-3000:])
        return self.late or f"exit {code}: {harness.reason(errors)}"

    @contextlib.contextmanager
    def _at_most(self, seconds: float, what: str) -> Iterator[None]:
        """Kill the process where something takes longer."""

        def kill() -> None:
            self.late = f"{what} took longer than {seconds:.0f} s"
            self.process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def end(self) -> None:
        """Give its memory back."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


def _environment(root: pathlib.Path, commit: str) -> dict[str, str]:
    """A process's variables: its checkout first, ours behind it for what it lacks."""
    path = [str(root), str(harness.ROOT), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, **suite.ENVIRONMENTS[COMPILE], "COMMIT": commit}
    return found | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


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


class Sitting:
    """All turns of some cases, whose processes end with it."""

    def __init__(self, cases: list[Case], args: argparse.Namespace) -> None:
        self.cases, self.args, self.begun = cases, args, time.monotonic()
        self.started: list[Turn] = []
        self.slots, self.over = threading.Semaphore(args.jobs), threading.Event()

    def compile(self, cache: pathlib.Path) -> list[list[Turn]]:
        """The turns of each case in their order, `args.jobs` compiling at once.

        The first turns come first, so that the others find their programs in the cache.
        """
        found: list[list[Turn]] = [[] for _ in self.cases]
        pool = futures.ThreadPoolExecutor(len(SIDES) * len(self.cases))
        try:
            for _ in range(self.args.rounds):
                pairs = itertools.product(self.cases, SIDES)
                running = [pool.submit(self._compiled, w, c, cache) for c, w in pairs]
                for number, one in enumerate(running):
                    found[number // len(SIDES)].append(one.result())
        finally:
            self.over.set()
            pool.shutdown(wait=False, cancel_futures=True)
        return found

    def _compiled(self, which: str, case: Case, cache: pathlib.Path) -> Turn:
        with self.slots:
            if self.over.is_set():
                raise RuntimeError("The sitting is over.")
            turn = Turn(which, case, self.args, cache)
            self.started.append(turn)
            words = "compiled" if turn.ready() else "ended"
        print(f"{case.label}, {which}: {words} after {self.passed:.0f} s", flush=True)
        return turn

    @property
    def passed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begun

    def end(self) -> None:
        """End all processes that are still there."""
        self.over.set()
        for turn in self.started:
            turn.end()


def run(cases: list[Case], args: argparse.Namespace) -> list[dict]:
    """Measure all cases in turns; every row is on disk as soon as it is there."""
    rows: list[dict] = []
    sitting = Sitting(cases, args)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        try:
            for turns in sitting.compile(pathlib.Path(cache)):
                if sitting.passed > args.deadline:
                    print(f"{turns[0].case.label}: no time was left", flush=True)
                    continue
                for record in in_turns(turns):
                    harness.append(args.json, record)
                    rows += record["rows"]
        finally:
            sitting.end()
    return rows


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.set_defaults(json=against.RESULTS)
    add = parser.add_argument
    add("other", type=pathlib.Path, help="the checkout of the other commit")
    add("--commit", default="", help="its name, if not what its own git says")
    add("--only", nargs="+", default=["*"], help="names or patterns")
    add("--rounds", type=int, default=2, help="turns of each commit")
    add("--seconds", type=float, default=math.inf, help="for the runs of a turn")
    add("--budget", type=float, default=180, help="seconds for a turn, all in all")
    add("--compile_budget", type=float, default=400, help="seconds to compile a case")
    jobs = max(1, (os.cpu_count() or 1) // suite.CORES_A_JOB)
    add("--jobs", type=int, default=jobs, help="processes that compile at once")
    add("--deadline", type=float, default=math.inf, help="seconds; no case begins then")
    args = parser.parse_args()
    if not (args.other / "benchmarks" / "case.py").is_file():
        parser.error(
            f"{args.other} is no checkout of this repository: there is no "
            "benchmarks/case.py. Make one with: git worktree add ../before COMMIT"
        )
    if min(args.jobs, args.rounds) < 1:
        parser.error(f"--jobs={args.jobs} --rounds={args.rounds}: both are at least 1")
    args.commit = args.commit or harness.commit(args.other)
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
