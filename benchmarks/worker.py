"""One case in a process of its own: counted, compiled into the cache, or measured.

python -m benchmarks.worker measure --case '{"what": "train", ...}'

`suite` starts it, once for each case and phase; the cache is the one that jax's own
environment variables name. Prints one record behind "ROW ".
"""

import argparse
import json
import math

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip

from benchmarks import timing  # isort: skip
from benchmarks.case import Case, build  # isort: skip
from benchmarks.running import Running  # isort: skip
from benchmarks.work import Work  # isort: skip

COUNT, COMPILE, MEASURE = "count", "compile", "measure"


def counted(work: Work) -> dict:
    """The operations of a run, by the models' formulas and as XLA counts them.

    Meant for the CPU, which needs no device and counts what a GPU's plugin does not.
    """
    with jax.set_mesh(work.mesh):
        by_xla = harness.counted(work.program.lower(*work.shapes))
    return {"model_tflop": work.flops / 1e12, "xla_tflop": by_xla / 1e12}


def precompiled(work: Work) -> dict:
    """Compile everything that `timed` compiles; allocates no argument."""
    with jax.set_mesh(work.mesh):
        harness.compiled(work.setup)
        found = harness.compiled(work.program, *work.shapes)
    return {"compile_s": found.seconds, "cached": found.cached}


def timed(work: Work, repeats: int, limit: float = math.inf) -> dict:
    """Speed (see `Running.timed`), memory and compile time, and the machine's rates.

    `bytes_limit_ms` is what has to be read and written once at the measured copy rate.
    `setup_peak_gb` is the peak before the first run: the program's own is `peak_gb`
    only where that is more.
    """
    rates = timing.machine_rates()
    with jax.set_mesh(work.mesh):
        built = harness.compiled(work.program, *work.shapes)
        running = Running(work, built.program)
        times = running.timed(repeats, limit)
    return {
        **times,
        "bytes_limit_ms": work.moved / rates["copy_tbs"] / 1e9,
        **harness.memory(built.program),
        "setup_peak_gb": running.setup_peak_gb,
        "compile_s": built.seconds,
        "cached": built.cached,
        "trace_s": built.trace_seconds,
        "setup_s": running.setup_s,
        "network_calls": work.calls,
        **rates,
    }


PHASES = {
    COUNT: lambda work, args: counted(work),
    COMPILE: lambda work, args: precompiled(work),
    MEASURE: lambda work, args: timed(work, args.repeats, args.seconds),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--case", required=True, help="as JSON")
    parser.add_argument("--seconds", type=float, default=math.inf, help="to time for")
    return parser.parse_args()


def main() -> None:
    """Count, compile or measure, and hand the record over."""
    args = arguments()
    work = build(Case.from_json(args.case))
    found = PHASES[args.phase](work, args)
    print(harness.ROW + json.dumps(harness.record([found])), flush=True)


if __name__ == "__main__":
    main()
