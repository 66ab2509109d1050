"""The runner: rows in a queue, worked off by processes side by side on one GPU.

A line of results is written when a row's seeds are measured, so that the same command
goes on where it was stopped. A worker takes no row that would end after the deadline.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import queue
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple


class Plan(NamedTuple):
    """What is to be run: rows by name with their seeds, and where results go.

    `deadline` is in `time.time()`; a row is not begun later than `reserve` seconds
    before. Of `workers` processes `slots` compute at a time, in the order of the rows,
    while the others compile. `budget` names a `piece.Budget`, `steps` (0: its
    own) changes it.
    """

    rows: tuple[tuple[str, tuple[int, ...]], ...]
    out: pathlib.Path
    deadline: float
    reserve: float
    workers: int
    slots: int
    steps: int
    budget: str
    lite0: str = ""
    timed: bool = False


def done(path: pathlib.Path, budget: str) -> set[tuple[str, int]]:
    """The rows and seeds that a results file holds of a budget."""
    lines = path.read_text().splitlines() if path.exists() else []
    read = (json.loads(line) for line in lines if line.strip())
    return {(one["row"], one["seed"]) for one in read if one["budget"] == budget}


def missing(
    names: Sequence[str], seeds: Sequence[int], had: set[tuple[str, int]]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Rows by name, each with the seeds that are still to be run."""
    rows = ((n, tuple(s for s in seeds if (n, s) not in had)) for n in names)
    return tuple((name, left) for name, left in rows if left)


def run(plan: Plan) -> None:
    """Work off the plan with `plan.workers` processes, or in this one for one."""
    context = multiprocessing.get_context("spawn")
    waiting = context.Queue()
    for row in plan.rows:
        waiting.put(row)
    if plan.workers == 1:
        work(plan, waiting)
        return
    # Memory is taken as it is needed; not all processes need their share at once.
    share = min(0.9, 1.35 / plan.workers)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share:.3f}"
    workers = [
        context.Process(target=work, args=(plan, waiting)) for _ in range(plan.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(1.0, plan.deadline - time.time()))
        if worker.is_alive():
            worker.terminate()


def work(plan: Plan, waiting: Any) -> None:
    """Take rows until none are left or the time is up."""
    from benchmarks.study import piece
    from benchmarks.study.rows import ROWS

    budget = piece.BUDGETS[plan.budget]
    if plan.steps:
        budget = dataclasses.replace(budget, steps=plan.steps)
    bench = piece.Bench(budget, plan.out, plan.slots, plan.lite0, plan.timed)
    while time.time() < plan.deadline - plan.reserve:
        try:
            name, seeds = waiting.get(timeout=0.5)
        except queue.Empty:
            return
        row, began = ROWS[name], time.time()
        place = [other for other, _ in plan.rows].index(name)
        try:
            for line in bench.run(row, seeds, patience=0.05 * (1 + place)):
                _write(plan.out / "study.jsonl", piece.described(line))
        except Exception:
            traceback.print_exc()
            print(f"FAILED {name} after {time.time() - began:.0f} s", flush=True)
            continue
        _say(name, line, began)


def _say(name: str, line: dict, began: float) -> None:
    parts = ", ".join(f"{key} {value:.1f}" for key, value in line["seconds"].items())
    print(
        f"{time.strftime('%H:%M:%S')} {name}: FD-lite0 "
        f"{line['results']['fd_lite0']:.2f} at {line['best']}, "
        f"{line['train_ms_a_step']:.2f} ms a step, {parts}, "
        f"{time.time() - began:.0f} s",
        flush=True,
    )


def _write(path: pathlib.Path, line: dict) -> None:
    """Append a line in one write, which does not mix with those of other processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
