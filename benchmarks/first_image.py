"""Time from `pipeline(...)` to images with the shipped model, in fresh processes.

    python -m benchmarks.first_image [--before CHECKOUT] [--rounds N] [--out FILE.jsonl]

Each process makes the calls of `CALLS` one after the other and times each. Three kinds
of process take turns: of another checkout, where one is named (its words for settings
must be those of `CALLS`), of this one with nothing compiled before, and of this one
with the programs that the second kind kept. A call's time is the least of all rounds,
and so are, in brackets, the processor's seconds, which other programs change little.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What is asked for, in words that earlier versions know as well.
CALLS = {
    "the first call, one image": "pipeline(['flags'], seed=1)",
    "another count, three images": "pipeline(['flags'] * 3, seed=1)",
    "other steps, 30": "pipeline(['flags'], seed=1, grid=Grid(steps=30))",
    "another scale, 2": "pipeline(['flags'], seed=1, guidance=guided)",
    "another solver, Heun": "pipeline(['flags'], seed=1, solver=Heun())",
    "the first call again": "pipeline(['flags'], seed=1)",
}
CHILD = """
    import json, time
    clocks = lambda: (time.perf_counter(), time.process_time())
    since = lambda start: [now - then for now, then in zip(clocks(), start)]
    start = clocks()
    from pixelflow_jax import Pipeline
    from pixelflow_jax.flow.guidance import ClassifierFree
    from pixelflow_jax.flow.solver import Heun
    from pixelflow_jax.flow.time import Grid
    pipeline = Pipeline.from_pretrained("emoji")
    guided = ClassifierFree(scale=2.0, low=0.1, high=1.0)
    seconds = {"import and load": since(start)}
    for name, call in CALLS.items():
        start = clocks()
        eval(call)
        seconds[name] = since(start)
    print(json.dumps(seconds))
"""


def measured(checkout: pathlib.Path, cache: str) -> dict[str, list[float]]:
    """Seconds of every call in one new process, by a clock and of the processor.

    `cache` is its folder of programs.
    """
    code = f"CALLS = {CALLS!r}\n{textwrap.dedent(CHILD)}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "PIXELFLOW_COMPILE_CACHE": cache,
        "JAX_PLATFORMS": "cpu",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=checkout,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=pathlib.Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    best: dict[str, dict[str, list[float]]] = {}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as cache:
            turns = {"before": (args.before, "off")} if args.before else {}
            turns |= {"now": (ROOT, cache), "programs kept": (ROOT, cache)}
            for kind, (checkout, folder) in turns.items():
                for name, seconds in measured(checkout, folder).items():
                    own = best.setdefault(name, {})
                    own[kind] = list(map(min, seconds, own.get(kind, seconds)))
    kinds = list(next(iter(best.values())))
    print(f"| seconds | {' | '.join(kinds)} |")
    print(f"|---|{'---|' * len(kinds)}")
    for name, row in best.items():
        cells = ("{:.1f} ({:.1f})".format(*row[kind]) for kind in kinds)
        print(f"| {name} | {' | '.join(cells)} |")
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps({"cores": os.cpu_count(), "seconds": best}) + "\n")


if __name__ == "__main__":
    main()
