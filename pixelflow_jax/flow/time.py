"""Laws of the training time, and the time grids of the samplers."""

import dataclasses
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pixelflow_jax import values
from pixelflow_jax.flow.checks import refuse
from pixelflow_jax.values import (
    Natural,
    Offset,
    PositiveShare,
    Rate,
    Shift,
    Spread,
    Steps,
)

A = TypeVar("A", np.ndarray, Array)


def warp(t: A, shift: float | np.floating) -> A:
    """Timestep shift t / (t + (1 - t) * shift): above 1 stays longer near the noise."""
    return t / (t + (1 - t) * shift)


class TimeSampler(Protocol):
    """Draws training times; config nodes name it as their base."""

    def __call__(self, key: Array, n: int) -> Float[Array, " {n}"]:
        """`n` times in [0, 1], float32."""
        ...

    def transform(self, draw: Array) -> Array:
        """Times from draws of a distribution of its own."""
        ...


@dataclasses.dataclass(kw_only=True)
class Uniform(TimeSampler):
    """t uniform in [0, 1), then shifted.

    `levels` rounds the draw down to a multiple of 1 / levels, as PixelFlow trains on a
    table of 1000 times a stage; 0 keeps it continuous.
    """

    shift: Shift = 1.0
    levels: Natural = 0

    def __call__(self, key: Array, n: int) -> Float[Array, " {n}"]:
        """`n` times in [0, 1], float32."""
        return self.transform(jax.random.uniform(key, (n,)))

    def transform(self, draw: Array) -> Array:
        """Times from uniform draws."""
        if self.levels:
            draw = jnp.floor(draw * self.levels) / self.levels
        return warp(draw, self.shift)


@dataclasses.dataclass(kw_only=True)
class LogitNormal(TimeSampler):
    """t = sigmoid(mean + std * normal), then shifted (Esser et al. 2024, eq. 19)."""

    mean: Offset = 0.0
    std: Spread = 1.0
    shift: Shift = 1.0

    def __call__(self, key: Array, n: int) -> Float[Array, " {n}"]:
        """`n` times in (0, 1), float32."""
        return self.transform(jax.random.normal(key, (n,)))

    def transform(self, draw: Array) -> Array:
        """Times from standard normal draws."""
        return warp(jax.nn.sigmoid(self.mean + self.std * draw), self.shift)


@dataclasses.dataclass(kw_only=True)
class Grid:
    """Sampling times: `steps` equal steps up to 1 - last_step, then one to 1; shifted.

    `steps` counts for every stage of the path, unless `stage_steps` holds one number a
    stage. `last_step` 0 stands for equal steps all the way. The official PixelFlow
    sampler spreads its steps over 0 .. 0.999, which makes the last one tiny:
    last_step=0.001 is that grid. Its Dopri5 sampler gives the network the timestep of
    0.999 t instead of t: `timestep_scale`.
    """

    steps: Steps = 50
    stage_steps: tuple[Steps, ...] = ()
    last_step: Rate = 0.0
    shift: Shift = 1.0
    timestep_scale: PositiveShare = 1.0

    def times(self, stage: int = 0) -> np.ndarray:
        """The nodes of stage number `stage`, float32 [n + 1], from 0 to exactly 1.

        Raises ValueError for fields that make no sense.
        """
        refuse(self.problems(len(self.stage_steps) or 1))
        steps = self.stage_steps[stage] if self.stage_steps else self.steps
        last = self.last_step or 1 / steps
        nodes = np.append(_linspace(1 - last, steps), np.float32(1))
        return warp(nodes, np.float32(self.shift))

    def problems(self, num_stages: int) -> list[str]:
        """What is wrong with these fields for a path of that many stages."""
        problems = values.field_problems(self, "grid")
        if len(self.stage_steps) not in (0, num_stages):
            problems.append(
                f"grid.stage_steps={self.stage_steps} must hold {num_stages} numbers, "
                "one for each stage of the path, or none"
            )
        return problems


def _linspace(end: float, n: int) -> np.ndarray:
    """`n` float32 nodes from 0 to `end`, rounded as the reference rounds them.

    Guidance windows compare these nodes with open ends, so the last bit decides whether
    a node that lies on an end is guided: both halves count from their own end.
    """
    if n == 1:
        return np.zeros(1, np.float32)
    last = np.float32(end)
    step = np.float32(last / np.float32(n - 1))
    index = np.arange(n, dtype=np.float32)
    upper = last - step * (np.float32(n - 1) - index)
    return np.where(index < n // 2, step * index, upper).astype(np.float32)
