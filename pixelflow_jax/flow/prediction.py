"""What a network output means: the only place that turns it into a velocity."""

import dataclasses
from collections.abc import Iterable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pixelflow_jax.flow.path import Point, Stage, downsample2, per_image, upsample2
from pixelflow_jax.values import Fraction

Images = Float[Array, "b h w c"]
Times = Float[Array, "*times"]  # a scalar, or one an image
PLAIN = Stage()
CONSTANTS = "prediction"  # where programs find a prediction's constants, by name


class Prediction(Protocol):
    """Turns network outputs into velocities, and points into training targets.

    Config nodes name this class as their base; most need no more than its first three
    methods. A prediction may also change what the network is given, and learn constants
    from the data: they are computed once, saved with the run, arguments of every
    program, and bound before anything else is asked.
    """

    def velocity(
        self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN
    ) -> Images:
        """Velocity dx/dt implied by the network output at (x_t, t) of `stage`."""
        ...

    def target(self, point: Point) -> Images:
        """The velocity that `velocity` should return at a training point."""
        ...

    def clean(self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN) -> Images:
        """The clean image implied by the network output at (x_t, t) of `stage`."""
        ...

    def inputs(
        self, x_t: Images, t: Times, stage: Stage = PLAIN
    ) -> tuple[Images, Times]:
        """What the network is given at (x_t, t) of `stage`: an image, and its timestep.

        The timestep depends on `t` and `stage` alone.
        """
        return x_t, stage.timestep(t)

    def loss_weight(self, point: Point) -> Float[Array, " b"] | None:
        """What multiplies the squared error of the velocity; None: nothing."""
        return None

    def for_sampling(self) -> "Prediction":
        """The prediction that samplers take, where it differs from that of training."""
        return self

    def problems(self, stages: tuple[Stage, ...]) -> list[str]:
        """Why it does not fit a path of those stages."""
        return []

    def constants(self, images: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays that follow from the data, by name.

        `images` are batches [n, h, w, c] of training images in [-1, 1], of which it
        takes as many as it needs; none are read where there are no constants.
        """
        return {}

    def constant_shapes(self, channels: int) -> dict[str, jax.ShapeDtypeStruct]:
        """What `constants` returns for images of that many channels, as shapes."""
        return {}

    def bind(self, constants: dict[str, Array]) -> "Prediction":
        """The prediction with its constants at hand, for one program."""
        return self

    def init(self, params: dict, constants: dict[str, Array]) -> dict:
        """The denoiser's fresh parameters, where some of them follow from constants."""
        return params


@dataclasses.dataclass(kw_only=True)
class PredictVelocity(Prediction):
    """The network outputs end - start: PixelFlow and PixNerd."""

    def velocity(
        self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN
    ) -> Images:
        """The output itself."""
        return out

    def target(self, point: Point) -> Images:
        """end - start."""
        return point.end - point.start

    def clean(self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN) -> Images:
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

    t_eps: Fraction = 0.05

    def velocity(
        self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN
    ) -> Images:
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

    def target(self, point: Point) -> Images:
        """(end - x_t) / max(1 - t, t_eps)."""
        t = per_image(point.t, point.x_t)
        return (point.end - point.x_t) / self._remaining(t)

    def clean(self, out: Images, x_t: Images, t: Times, stage: Stage = PLAIN) -> Images:
        """The output itself."""
        return out

    def _remaining(self, t: Array) -> Array:
        return jnp.maximum(1 - t, self.t_eps)
