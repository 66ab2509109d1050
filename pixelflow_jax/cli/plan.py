"""`pixelflow config --config=...`: what a run will take, without running it.

Nothing is allocated and no data is read: sizes come from shapes, the memory of
activations from XLA's plan of one step, compiled for one device of this machine.
"""

import json
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import AbstractMesh, AxisType

from pixelflow_jax import build, sharding
from pixelflow_jax.cli.estimate import available_memory, size
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.mesh import AXES, advise
from pixelflow_jax.models.interface import count
from pixelflow_jax.training.pace import spoken
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.training.step import abstract_state, make_step
from pixelflow_jax.training.throughput import PEAKS, TRAINING_PASSES, matmul_rate
from pixelflow_jax.validate import validate_settings

FLOAT = 4  # bytes
HOST = 8  # devices of one host, as a rule
# Share of the published rate that XL models reach in training (docs/performance.md).
REACHED = 0.45
# Memory of one device in GB, by the first name that its kind contains, as `PEAKS`.
MEMORY = {
    "GB200": 186,
    "B200": 180,
    "GH200": 96,
    "H200": 141,
    "H100 NVL": 94,
    "H100": 80,
    "A100": 80,
    "L40": 48,
    "L4": 24,
    "RTX": 24,
    "TPU v6": 32,
    "TPU v5 lite": 16,
    "TPU v5e": 16,
    "TPU v5": 95,
    "TPU v4": 32,
    "TPU v3": 16,
    "TPU v2": 8,
}
# Of a program that is never run: where its buffers lie does not depend on these.
UNRUN = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

DEVICE = flags.DEFINE_string(
    "device",
    None,
    "Plan for devices of that kind, such as H200, A100 or 'TPU v5e'. Default: this "
    "machine's.",
)
DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Plan for so many devices. Default: this machine's.",
    lower_bound=1,
    upper_bound=2**20,
)


class Devices(NamedTuple):
    """What a run is planned for.

    A name, how many there are, the bytes and the operations a second of each, and
    whether that rate is the published one.
    """

    name: str
    count: int
    memory: float
    rate: float
    published: bool


def run_plan(config: Experiment) -> None:
    """Print the resolved config and what a run of it takes.

    Raises ConfigError for a config that cannot run, and for unknown devices.
    """
    validate_settings(config)
    devices = devices_of(config, DEVICE.value, DEVICES.value)
    print(json.dumps(config.to_dict(), indent=1))
    for title, text in plan(config, devices):
        print(f"{title:>12}: {text}", flush=True)


def devices_of(config: Experiment, kind: str | None, number: int | None) -> Devices:
    """The devices that flags name, or those of this machine; ConfigError for others."""
    local = jax.local_devices()
    dtype = config.precision.compute
    if kind is None:
        memory = available_memory() / len(local)
        # A machine's CPU devices share one processor.
        shared = len(local) if local[0].platform == "cpu" else 1
        rate = matmul_rate(dtype) / shared
        name = local[0].device_kind
        return Devices(name, number or jax.device_count(), memory, rate, False)
    names = [name for name in PEAKS if name.lower() == kind.lower().replace("-", " ")]
    if not names:
        listed = ", ".join(PEAKS)
        raise ConfigError(f"--device={kind} is not known: choose from {listed}.")
    # Of 32 bits no rates are published that matrices of float32 reach.
    halves = PEAKS[names[0]] / (1 if jnp.dtype(dtype).itemsize == 2 else 8)
    memory = next(gb for name, gb in MEMORY.items() if name in names[0])
    return Devices(names[0], number or 1, memory * 1e9, halves, True)


def plan(config: Experiment, devices: Devices) -> Iterator[tuple[str, str]]:
    """Lines of a title and a text; what takes long to find out comes last."""
    sizes = _mesh_sizes(config, devices.count)
    mesh: Any = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    objective, settings = build.objective(config), build.step_settings(config)
    state = abstract_state(objective, settings, mesh)
    size_px = config.data.image_size
    flops = objective.forward_flops(size_px, size_px)
    parameters = [
        f"{count(net) / 1e6:,.1f}M {name}" for name, net in state.params.items() if net
    ]
    yield "parameters", ", ".join(parameters)
    step = TRAINING_PASSES * flops * config.batch_size
    yield (
        "operations",
        f"{flops / 1e9:,.4g} GFLOP an image forward, {step / 1e12:,.4g} TFLOP a step "
        f"of {config.batch_size:,} images",
    )
    yield "mesh", _mesh_words(config, devices, sizes, state)
    yield "step", _step_words(config, devices, step)
    parts = _parts(state, objective.frozen_shapes())
    share = config.batch_size // (sizes[0] * sizes[1])
    held = ", ".join(f"{name} {size(value)}" for name, value in parts.items())
    yield "memory", f"of each of {devices.count} devices: {held}"
    planned = working_memory(config, share)
    parameters_bytes = FLOAT * count(state.params)
    gradients = min(parameters_bytes, planned)
    yield (
        "activations",
        f"{size(planned - gradients)}, and gradients {size(gradients)}, as XLA plans "
        f"a step of {share} images for {jax.devices()[0].device_kind}",
    )
    whole = sum(parts.values()) + planned
    fits = "fits" if whole <= devices.memory else "DOES NOT FIT: lower batch_size, "
    fits += "" if whole <= devices.memory else "raise accumulate, or take fsdp"
    yield (
        "in all",
        f"{size(whole)} of the {size(devices.memory)} of {_article(devices.name)}: "
        f"{fits}",
    )


def working_memory(config: Experiment, images: int) -> float:
    """Bytes that one step of so many images needs beside its state, by XLA's plan."""
    objective, settings = build.objective(config), build.step_settings(config)
    mesh = sharding.MeshShape(data=1).build(jax.local_devices()[:1])
    side, channels = config.data.image_size, config.model.channels
    image = jax.ShapeDtypeStruct((images, side, side, channels), np.float32)
    batch = {"image": image, **config.conditioner.example(images)}
    state = abstract_state(objective, settings, mesh)
    with jax.set_mesh(mesh):
        program = jax.jit(make_step(objective, settings), donate_argnums=0)
        lowered = program.lower(state, batch, objective.frozen_shapes())
        on_cpu = jax.default_backend() == "cpu"
        compiled = lowered.compile(compiler_options=UNRUN if on_cpu else {})
    memory: Any = compiled.memory_analysis()
    return float(memory.temp_size_in_bytes)


def _mesh_sizes(config: Experiment, number: int) -> tuple[int, ...]:
    try:
        sizes = config.mesh.sizes(number)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    shards = sizes[0] * sizes[1] * config.accumulate
    if config.batch_size % shards:
        raise ConfigError(
            f"batch_size={config.batch_size} must be a multiple of {shards}, data x "
            f"fsdp x accumulate, on {number} devices: change it, or --devices."
        )
    return sizes


def _mesh_words(
    config: Experiment, devices: Devices, sizes: tuple[int, ...], state: TrainState
) -> str:
    """The config's mesh over the devices, and what is advised where it is another."""
    own = " ".join(f"{name}={n}" for name, n in zip(AXES, sizes, strict=True))
    count_bytes = sum(_bytes(part) for part in (state.params, state.ema))
    whole = count_bytes + _bytes(state.opt_state) + _bytes(state.params)
    places = [
        types.SimpleNamespace(slice_index=i // HOST, process_index=i // HOST)
        for i in range(devices.count)
    ]
    advice = advise(whole, config.batch_size, devices.memory, places)
    shape = advice.shape
    better = " ".join(f"{name}={getattr(shape, name)}" for name in AXES)
    also = "" if better == own else f" Advised is {better}:"
    return f"{own} over {devices.count} devices.{also} {advice.reason}"


def _step_words(config: Experiment, devices: Devices, operations: float) -> str:
    seconds = operations / (devices.rate * devices.count)
    kind = "published" if devices.published else "measured"
    expected = seconds / REACHED
    return (
        f"{spoken(seconds)} at all of the {kind} rate of {devices.rate / 1e12:,.3g} "
        f"TFLOP/s of {_article(devices.name)}; expect {spoken(expected)}, at "
        f"{REACHED:.0%} of it, and {spoken(expected * config.steps)} for "
        f"{config.steps:,} steps"
    )


def _parts(state: TrainState, frozen: dict) -> dict[str, float]:
    """Bytes on one device that are there from step to step, by what they are."""
    parts = {
        "parameters": _local_bytes(state.params),
        "optimizer": _local_bytes(state.opt_state),
        "averages": _local_bytes(state.ema),
        "frozen networks": _bytes(frozen),
    }
    return {name: value for name, value in parts.items() if value}


def _bytes(tree: Any) -> float:
    return float(sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree)))


def _local_bytes(tree: Any) -> float:
    """Bytes of one device's part of arrays."""
    return float(
        sum(
            np.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(tree)
        )
    )


def _article(name: str) -> str:
    """A device's name with its article, as one says it."""
    return f"an {name}" if name[:1] in "AHLR" else f"a {name}"
