"""What every benchmark needs: timing, memory, rates of the machine, and a record."""

import argparse
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from pixelflow_jax import backend

backend.configure()  # before jax starts

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from pixelflow_jax.training.throughput import matmul_rate  # noqa: E402


def environment() -> dict:
    """Versions, card, flags and commit: what a figure depends on."""
    versions = {name: __import__(name).__version__ for name in ("jax", "flax", "optax")}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        **versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit.stdout.strip() or os.environ.get("COMMIT", "unknown"),
    }


def machine_rates() -> dict:
    """Measured bf16 matmul rate (TFLOP/s) and device copy bandwidth (TB/s)."""
    big = jnp.ones(2**28 if jax.default_backend() == "gpu" else 2**24, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    seconds = median_seconds(lambda: copy(big), 10)
    return {
        "matmul_tflops": matmul_rate("bfloat16") / 1e12,
        "copy_tbs": 2 * big.nbytes / seconds / 1e12,
    }


def median_seconds(call: Callable[[], object], repeats: int, warmup: int = 3) -> float:
    """Median wall time of `call`, whose result is waited for each time."""
    times = []
    for i in range(warmup + repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        if i >= warmup:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def compiled(function: Callable, *args: object) -> tuple[object, float]:
    """The jitted function compiled for `args`, and how long compiling took."""
    lowered = function.lower(*args)
    start = time.perf_counter()
    program = lowered.compile()
    return program, time.perf_counter() - start


def memory(program: object) -> dict:
    """Peak bytes of the process so far, and temporaries of one program, in GB."""
    stats = jax.devices()[0].memory_stats() or {}
    analysis = program.memory_analysis()
    return {
        "peak_gb": stats.get("peak_bytes_in_use", 0) / 1e9,
        "temporary_gb": analysis.temp_size_in_bytes / 1e9,
        "arguments_gb": analysis.argument_size_in_bytes / 1e9,
    }


def xla_flops(program: object) -> float:
    """Operations of one run by XLA's own count (custom kernels are not in it)."""
    cost = program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    return float(cost.get("flops", float("nan")))


def parser(description: str) -> argparse.ArgumentParser:
    """Arguments that all benchmarks share."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    result.add_argument("--config", default="configs/pixnerd.py:xl16_256")
    result.add_argument("--repeats", type=int, default=20)
    result.add_argument("--json", type=pathlib.Path, help="append the record here")
    result.add_argument("--one", help=argparse.SUPPRESS)  # a variant, as JSON
    return result


def load_config(spec: str) -> object:
    """The config that `path/to/file.py:variant` names."""
    path, _, variant = spec.partition(":")
    namespace: dict = {"__name__": "config"}
    source = pathlib.Path(path)
    exec(compile(source.read_text(), str(source), "exec"), namespace)  # noqa: S102
    return namespace["get_config"](*([variant] if variant else []))


def report(rows: list[dict], path: pathlib.Path | None) -> None:
    """Print rows as a table; append them with the environment to a JSON-lines file."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = [[_cell(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(map(len, [c, *(r[i] for r in text)])) for i, c in enumerate(columns)]
    for line in [columns, *text]:
        print("  ".join(v.rjust(w) for v, w in zip(line, widths, strict=True)))
    sys.stdout.flush()
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps({**environment(), "rows": rows}) + "\n")


def run_variants(
    module: str,
    args: argparse.Namespace,
    names: tuple[str, ...],
    measure: Callable[[argparse.Namespace, dict], dict],
) -> None:
    """Measure every combination of the arguments `names`, and report.

    Each variant runs `module` again in a process of its own (with `--one`), so that its
    peak memory is its own and a crash costs one row.
    """
    if args.one:
        print("ROW " + json.dumps(measure(args, json.loads(args.one))))
        return
    rows = []
    for values in itertools.product(*(getattr(args, name) for name in names)):
        variant = dict(zip(names, values, strict=True))
        command = [sys.executable, "-m", module, "--one", json.dumps(variant)]
        command += ["--config", args.config, "--repeats", str(args.repeats)]
        rows.append(_in_own_process(command, variant))
    report(rows, args.json)


def _in_own_process(command: list[str], variant: dict) -> dict:
    """The row that `command` prints behind "ROW "; a failure becomes a row as well."""
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("ROW "):
            return json.loads(line.removeprefix("ROW "))
    sys.stderr.write(done.stderr[-3000:])
    reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return {**variant, "failed": f"exit {done.returncode}: {reason[:100]}"}


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
