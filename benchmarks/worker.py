"""One case in a process of its own: compiled into the cache, or measured.

python -m benchmarks.worker measure --case '{"what": "train", ...}'

`suite` starts it, once for each case and phase; the cache is the one that jax's own
environment variables name. Prints one record behind "ROW ".
"""

import argparse
import json
import math
import statistics
import time

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
import numpy as np  # isort: skip

from benchmarks.case import Case, build  # isort: skip
from benchmarks.work import Work  # isort: skip

COMPILE, MEASURE = "compile", "measure"


def precompiled(work: Work) -> dict:
    """Compile everything that `timed` compiles; allocates no argument."""
    with jax.set_mesh(work.mesh):
        harness.compiled(work.setup)
        found = harness.compiled(work.program, *work.shapes)
    return {"compile_s": found.seconds, "cached": found.cached, **_counted(found)}


def timed(work: Work, repeats: int, limit: float = math.inf) -> dict:
    """Speed, memory and compile time, and what the machine's own rates allow.

    `limit_ms` is the arithmetic at the measured matmul rate, `bytes_limit_ms` what has
    to be read and written once at the measured copy rate. `setup_peak_gb` is the peak
    before the first run: the program's own is `peak_gb` only where that is more.
    """
    rates = harness.machine_rates()
    with jax.set_mesh(work.mesh):
        built = harness.compiled(work.program, *work.shapes)
        start = time.perf_counter()
        held = jax.block_until_ready(work.arguments())
        setup_seconds = time.perf_counter() - start
        setup_peak = harness.peak_gb()
        result = None

        def once() -> object:
            nonlocal held, result
            out = built.program(*held)
            held, result = work.following(held, out), work.result(out)
            return result

        times = harness.timings(once, repeats, limit=limit)
        finite = np.isfinite(np.asarray(result)).all()
    if not finite:
        raise RuntimeError("The result is not finite: this case does not work.")
    seconds = statistics.median(times)
    peak = rates["matmul_tflops"] * 1e12 * work.mesh.size
    return {
        "ms": seconds * 1e3,
        "fastest_ms": min(times) * 1e3,
        "repeats": len(times),
        "images_s": work.images / seconds,
        "mfu": work.flops / seconds / peak,
        "limit_ms": work.flops / peak * 1e3,
        "bytes_limit_ms": work.moved / rates["copy_tbs"] / 1e9,
        **harness.memory(built.program),
        "setup_peak_gb": setup_peak,
        "compile_s": built.seconds,
        "cached": built.cached,
        "trace_s": built.trace_seconds,
        "setup_s": setup_seconds,
        "network_calls": work.calls,
        "model_tflop": work.flops / 1e12,
        **_counted(built),
        **rates,
    }


def _counted(built: harness.Compiled) -> dict:
    """XLA's count, where it was not made before: counting takes seconds."""
    if built.cached:
        return {}
    return {"xla_tflop": harness.counted(built.lowered) / 1e12}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("phase", choices=[COMPILE, MEASURE])
    parser.add_argument("--case", required=True, help="as JSON")
    parser.add_argument("--seconds", type=float, default=math.inf, help="to time for")
    return parser.parse_args()


def main() -> None:
    """Compile or measure, and hand the record over."""
    args = arguments()
    work = build(Case.from_json(args.case))
    if args.phase == COMPILE:
        found = precompiled(work)
    else:
        found = timed(work, args.repeats, args.seconds)
    print(harness.ROW + json.dumps(harness.record([found])), flush=True)


if __name__ == "__main__":
    main()
