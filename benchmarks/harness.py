"""What every benchmark needs: programs, memory, processes, and a record."""

import argparse
import collections
import importlib.metadata
import itertools
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from pixelflow_jax import backend

backend.configure()  # before jax starts

import jax  # noqa: E402

from pixelflow_jax import config_files  # noqa: E402
from pixelflow_jax.experiment import Experiment  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ROW = "ROW "  # begins the line in which a process hands over what it measured
NO_MEMORY = "out of memory"
PACKAGES = ("jax", "jaxlib", "flax", "optax")
# Results and figures of earlier runs do not change what is measured.
SOURCES = (".", ":!benchmarks/results", ":!benchmarks/RESULTS.md", ":!docs")

_events: collections.Counter = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: _events.update([name]))


def environment() -> dict:
    """Versions, flags and commit; starts no backend, so a parent process may ask."""
    memory = "XLA_PYTHON_CLIENT_"
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **{n.lower(): v for n, v in os.environ.items() if n.startswith(memory)},
        "commit": commit(),
    }


def card() -> dict:
    """The devices of this process, which starts its backend."""
    return {"device": jax.devices()[0].device_kind, "devices": jax.device_count()}


def commit(root: pathlib.Path = ROOT) -> str:
    """The commit of the sources, "-dirty" behind it where they were changed.

    The environment variable COMMIT says it where our own sources were copied.
    """
    if root == ROOT and "COMMIT" in os.environ:
        return os.environ["COMMIT"]
    head = _git(root, "rev-parse", "--short", "HEAD")
    if not head:
        return "unknown"
    words = "status", "--porcelain", "--untracked-files=no", "--"
    return head + ("-dirty" if _git(root, *words, *SOURCES) else "")


def _git(root: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class Compiled(NamedTuple):
    """A compiled program and how it came about.

    `trace_seconds` go to Python, `seconds` to XLA, or to reading a persistent cache
    where `cached`.
    """

    program: jax.stages.Compiled
    seconds: float
    trace_seconds: float
    cached: bool
    lowered: jax.stages.Lowered


def compiled(function: Callable, *args: object) -> Compiled:
    """The jitted function compiled for `args`, arrays or their shapes."""
    start = time.perf_counter()
    lowered = function.lower(*args)
    traced, hits = time.perf_counter(), _cache_hits()
    program = lowered.compile()
    seconds = time.perf_counter() - traced
    cached = _cache_hits() > hits
    return Compiled(program, seconds, traced - start, cached, lowered)


def _cache_hits() -> int:
    return _events["/jax/compilation_cache/cache_hits"]


def counted(lowered: jax.stages.Lowered) -> float:
    """XLA's count of the operations of one run, before its passes.

    What is computed again is in it, custom kernels are not, and a loop's body is
    counted once. Takes seconds for large programs. NaN where there is no count, as of
    GPUs: a process on the CPU counts instead.
    """
    return float((lowered.cost_analysis() or {}).get("flops", math.nan))


def peaks_gb() -> list[float]:
    """The most memory that this process has held on each of its devices.

    Empty where devices do not say.
    """
    stats = (device.memory_stats() or {} for device in jax.local_devices())
    peaks = (one.get("peak_bytes_in_use") for one in stats)
    return [peak / 1e9 for peak in peaks if peak is not None]


def peak_gb() -> float | None:
    """The most memory that this process has held on any device; None: not known."""
    return max(peaks_gb(), default=None)


def memory(program: object) -> dict:
    """Peak of the process so far and sizes of one program, in GB.

    `program_gb` is what the program needs by XLA's plan: arguments, results that take
    no argument's place, temporaries.
    """
    plan = program.memory_analysis()
    arguments, temporary = plan.argument_size_in_bytes, plan.temp_size_in_bytes
    whole = arguments + temporary + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return {
        "peak_gb": peak_gb(),
        "peaks_gb": peaks_gb(),
        "program_gb": whole / 1e9,
        "temporary_gb": temporary / 1e9,
        "arguments_gb": arguments / 1e9,
    }


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that all benchmarks share."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=_Help, allow_abbrev=False
    )
    result.add_argument("--repeats", type=int, default=20, help="timed runs, at most")
    result.add_argument("--json", type=pathlib.Path, help="append the record here")
    return result


class _Help(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Shows defaults, and the description as it was written."""


def load_config(spec: str) -> Experiment:
    """The config that `path/to/file.py:variant` names, from the repository's root."""
    here = pathlib.Path(spec.partition(":")[0]).exists()
    return config_files.load_config(spec if here else str(ROOT / spec))


def record(rows: list[dict]) -> dict:
    """Rows with all that they depend on, as one line of a results file holds it."""
    return {**card(), **environment(), "rows": rows}


def append(path: pathlib.Path | None, line: dict) -> None:
    """Add a line to a JSON-lines file, so that it is there at once."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: pathlib.Path) -> list[dict]:
    """The rows of a results file, the oldest first, each with its environment."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.strip()]
    return [{**r, **row} for r in records for row in r.pop("rows")]


def print_table(rows: list[dict]) -> None:
    """Rows as a table for the terminal; nested values are left out."""
    keys = dict.fromkeys(k for row in rows for k, v in row.items() if v != {})
    columns = list(keys)
    text = [[cell(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(map(len, [c, *(r[i] for r in text)])) for i, c in enumerate(columns)]
    for line in [columns, *text]:
        print("  ".join(v.rjust(w) for v, w in zip(line, widths, strict=True)))
    sys.stdout.flush()


def report(rows: list[dict], path: pathlib.Path | None) -> None:
    """Print rows as a table; append them with the environment to a JSON-lines file."""
    print_table(rows)
    append(path, record(rows))


def run_variants(
    module: str,
    args: argparse.Namespace,
    names: tuple[str, ...],
    measure: Callable[[argparse.Namespace, dict], dict],
    passed: tuple[str, ...] = ("repeats",),
) -> None:
    """Measure every combination of the arguments `names`, and report.

    Each variant runs `module` again in a process of its own (with `--one` and the
    arguments `passed`), so that its peak memory is its own and a crash costs one row.
    """
    if args.one:
        print(ROW + json.dumps(measure(args, json.loads(args.one))))
        return
    rows = []
    for values in itertools.product(*(getattr(args, name) for name in names)):
        variant = dict(zip(names, values, strict=True))
        command = [sys.executable, "-m", module, "--one", json.dumps(variant)]
        found = in_own_process(command + [f"--{n}={getattr(args, n)}" for n in passed])
        rows.append(variant | found)
        print(rows[-1], flush=True)  # what a later crash cannot take away
    report(rows, args.json)


def in_own_process(
    command: list[str],
    environment: dict[str, str] | None = None,
    limit: float | None = None,
) -> dict:
    """What `command` prints as JSON behind "ROW ", or {"failed": why}.

    It may take `limit` seconds; `environment` is added to this process's own.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {limit:.0f} s"}
    for line in done.stdout.splitlines():
        if line.startswith(ROW):
            return json.loads(line.removeprefix(ROW))
    sys.stderr.write(done.stderr[-3000:])
    why = reason(done.stderr)
    return {"failed": why if why == NO_MEMORY else f"exit {done.returncode}: {why}"}


def reason(errors: str) -> str:
    """Why something failed, in a few words, from its traceback or message."""
    if "RESOURCE_EXHAUSTED" in errors or "Out of memory" in errors:
        return NO_MEMORY
    return (errors.strip().splitlines() or ["no output"])[-1][:100]


def cell(value: object) -> str:
    """A value as it stands in a table; None is left empty."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
