"""The flow-matching loss, which every method trains with."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from pixelflow_jax.losses.context import Context, Role, Term
from pixelflow_jax.values import NonNegative


@dataclasses.dataclass(kw_only=True)
class FlowMatching(Term):
    """Mean squared error between the predicted and the target velocity.

    The mean is taken over each image first, so that images count alike whatever their
    resolution (PixelFlow eq. 5, PixNerd and PixelGen's flow-matching loss), and weighed
    where the prediction says so.
    """

    weight: NonNegative = 1.0
    role: ClassVar[Role] = "flow"

    def __call__(self, context: Context) -> Float[Array, " b"]:
        """One mean squared error an image, float32 [b]."""
        values = []
        for point, velocity in zip(context.points, context.velocity(), strict=True):
            error = velocity - context.prediction.target(point)
            value = jnp.mean(error * error, axis=(1, 2, 3))
            weight = context.prediction.loss_weight(point)
            values.append(value if weight is None else weight * value)
        return jnp.concatenate(values)
