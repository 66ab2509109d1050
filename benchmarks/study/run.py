"""The runner: families of rows in a queue, worked off by a few processes on one GPU.

A process takes a family, compiles its programs once, and runs its rows; while it
compiles, others have the device. What a row leaves is on disk at once, so that the same
command goes on where it was stopped, by whatever. No row is begun that would end after
the deadline.
"""

import dataclasses
import multiprocessing
import os
import pathlib
import queue
import time
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.study import records
from benchmarks.study.turns import Turns
from pixelflow_jax.data.parent import end_with

Left = tuple[tuple[str, tuple[int, ...]], ...]  # rows by name, each with its seeds


class Plan(NamedTuple):
    """What is to be run: rows by name with their seeds, and where results go.

    `deadline` is in `time.time()`; a row is not begun later than `reserve` seconds
    before. Of `workers` processes `slots` compute at a time, in the order of the rows,
    while the others compile. `budget` names a `budgets.Budget`, `steps` (0: its
    own) and `data` change it. Results go to `out`, what is half done to `state`.
    """

    rows: Left
    out: pathlib.Path
    state: pathlib.Path
    deadline: float
    reserve: float
    workers: int
    slots: int
    steps: int
    budget: str
    data: str = ""
    lite0: str = ""
    stlpips: str = ""
    timed: bool = False


def done(path: pathlib.Path, budget: str) -> set[tuple[str, int]]:
    """The rows and seeds that a results file holds of a budget."""
    lines = records.read(path)
    return {(one["row"], one["seed"]) for one in lines if one["budget"] == budget}


def missing(
    names: Sequence[str], seeds: Sequence[int], had: set[tuple[str, int]]
) -> Left:
    """Rows by name, each with the seeds that are still to be run."""
    rows = ((n, tuple(s for s in seeds if (n, s) not in had)) for n in names)
    return tuple((name, left) for name, left in rows if left)


def families(rows: Left) -> list[Left]:
    """The rows of each family, in their order; families by their first row."""
    from benchmarks.study.rows import ROWS

    parts: dict[str, Left] = {}
    for name, seeds in rows:
        family = ROWS[name].family
        parts[family] = (*parts.get(family, ()), (name, seeds))
    return list(parts.values())


def run(plan: Plan) -> None:
    """Work off the plan with `plan.workers` processes, or in this one for one.

    Raises SystemExit where another run has the same `state`.
    """
    try:
        with Turns(plan.state).only("run"):
            _run(plan)
    except BlockingIOError:
        raise SystemExit(f"Another run works in {plan.state}: wait for it.") from None


def _run(plan: Plan) -> None:
    context = multiprocessing.get_context("spawn")
    waiting = context.Queue()
    for family in families(plan.rows):
        waiting.put(family)
    if plan.workers == 1:
        work(plan, waiting)
        return
    # Memory is taken as it is needed; not all processes need their share at once.
    share = min(0.9, 1.35 / plan.workers)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{share:.3f}"
    # Distances are NumPy's, in three threads a process; more of its own only wait.
    threads = max(1, (os.cpu_count() or 1) // (2 * plan.workers))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    own = plan, waiting, os.getpid()
    workers = [context.Process(target=work, args=own) for _ in range(plan.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(max(1.0, plan.deadline - time.time()))
        if worker.is_alive():
            worker.kill()


def work(plan: Plan, waiting: Any, parent: int = 0) -> None:
    """Take families until none are left, the time is up, or the `parent` is gone."""
    from benchmarks.study import budgets, compiling, piece
    from benchmarks.study.rows import ROWS

    if parent:
        end_with(parent)

    budget = dataclasses.replace(budgets.BUDGETS[plan.budget], data=plan.data)
    if plan.steps:
        budget = dataclasses.replace(budget, steps=plan.steps)
    bench = piece.Bench(
        budget=budget,
        out=plan.out,
        state=plan.state,
        slots=plan.slots,
        lite0=plan.lite0,
        stlpips=plan.stlpips,
        timed=plan.timed,
    )
    places, counter = [name for name, _ in plan.rows], compiling.Counter.started()
    for name, seeds in _taken(waiting, plan.deadline - plan.reserve):
        began = time.time()
        try:
            patience = 0.05 * (1 + places.index(name))
            lines = bench.run(ROWS[name], seeds, patience)
        except Exception:
            traceback.print_exc()
            print(f"FAILED {name} after {time.time() - began:.0f} s", flush=True)
            continue
        _say(name, lines[0], began, counter.words())


def _taken(waiting: Any, last: float):
    """The rows of one family after the other, none after the time `last`."""
    while time.time() < last:
        try:
            family = waiting.get(timeout=0.5)
        except queue.Empty:
            return
        for row in family:
            if time.time() < last:
                yield row


def _say(name: str, line: dict, began: float, compiled: str) -> None:
    parts = ", ".join(f"{key} {value:.1f}" for key, value in line["seconds"].items())
    print(
        f"{time.strftime('%H:%M:%S')} {name}: FD-lite0 "
        f"{line['results']['fd_lite0']:.2f} at {line['best']}, "
        f"{line['train_ms_a_step']:.2f} ms a step, {parts}, "
        f"{time.time() - began:.0f} s; {compiled}",
        flush=True,
    )
