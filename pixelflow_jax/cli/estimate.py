"""What a command will take at least, in memory, time and room, before it begins.

All figures are lower bounds: what is left out (activations, compiling, reading data)
only adds to them.
"""

import dataclasses
import math
import os
import pathlib
import shutil

import jax

from pixelflow_jax import build
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.training.throughput import TRAINING_PASSES, whole_rate

FLOAT = 4  # bytes
# float32 arrays of a parameter's size: itself, its gradient, Adam's two moments.
STATE = 4
IMAGES = 3  # arrays of a batch's size: data, noise, target
DAY = 86_400.0
LONG, NOTED = 30 * DAY, DAY  # seconds: from where --yes is asked for, or a note made
FULL = 0.8  # of the memory: more is asked about
MANY = 2**30  # drawn pixels below which nothing is estimated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What `what` takes at least: bytes on all local devices, seconds, bytes on disk.

    `parts` says what the memory is for; `remedy` names what to lower.
    """

    what: str
    remedy: str
    parts: str = ""
    memory: float = 0.0
    seconds: float = 0.0
    disk: float = 0.0

    def check(self, yes: bool, folder: pathlib.Path) -> None:
        """Raises ConfigError for what cannot be, or is enormous and was not meant.

        Says how long it will take where that is more than a day.
        """
        memory, free = available_memory(), _free_disk(folder)
        if self.memory > memory:
            raise ConfigError(
                f"{self.what} needs at least {size(self.memory)} of memory "
                f"({self.parts}), and there are {size(memory)}: {self.remedy}."
            )
        if self.disk > free:
            raise ConfigError(
                f"{self.what} needs {size(self.disk)} in {folder}, where {size(free)} "
                f"are free: {self.remedy}, or name another disk."
            )
        large = []
        if self.seconds > LONG:
            large.append(f"{duration(self.seconds)} on {_devices()}")
        if self.memory > FULL * memory:
            large.append(f"{size(self.memory)} of the {size(memory)} of memory")
        if large and not yes:
            raise ConfigError(
                f"{self.what} takes at least {' and '.join(large)}: {self.remedy}, or "
                "add --yes to go on."
            )
        if self.seconds > NOTED and jax.process_index() == 0:
            took = duration(self.seconds)
            print(f"{self.what} takes at least {took} on {_devices()}.")


def of_training(config: Experiment) -> Estimate:
    """What a run takes; the config is one that can run."""
    height, width = config.data.shapes[0]
    shapes = jax.tree.leaves(build.network(config).shapes())
    parameters = sum(math.prod(leaf.shape) for leaf in shapes)
    copies = config.mesh.build().shape["data"] / jax.process_count()
    state = FLOAT * parameters * (STATE + len(config.ema)) * copies
    arrays = 1 + (IMAGES - 1) / config.accumulate
    share = FLOAT * config.batch_size / jax.process_count() * arrays
    images = share * height * width * config.model.channels
    flops = build.objective(config).forward_flops(height, width) * TRAINING_PASSES
    return Estimate(
        what=f"Training {config.name!r} for {config.steps:,} steps",
        remedy="lower --config.steps, --config.batch_size or --config.data.image_size, "
        "or take more devices",
        parts=f"{parameters / 1e6:,.1f}M parameters with optimizer and averages "
        f"{size(state)}, a batch of {config.batch_size:,} images {size(images)}",
        memory=state + images,
        seconds=_seconds(config, flops * config.batch_size * config.steps),
    )


def of_sampling(config: Experiment, count: int, height: int, width: int) -> Estimate:
    """What drawing `count` images takes; nothing is said of a few."""
    what = f"Drawing {count:,} images of {height} x {width}"
    remedy = "lower --count, --height or --width"
    pixels = height * width
    tokens = pixels / config.model.patch**2
    memory = (
        FLOAT * IMAGES * (pixels * config.model.channels + tokens * config.model.width)
    )
    seconds = 0.0
    if count * pixels > MANY:
        grid = config.sampling.grid
        evaluations = grid.stage_steps[-1] if grid.stage_steps else grid.steps
        flops = config.model.flops(height, width)
        seconds = _seconds(config, flops * evaluations * count)
    return Estimate(
        what=what,
        remedy=remedy,
        parts=f"{tokens:,.0f} tokens an image",
        memory=memory,
        seconds=seconds,
        disk=count * pixels * config.model.channels,
    )


def available_memory() -> float:
    """Bytes of memory of all local devices."""
    devices = jax.local_devices()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    if all(limits):
        return float(sum(limit for limit in limits if limit))
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def size(count: float) -> str:
    """Bytes in words."""
    power = min(4, int(math.log10(max(count, 1)) // 3))
    value = count / 1000**power
    unit = ("B", "kB", "MB", "GB", "TB")[power]
    return f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def duration(seconds: float) -> str:
    """A time in words."""
    days = seconds / DAY
    if days < 2:
        return f"{seconds / 3600:,.0f} hours"
    return f"{days:,.0f} days" if days < 730 else f"{days / 365:,.0f} years"


def _seconds(config: Experiment, operations: float) -> float:
    return operations / whole_rate(config.precision.compute)


def _free_disk(folder: pathlib.Path) -> float:
    """Bytes that are free where a folder lies or will lie."""
    path = folder.absolute()
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return float(usage.free) if usage.total else math.inf  # no disk at all: /proc


def _devices() -> str:
    count, kind = jax.device_count(), jax.default_backend().upper()
    return f"{count} {kind} devices" if count > 1 else f"one {kind} device"
