"""How fast the machine multiplies matrices, and what share of it a run uses."""

import dataclasses
import functools
import time

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


@functools.cache
def matmul_rate(dtype: str) -> float:
    """Measured rate of a large matrix product on one device, in operations a second.

    Call it outside `jax.set_mesh`, which would run it on every device of the mesh.
    """
    n = 8192 if jax.default_backend() in ("gpu", "tpu") else 1024
    a = jax.random.normal(jax.random.key(0), (n, n)).astype(dtype)
    product = jax.jit(lambda a, b: a @ b)
    product(a, a).block_until_ready()
    best, repeats = float("inf"), 5
    for _ in range(3):
        start = time.perf_counter()
        out = a
        for _ in range(repeats):
            out = product(a, a)
        out.block_until_ready()
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2 * n**3 / best


def utilisation(images_per_second: float, forward_flops: float, dtype: str) -> float:
    """Model FLOPs utilisation of a training run, against the measured matmul rate."""
    used = TRAINING_PASSES * forward_flops * images_per_second
    return used / (matmul_rate(dtype) * jax.device_count())
