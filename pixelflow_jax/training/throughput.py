"""How fast the machine multiplies matrices, and what share of it a run uses."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax

TRAINING_PASSES = 3  # forward, and twice as much backward


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What a step computes: so many images, each by so many operations.

    `forward_flops` are the denoiser's operations for an image, in the mean over the
    data; `dtype` is the type in which it multiplies.
    """

    batch_size: int
    forward_flops: float
    dtype: str


def queued_seconds(step: Callable[[], object], runs: int, rounds: int = 3) -> float:
    """What one more run of `step` takes the device.

    `runs` and a third of them are queued and waited for, in some rounds; the difference
    of the fastest holds neither the launch of the first nor the wait for the last.
    """
    few = max(1, runs // 3)

    def seconds(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            result = step()
        jax.block_until_ready(result)
        return time.perf_counter() - start

    seconds(1)  # compiles it, where that is not done
    short = min(seconds(few) for _ in range(rounds))
    long = min(seconds(runs) for _ in range(rounds))
    # Where steps are short, noise can swallow the difference.
    return max((long - short) / (runs - few), 1e-9)


@functools.cache
def matmul_rate(dtype: str) -> float:
    """Measured rate of a large matrix product on one device, in operations a second.

    Call it outside `jax.set_mesh`, which would run it on every device of the mesh.
    """
    large = jax.default_backend() in ("gpu", "tpu")
    n = 8192 if large else 1024
    a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
    product = jax.jit(lambda a, b: a @ b)
    return 2 * n**3 / queued_seconds(lambda: product(a, a), 12 if large else 4)


def whole_rate(dtype: str) -> float:
    """`matmul_rate` of all devices together, of all processes.

    A machine's CPU devices are one processor, however many it is told to be.
    """
    shared = jax.default_backend() == "cpu"
    return matmul_rate(dtype) * (jax.process_count() if shared else jax.device_count())


def utilisation(images_per_second: float, forward_flops: float, dtype: str) -> float:
    """Model FLOPs utilisation of a training run, against the measured matmul rate."""
    used = TRAINING_PASSES * forward_flops * images_per_second
    return used / whole_rate(dtype)
