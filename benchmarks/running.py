"""A compiled program with its arguments on the device, run again and again."""

import math
import statistics
import time

import jax
import numpy as np

from benchmarks import harness, timing
from benchmarks.work import Work


class Running:
    """The work of a case, compiled and with its first arguments; lives in its mesh.

    Making it takes memory: arguments are drawn or brought to the device, in
    `setup_s` seconds; `setup_peak_gb` is the process's peak behind that.
    """

    def __init__(self, work: Work, program: jax.stages.Compiled) -> None:
        start = time.perf_counter()
        self.work, self.program = work, program
        self.held = jax.block_until_ready(work.arguments())
        self.setup_s = time.perf_counter() - start
        self.setup_peak_gb = harness.peak_gb()
        self.result: object = None

    def once(self) -> object:
        """Start one more run; its result, which is not waited for."""
        out = self.program(*self.held)
        self.held = self.work.following(self.held, out)
        self.result = self.work.result(out)
        return self.result

    def timed(self, repeats: int, limit: float = math.inf) -> dict:
        """How long `repeats` runs take, or as many as fit into `limit` seconds.

        `ms` is the median of runs that are each waited for, `queued_ms` of runs queued
        one behind the other. Raises RuntimeError where the last result is not finite.
        """
        times = timing.timings(self.once, repeats, limit=limit)
        waited = statistics.median(times)
        fitting = int(min(limit / 3 / waited, 1e6))  # the limit may be endless
        queued = timing.queued(self.once, min(len(times), fitting))
        if not np.isfinite(np.asarray(self.result)).all():
            raise RuntimeError("The result is not finite: this case does not work.")
        return {
            "ms": waited * 1e3,
            "queued_ms": queued * 1e3,
            "fastest_ms": min(times) * 1e3,
            "repeats": len(times),
            "images_s": self.work.images / waited,
            "mesh_size": self.work.mesh.size,
        }
