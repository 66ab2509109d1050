"""Timing of single operations: many runs in one program, variants held together."""

import dataclasses
import json
import subprocess
import threading
from collections.abc import Callable, Iterator

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import numpy as np  # isort: skip

from benchmarks import timing  # isort: skip
from jax import Array  # isort: skip
from pixelflow_jax.doctor.kernels import deviation  # isort: skip

RUN_SECONDS = 0.03  # that one timed program should take
TIE = 1e-9  # so small a share of a result that its inputs stay what they are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """An operation: `inputs()` makes arrays, each of `variants` takes all of them.

    The variants should agree, up to `tolerance` of the largest value, with `exact` of
    the inputs in float32 (None: with the first of them, as it stands): a row says where
    they do not. `flops` are its operations (0: none worth counting).
    """

    inputs: Callable[[], tuple[Array, ...]]
    variants: dict[str, Callable[..., object]]
    flops: float = 0.0
    tolerance: float = 0.02
    exact: Callable[..., object] | None = None


def measure(entry: Entry, rates: dict, repeats: int) -> list[dict]:
    """A row for each variant of an entry."""
    inputs = jax.block_until_ready(jax.jit(entry.inputs)())
    rows, expected = [], None
    if entry.exact is not None:
        with jax.default_matmul_precision("highest"):
            expected = jax.jit(entry.exact)(*(a.astype(jnp.float32) for a in inputs))
    for name, function in entry.variants.items():
        row = {"variant": name}
        try:
            out = jax.block_until_ready(jax.jit(function)(*inputs))
            seconds = seconds_a_run(function, inputs, repeats)
            row |= _speeds(entry, seconds, (inputs, out), rates)
            expected = expected if expected is not None else out
            row["deviation"] = deviation(out, expected)
            if row["deviation"] > entry.tolerance:
                row["note"] = "the variants disagree"
        except Exception as error:  # whatever a compiler or a kernel raises
            row["failed"] = harness.reason(f"{type(error).__name__}: {error}")
        rows.append(row)
    return rows


def _speeds(entry: Entry, seconds: float, arrays: tuple, rates: dict) -> dict:
    """What a run of so many seconds means, if it reads or writes each array once."""
    moved = sum(a.nbytes for a in jax.tree.leaves(arrays))
    found = {
        "us": seconds * 1e6,
        "gb_s": moved / seconds / 1e9,
        "of_copy": moved / seconds / rates["copy_tbs"] / 1e12,
    }
    if entry.flops:
        found["tflop_s"] = entry.flops / seconds / 1e12
        found["of_matmul"] = found["tflop_s"] / rates["matmul_tflops"]
    return found


def seconds_a_run(function: Callable, inputs: tuple[Array, ...], repeats: int) -> float:
    """How long one run takes among many in one program.

    What it takes to tie the runs to each other is measured alone, and subtracted.
    """
    single = jax.jit(function)
    once = timing.median_seconds(lambda: single(*inputs), 3, 1)
    runs = int(np.clip(RUN_SECONDS / once, 3, 200))
    times = [
        timing.median_seconds(loop(one, inputs, runs), repeats, warmup=2)
        for one in (function, _nothing)
    ]
    return max(times[0] - times[1], 1e-9) / runs


def _nothing(*inputs: Array) -> Array:
    return inputs[0].ravel()[0]


def loop(
    function: Callable, inputs: tuple[Array, ...], runs: int
) -> Callable[[], object]:
    """A call of the program that runs a function so often, one run after the other.

    A number of each result is written into every input of the next run: otherwise the
    compiler would run once what does not change. Results travel through the loop, so
    that they are written out each time.
    """

    def body(_: int, held: tuple) -> tuple:
        inputs, _ = held
        out = function(*inputs)
        number = jax.tree.leaves(out)[0].ravel()[0]
        return tuple(_tied(a, number) for a in inputs), out

    @jax.jit
    def program(inputs: tuple[Array, ...]) -> object:
        shapes = jax.eval_shape(function, *inputs)
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        inputs, out = jax.lax.fori_loop(0, runs, body, (inputs, empty))
        # Copying the inputs out would be timed as well.
        return out, [a[(0,) * a.ndim] for a in inputs]

    return lambda: program(inputs)


def _tied(a: Array, number: Array) -> Array:
    return a.at[(0,) * a.ndim].add((TIE * number).astype(a.dtype))


def handed_over(command: list[str], names: list[str], budget: float) -> Iterator[dict]:
    """The records of all names, from as many processes as it takes.

    `command` measures the names behind it and hands a record over for each, in order;
    it may take `budget` seconds for one. Where it dies, the name it was at has failed,
    and another process goes on behind it.
    """
    left = list(names)
    while left:
        with subprocess.Popen(
            [*command, *left], stdout=subprocess.PIPE, text=True, cwd=harness.ROOT
        ) as child:
            timer = _timer(child, budget)
            for line in child.stdout:
                if line.startswith(harness.ROW):
                    timer.cancel()
                    left.pop(0)
                    yield json.loads(line.removeprefix(harness.ROW))
                    timer = _timer(child, budget)
            timer.cancel()
        if left:
            why = {"case": left.pop(0), "failed": f"exit {child.returncode}"}
            yield {**harness.environment(), "rows": [why]}


def _timer(child: subprocess.Popen, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    return timer
