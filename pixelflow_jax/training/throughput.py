"""How fast the machine multiplies and copies, and what share of it a run uses."""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

TRAINING_PASSES = 3  # forward, and twice as much backward
COPY_RUNS = 20
# Published dense rates of one device in bfloat16, operations a second: the first name
# that a device's kind contains. A TPU's device is a chip, of v2 and v3 half of one.
PEAKS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 22.5e12,
}


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


@functools.cache
def copy_rate() -> float:
    """Measured rate of one device's memory, bytes read and written a second.

    Of an array that no cache holds. Call it outside `jax.set_mesh`.
    """
    held = jnp.ones(2**29 if jax.default_backend() == "gpu" else 2**24, jnp.float32)
    copy = jax.jit(lambda a: a + 1, donate_argnums=0)

    def step() -> jax.Array:
        nonlocal held
        held = copy(held)
        return held

    return 2 * held.nbytes / queued_seconds(step, COPY_RUNS)


def peak_rate(dtype: str, kind: str | None = None) -> float | None:
    """The published rate of one device in `dtype`; None where it is not known.

    `kind` is what jax calls it (default: this process's first device). Only 16-bit
    types are listed.
    """
    if jnp.dtype(dtype).itemsize != 2:
        return None
    kind = jax.devices()[0].device_kind if kind is None else kind
    return next((rate for name, rate in PEAKS.items() if name in kind), None)


def utilisation(
    images_per_second: float, forward_flops: float, dtype: str
) -> dict[str, float]:
    """What share of the devices' rates a training run uses, recomputing not counted.

    "mfu" is the model's FLOPs utilisation (Chowdhery et al. 2022), of the published
    peak, and absent where that is not known; "mfu_measured" the same of the measured
    rate of a large matrix product.
    """
    used = TRAINING_PASSES * forward_flops * images_per_second
    peak = peak_rate(dtype)
    shares = {} if peak is None else {"mfu": used / (peak * jax.device_count())}
    return shares | {"mfu_measured": used / whole_rate(dtype)}
