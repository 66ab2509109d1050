"""What a network output means: the only place that turns it into a velocity."""

import dataclasses
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from pixelflow_jax.flow.path import Point, Stage, downsample2, per_image, upsample2

PLAIN = Stage()


class Prediction(Protocol):
    """Turns network outputs into velocities, and points into training targets."""

    def velocity(self, out: Array, x_t: Array, t: Array, stage: Stage = PLAIN) -> Array:
        """Velocity dx/dt implied by the network output at (x_t, t) of `stage`."""

    def target(self, point: Point) -> Array:
        """The velocity that `velocity` should return at a training point."""

    def clean(self, out: Array, x_t: Array, t: Array, stage: Stage = PLAIN) -> Array:
        """The clean image implied by the network output at (x_t, t) of `stage`."""


@dataclasses.dataclass(kw_only=True)
class PredictVelocity(Prediction):
    """The network outputs end - start: PixelFlow and PixNerd."""

    def velocity(self, out: Array, x_t: Array, t: Array, stage: Stage = PLAIN) -> Array:
        """The output itself."""
        return out

    def target(self, point: Point) -> Array:
        """end - start."""
        return point.end - point.start

    def clean(self, out: Array, x_t: Array, t: Array, stage: Stage = PLAIN) -> Array:
        """The clean image of the segment through x_t with that velocity."""
        t = per_image(t, x_t)
        return stage.clean(x_t - t * out, x_t + (1 - t) * out)


@dataclasses.dataclass(kw_only=True)
class PredictClean(Prediction):
    """The network outputs the clean image: velocity = (end - x_t) / max(1 - t, t_eps).

    The end of a single-stage path is the clean image itself (PixelGen, JiT). In a
    cascade the ends of all stages but the last keep some noise, which follows from
    x_t and the clean image. The clamp acts on the target too, as in PixelGen, so that
    near t = 1 the target is smaller than end - start. `t_eps` 0 removes the clamp (the
    target at t = 1 is then undefined).
    """

    t_eps: float = 0.05

    def velocity(self, out: Array, x_t: Array, t: Array, stage: Stage = PLAIN) -> Array:
        """(end - x_t) / max(1 - t, t_eps), for the end that `out` implies."""
        t = per_image(t, x_t)
        end = out
        if stage.end < 1:
            # x_t = t * end + (1 - t) * start, solved for the noise in both.
            signal = t * stage.end * out
            if stage.start > 0:
                signal += (1 - t) * stage.start * upsample2(downsample2(out, 1))
            share = t * (1 - stage.end) + (1 - t) * (1 - stage.start)
            end = stage.end * out + (1 - stage.end) * (x_t - signal) / share
        return (end - x_t) / self._remaining(t)

    def target(self, point: Point) -> Array:
        """(end - x_t) / max(1 - t, t_eps)."""
        t = per_image(point.t, point.x_t)
        return (point.end - point.x_t) / self._remaining(t)

    def clean(self, out: Array, x_t: Array, t: Array, stage: Stage = PLAIN) -> Array:
        """The output itself."""
        return out

    def _remaining(self, t: Array) -> Array:
        return jnp.maximum(1 - t, self.t_eps)
