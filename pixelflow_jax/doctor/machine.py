"""What this machine is: versions, devices, rates, and how devices exchange arrays."""

import hashlib
import os
import platform
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax import distributed, sharding
from pixelflow_jax.doctor.page import Skip
from pixelflow_jax.training.throughput import copy_rate, matmul_rate, peak_rate

# What changes what is computed, or how fast.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
PREFIXES = ("XLA_PYTHON_CLIENT_", "NCCL_", "PIXELFLOW_")
SLOW = 0.4  # a matmul rate below this share of the published one is remarked on
LARGE, SMALL = 2**26, 2**16  # numbers of the array that a collective moves


def versions() -> list[str]:
    """Versions of Python, the package and what it computes with; flags that are set."""
    found = distributed.versions() | {"Python": platform.python_version()}
    words = [f"{name.removeprefix('version of ')} {v}" for name, v in found.items()]
    set_here = {
        name: value
        for name, value in sorted(os.environ.items())
        if value and (name in VARIABLES or name.startswith(PREFIXES))
    }
    flags = [f"{name}={value}" for name, value in set_here.items()]
    half = (len(words) + 1) // 2
    lines = [", ".join(words[:half]), ", ".join(words[half:]), platform.platform()]
    return [*lines, *flags]


def devices(mesh: jax.sharding.Mesh) -> list[str]:
    """Processes, devices and memory; ValueError where processes have unlike devices."""
    mine = jax.local_devices()
    name = hashlib.sha256(socket.gethostname().encode()).hexdigest()
    kinds = sorted({device.device_kind for device in mine})
    every = distributed.everyones([name, kinds, len(mine)])
    unlike = [i for i, (_, *rest) in enumerate(every) if rest != every[0][1:]]
    if unlike:
        raise ValueError(
            f"Process {unlike[0]} has other devices than process 0: {every[unlike[0]]} "
            f"and {every[0]}."
        )
    hosts = len({host for host, *_ in every})
    axes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    limits = [(one.memory_stats() or {}).get("bytes_limit") for one in mine]
    memory = f", {limits[0] / 1e9:.1f} GB each" if limits[0] else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "?"
    room = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return [
        f"{jax.device_count()} x {', '.join(kinds)} ({jax.default_backend()}){memory}",
        f"processes: {len(every)}, hosts: {hosts}; mesh {axes}",
        f"cores for this process: {cores}; memory of this host: {room:.0f} GB",
    ]


def rates(dtype: str) -> list[str]:
    """The measured matmul and copy rate of one device, beside the published ones."""
    rate, copied = matmul_rate(dtype), copy_rate()
    peak = peak_rate(dtype)
    beside = "" if peak is None else f", {rate / peak:.0%} of the published {peak:.3g}"
    lines = [f"{dtype} matmul {rate:.3g} operations/s{beside}; copy {copied:.3g} B/s"]
    if peak is not None and rate < SLOW * peak:
        lines.append("The matmul rate is low: is another program using the device?")
    return lines


class Collective(NamedTuple):
    """A program that makes devices exchange an array, and what must come out.

    `program` takes the array [devices, n], split over its first axis, and a function
    that lays an array out over all devices by its first axis.
    """

    name: str
    program: Callable[[Array, Callable[[Array], Array]], Array]
    expected: Callable[[np.ndarray], np.ndarray]


COLLECTIVES = (
    Collective("all-reduce", lambda a, split: a.sum(0), lambda a: a.sum(0)),
    Collective("all-gather", lambda a, split: a + 1, lambda a: a + 1),
    Collective("all-to-all", lambda a, split: split(a.T).sum(1), lambda a: a.sum(0)),
    Collective(
        "permute",
        lambda a, split: split(jnp.roll(a, 1, 0)),
        lambda a: np.roll(a, 1, 0),
    ),
)


def collectives(mesh: jax.sharding.Mesh) -> list[str]:
    """Arrays through all devices of all processes, compared with what must come out.

    Raises ValueError where an exchange gives other numbers, with their place. The rate
    is that of an all-reduce, the bytes of one device's array a second.
    """
    count = jax.device_count()
    if count == 1:
        raise Skip("one device alone has none to exchange arrays with")
    flat = sharding.MeshShape(data=-1).build(list(mesh.devices.flat))
    split = sharding.batch_sharding(flat)
    lines = []
    for one in COLLECTIVES:
        width = count * 64
        given = (np.arange(count * width) % 251).astype(np.float32)
        given = given.reshape(count, width)
        placed = _placed(given, split)
        lay = lambda a: jax.lax.with_sharding_constraint(a, split)
        out = jax.jit(
            lambda a, run=one.program, lay=lay: run(a, lay),
            out_shardings=sharding.replicated(flat),
        )(placed)
        wrong = np.flatnonzero(np.asarray(out) != one.expected(given))
        if len(wrong):
            raise ValueError(
                f"{one.name} over {count} devices gave other numbers in {len(wrong)} "
                f"of {out.size} places, the first at {wrong[0]}."
            )
        lines.append(one.name)
    return [", ".join(lines) + " are right", _all_reduce_rate(flat)]


def _placed(given: np.ndarray, split: jax.sharding.NamedSharding) -> Array:
    return jax.make_array_from_callback(given.shape, split, lambda i: given[i])


def _all_reduce_rate(mesh: jax.sharding.Mesh) -> str:
    """How fast gradients are summed, in words."""
    count, whole = jax.device_count(), sharding.replicated(mesh)
    n = SMALL if jax.default_backend() == "cpu" else LARGE
    split = sharding.batch_sharding(mesh)
    part = np.ones((1, n), np.float32)
    held = jax.make_array_from_callback((count, n), split, lambda i: part)
    program = jax.jit(lambda a: a.sum(0), out_shardings=whole)
    times = []
    for _ in range(4):  # the first compiles
        start = time.perf_counter()
        jax.block_until_ready(program(held))
        times.append(time.perf_counter() - start)
    return f"all-reduce of {4 * n / 1e6:.3g} MB: {4 * n / min(times[1:]):.3g} B/s"
