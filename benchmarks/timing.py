"""How long calls take: waited for each, or queued one behind the other."""

import math
import statistics
import time
from collections.abc import Callable

import jax

from pixelflow_jax.training import throughput


def machine_rates() -> dict:
    """Measured bf16 matmul rate (TFLOP/s) and device copy bandwidth (TB/s).

    Both from queued runs, so that neither holds what a launch or a wait costs; the copy
    counts what is read and what is written.
    """
    return {
        "matmul_tflops": throughput.matmul_rate("bfloat16") / 1e12,
        "copy_tbs": throughput.copy_rate() / 1e12,
    }


def timings(
    call: Callable[[], object],
    repeats: int,
    warmup: int = 3,
    limit: float = math.inf,
) -> list[float]:
    """Wall times of `call`, whose result is waited for each time.

    Where `limit` seconds are short, a third of them goes to the warm-up, at least one
    run, and at least two of the repeats take place.
    """
    start = time.perf_counter()
    for _ in range(warmup):
        jax.block_until_ready(call())
        if time.perf_counter() - start > limit / 3:
            break
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - before)
        if len(times) > 1 and time.perf_counter() - start > limit:
            break
    return times


def median_seconds(call: Callable[[], object], repeats: int, warmup: int = 3) -> float:
    """Median wall time of `call`, whose result is waited for each time."""
    return statistics.median(timings(call, repeats, warmup))


def queued(call: Callable[[], object], runs: int) -> float:
    """Seconds a run when `runs` of them are queued and only the last is waited for.

    This is what a loop that does not look at its results has: the host prepares a run
    while the device is at the one before. At least one run.
    """
    start = time.perf_counter()
    for _ in range(max(1, runs)):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / max(1, runs)
