"""What a network output means: the only place that turns it into a velocity."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from pixelflow_jax.flow.path import Point, per_image


class Prediction(Protocol):
    """Turns network outputs into velocities, and points into training targets."""

    def velocity(self, out: Array, x_t: Array, t: Array) -> Array:
        """Velocity dx/dt implied by the network output at (x_t, t)."""

    def target(self, point: Point) -> Array:
        """The velocity that `velocity` should return at a training point."""

    def clean(self, out: Array, x_t: Array, t: Array) -> Array:
        """The clean image implied by the network output at (x_t, t)."""


@dataclasses.dataclass(kw_only=True)
class PredictVelocity:
    """The network outputs end - start: PixelFlow and PixNerd."""

    def velocity(self, out: Array, x_t: Array, t: Array) -> Array:
        """The output itself."""
        return out

    def target(self, point: Point) -> Array:
        """end - start."""
        return point.end - point.start

    def clean(self, out: Array, x_t: Array, t: Array) -> Array:
        """x_t + (1 - t) * velocity."""
        return x_t + (1 - per_image(t, x_t)) * out


@dataclasses.dataclass(kw_only=True)
class PredictClean:
    """The network outputs the clean end: velocity = (out - x_t) / max(1 - t, t_eps).

    The clamp acts on the target too, as in PixelGen, so that near t = 1 the target is
    smaller than end - start. `t_eps` 0 removes the clamp (the target at t = 1 is then
    undefined). Written for paths whose end is the clean image.
    """

    t_eps: float = 0.05

    def velocity(self, out: Array, x_t: Array, t: Array) -> Array:
        """(out - x_t) / max(1 - t, t_eps)."""
        return (out - x_t) / self._remaining(x_t, t)

    def target(self, point: Point) -> Array:
        """(end - x_t) / max(1 - t, t_eps)."""
        return (point.end - point.x_t) / self._remaining(point.x_t, point.t)

    def clean(self, out: Array, x_t: Array, t: Array) -> Array:
        """The output itself."""
        return out

    def _remaining(self, x_t: Array, t: Array) -> Array:
        return jnp.maximum(1 - per_image(t, x_t), self.t_eps)
