"""Cases: all counted and compiled in parallel, then each measured alone.

Compiling a large step takes a minute of a few cores and hardly any of the device, so
several processes compile at once, into JAX's persistent cache. Then one process after
the other takes its program from there and has the device to itself, so that its peak
memory is its own. Every row is on disk as soon as it is there. What the compiler tries
out on the device while others do the same can be misjudged: `--jobs 1` compiles as
quietly as it measures. Operations are counted on the CPU.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent import futures

from benchmarks import harness
from benchmarks.case import FIELDS, Case, changes
from benchmarks.worker import COMPILE, COUNT, MEASURE

# In the cache's folder: how long each case took to compile, and its operations.
COLD, OPERATIONS = "cold.jsonl", "operations.jsonl"
HOST_DEVICES = "--xla_force_host_platform_device_count"
CORES_A_JOB = 3  # of the host, that compiling a program keeps busy
# Processes that compile at once share the device; one that measures has it all.
ENVIRONMENTS = {
    COUNT: {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
    COMPILE: {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    MEASURE: {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command says that runs cases."""
    jobs = max(1, (os.cpu_count() or 1) // CORES_A_JOB)
    add = parser.add_argument
    add("--jobs", type=int, default=jobs, help="processes that compile at once")
    add("--cache", type=pathlib.Path, help="folder of programs; else a temporary one")
    add("--phase", choices=[COUNT, COMPILE, MEASURE, "all"], default="all")
    add("--compile_budget", type=float, default=400, help="seconds to compile a case")
    add("--mesh", default="", help="as data=2,fsdp=2; batches are then a device's")
    add("--budget", type=float, default=120, help="seconds to measure a case")
    add("--deadline", type=float, default=math.inf, help="seconds for all together")


def add_options(
    parser: argparse.ArgumentParser,
    config: str,
    batches: list[int],
    options: tuple[str, ...] = (),
) -> None:
    """`add_arguments`, and config, batches and changes by short names to combine."""
    add_arguments(parser)
    parser.add_argument("--config", default=config)
    parser.add_argument("--batch", type=int, nargs="+", default=batches)
    for name in options:
        text = f"values of {FIELDS[name]}, if not the config's"
        parser.add_argument(f"--{name}", nargs="+", default=[""], help=text)


def combinations(
    what: str, args: argparse.Namespace, options: tuple[str, ...], **fixed: object
) -> list[Case]:
    """A case for every combination of the batches and `options` of the command line."""
    found = []
    values = (getattr(args, name) for name in options)
    for batch, *chosen in itertools.product(args.batch, *values):
        short = {k: v for k, v in zip(options, chosen, strict=True) if v != ""}
        words = [f"batch={batch}", *(f"{k}={v}" for k, v in short.items())]
        found.append(
            Case(
                what=what,
                config=args.config,
                batch=batch,
                changes=changes(**fixed, **short),
                name=" ".join(words),
            )
        )
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """How cases are run; see `add_arguments`. `deadline` is a time of the timestep."""

    cache: pathlib.Path
    jobs: int
    compile_budget: float
    budget: float
    deadline: float
    repeats: int

    def compile(self, cases: list[Case]) -> dict[str, dict]:
        """Compile all cases in parallel; what came of each, by its key."""
        workers = max(1, min(self.jobs, len(cases)))
        found = {}
        with futures.ThreadPoolExecutor(workers) as pool:
            running = {
                pool.submit(self._worker, COMPILE, case, self.compile_budget): case
                for case in cases
            }
            for one in futures.as_completed(running):
                case, row = running[one], _row(one.result())
                found[case.key] = row
                say(f"compiled {case.label}", row, ("compile_s", "cached"))
                if row.get("cached") is False:
                    self._remember(case, row, workers)
        return found

    def count(self, cases: list[Case]) -> dict[str, dict]:
        """The operations of all cases, by the cases' keys; known ones stay known."""

        def one(case: Case) -> dict:
            known = self._known(OPERATIONS, case)
            row = known or _row(self._worker(COUNT, case, self.compile_budget))
            if not known and "failed" not in row:
                harness.append(self.cache / OPERATIONS, {"case": case.key, **row})
            say(f"counted {case.label}", row, ("model_tflop", "xla_tflop"))
            return row

        with futures.ThreadPoolExecutor(max(1, min(self.jobs, len(cases)))) as pool:
            rows = list(pool.map(one, cases))
        return {case.key: row for case, row in zip(cases, rows, strict=True)}

    def measure(self, case: Case) -> dict:
        """The record of one case, measured alone."""
        record = self._worker(MEASURE, case, self.budget)
        row = {"case": case.label, **dataclasses.asdict(case), **_row(record)}
        row = with_operations(row, self._known(OPERATIONS, case))
        return {**record, "rows": [self._with_compile_times(case, row)]}

    def _remember(self, case: Case, row: dict, at_once: int) -> dict:
        """How long compiling took, which is known once."""
        cold = {"cold_compile_s": row["compile_s"], "at_once": at_once}
        harness.append(self.cache / COLD, {"case": case.key, **cold})
        return cold

    def _known(self, file: str, case: Case) -> dict:
        path = self.cache / file
        lines = path.read_text().splitlines() if path.exists() else []
        known = {one.pop("case"): one for one in map(json.loads, lines)}
        return known.get(case.key, {})

    def _with_compile_times(self, case: Case, row: dict) -> dict:
        """The row with compile times told apart: with an empty cache and a full one."""
        if row.get("cached"):
            times = self._known(COLD, case) | {"warm_compile_s": row["compile_s"]}
        elif "cached" in row:  # nothing was there: compiled here, alone
            times = self._remember(case, row, at_once=1)
        else:
            return row
        told_apart = {"compile_s", "cached"}
        return {k: v for k, v in row.items() if k not in told_apart} | times

    def _worker(self, phase: str, case: Case, budget: float) -> dict:
        limit = min(budget, self.deadline - time.monotonic())
        if limit < 1:
            return _failed("no time was left")
        command = [sys.executable, "-m", "benchmarks.worker", phase]
        command += ["--case", case.to_json(), "--repeats", str(self.repeats)]
        command += ["--seconds", str(limit / 3)]  # starting takes time as well
        environment = cached(self.cache) | {
            "PYTHONPATH": os.pathsep.join(
                [str(harness.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        }
        for name, value in ENVIRONMENTS[phase].items():
            environment[name] = value if phase == COUNT else os.environ.get(name, value)
        environment |= _of_mesh(case, environment)
        found = harness.in_own_process(command, environment, limit)
        return _failed(found["failed"]) if "failed" in found else found


def cached(folder: pathlib.Path) -> dict[str, str]:
    """What makes a process keep all its programs in a folder, and look for them."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _of_mesh(case: Case, environment: dict[str, str]) -> dict[str, str]:
    """What gives a process the devices that a case's mesh names, and no others."""
    if not case.names_devices:
        return {}
    known = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    known = known if known[0] else [str(number) for number in range(case.devices)]
    found = {"CUDA_VISIBLE_DEVICES": ",".join(known[: case.devices])}
    if environment.get("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS")) == "cpu":
        flags = os.environ.get("XLA_FLAGS", "")  # the CPU stands for as many
        found["XLA_FLAGS"] = f"{flags} {HOST_DEVICES}={case.devices}".strip()
    return found


def run(cases: list[Case], args: argparse.Namespace) -> list[dict]:
    """Count, compile and measure the cases; every row goes to `args.json` at once."""
    cases = [case.on_mesh(args.mesh) for case in cases]
    rows = []
    with opened(args) as suite:
        counts = suite.count(cases) if args.phase != COMPILE else {}
        done = suite.compile(cases) if args.phase in (COMPILE, "all") else {}
        for case in cases if args.phase != COMPILE else ():
            broken = done.get(case.key, {}).get("failed")
            what = {"case": case.label, **dataclasses.asdict(case)}
            if args.phase == COUNT:
                row = {**what, **counts[case.key]}
                record = {**harness.environment(), "rows": [row]}
            elif broken:
                record = _failed(f"compiling: {broken}", what)
            else:
                record = suite.measure(case)
                columns = ("ms", "images_s", "mfu", "peak_gb")
                say(case.label, _row(record), columns)
            harness.append(args.json, record)
            rows += record["rows"]
    return rows


def with_operations(row: dict, counts: dict) -> dict:
    """A measured row with its operations and what the machine's matmul rate allows.

    `limit_ms` is the arithmetic at the measured rate, `mfu` how much of that rate is
    used. Nothing is added where nothing was measured or counted.
    """
    if "ms" not in row or not counts:
        return row
    peak = row["matmul_tflops"] * row.get("mesh_size", 1)
    limit = counts["model_tflop"] / peak * 1e3
    counted = {k: counts[k] for k in ("model_tflop", "xla_tflop")}
    return {**row, **counted, "limit_ms": limit, "mfu": limit / row["ms"]}


def run_and_print(cases: list[Case], args: argparse.Namespace) -> None:
    """Run the cases and print all that was measured."""
    rows = run(cases, args)
    hidden = ("what", "config", "batch", "changes", "layout", "name")
    shown = [{k: v for k, v in row.items() if k not in hidden} for row in rows]
    if shown:
        harness.print_table(shown)


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[Suite]:
    """The suite that the command line asks for; a temporary cache goes at the end."""
    with contextlib.ExitStack() as stack:
        cache = args.cache
        if cache is None:
            folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            cache = stack.enter_context(folder)
        yield Suite(
            cache=pathlib.Path(cache).resolve(),
            jobs=args.jobs,
            compile_budget=args.compile_budget,
            budget=args.budget,
            deadline=time.monotonic() + args.deadline,
            repeats=args.repeats,
        )


def say(label: str, row: dict, columns: tuple[str, ...]) -> None:
    """One line on what came of a case."""
    shown = {"failed": row["failed"]} if "failed" in row else row
    facts = [
        f"{c} {harness.cell(shown[c])}" for c in (*columns, "failed") if c in shown
    ]
    print(f"{label}: {', '.join(facts)}", flush=True)


def _failed(why: str, row: dict | None = None) -> dict:
    """The record of a case that has nothing else to say; starts no backend."""
    return {**harness.environment(), "rows": [{**(row or {}), "failed": why}]}


def _row(record: dict) -> dict:
    return record["rows"][0]
