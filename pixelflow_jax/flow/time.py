"""Laws of the training time, and the time grids of the samplers."""

import dataclasses

import jax
import numpy as np
from jax import Array


def warp(t: Array | np.ndarray, shift: float) -> Array | np.ndarray:
    """Timestep shift t / (t + (1 - t) * shift): above 1 stays longer near the noise."""
    return t / (t + (1 - t) * shift)


@dataclasses.dataclass(kw_only=True)
class Uniform:
    """t uniform in [0, 1), then shifted."""

    shift: float = 1.0

    def __call__(self, key: Array, n: int) -> Array:
        """`n` times in [0, 1], float32 [n]."""
        return self.transform(jax.random.uniform(key, (n,)))

    def transform(self, draw: Array) -> Array:
        """Times from uniform draws."""
        return warp(draw, self.shift)


@dataclasses.dataclass(kw_only=True)
class LogitNormal:
    """t = sigmoid(mean + std * normal), then shifted (Esser et al. 2024, eq. 19)."""

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def __call__(self, key: Array, n: int) -> Array:
        """`n` times in (0, 1), float32 [n]."""
        return self.transform(jax.random.normal(key, (n,)))

    def transform(self, draw: Array) -> Array:
        """Times from standard normal draws."""
        return warp(jax.nn.sigmoid(self.mean + self.std * draw), self.shift)


TimeLaw = Uniform | LogitNormal


@dataclasses.dataclass(kw_only=True)
class Grid:
    """Sampling times: `steps` equal steps up to 1 - last_step, then one to 1; shifted.

    `last_step` 0 stands for the reference's default, 1 / steps (all steps equal).
    """

    steps: int = 50
    last_step: float = 0.0
    shift: float = 1.0

    def times(self) -> np.ndarray:
        """The nodes, float32 [steps + 1], from 0 to exactly 1."""
        if self.steps < 1:
            raise ValueError(f"grid.steps must be at least 1, not {self.steps}.")
        if not 0 <= self.last_step <= 1 or self.shift <= 0:
            raise ValueError(
                f"The time grid needs 0 <= last_step <= 1 and shift > 0, not last_step="
                f"{self.last_step} and shift={self.shift}."
            )
        last = self.last_step or 1 / self.steps
        nodes = np.append(_linspace(1 - last, self.steps), np.float32(1))
        return warp(nodes, np.float32(self.shift))


def _linspace(end: float, n: int) -> np.ndarray:
    """`n` float32 nodes from 0 to `end`, rounded as the reference rounds them.

    Guidance windows compare these nodes with open ends, so the last bit decides whether
    a node that lies on an end is guided: both halves count from their own end.
    """
    if n == 1:
        return np.zeros(1, np.float32)
    end = np.float32(end)
    step = np.float32(end / np.float32(n - 1))
    index = np.arange(n, dtype=np.float32)
    upper = end - step * (np.float32(n - 1) - index)
    return np.where(index < n // 2, step * index, upper).astype(np.float32)
