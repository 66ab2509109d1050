"""The training loss: points on the path, loss terms, and their weighted sum."""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.flow.path import Point, Stage, image_noise
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.time import TimeLaw
from pixelflow_jax.models.base import Output


class Context(NamedTuple):
    """What a loss term may look at; one entry a stage in `points` and `output`."""

    points: tuple[Point, ...]
    output: Output
    prediction: Prediction


class Term(Protocol):
    """One term of the loss."""

    weight: float

    def __call__(self, context: Context) -> Array:
        """The term's value for every image of the batch, float32 [b]."""


@dataclasses.dataclass(kw_only=True)
class FlowMatching:
    """Mean squared error between the predicted and the target velocity.

    The mean is taken over each image first, so that images count alike whatever their
    resolution (PixelFlow eq. 5, PixNerd and PixelGen's flow-matching loss).
    """

    weight: float = 1.0

    def __call__(self, context: Context) -> Array:
        """One mean squared error an image, float32 [b]."""

        def one(point: Point, out: Array) -> Array:
            velocity = context.prediction.velocity(out, point.x_t, point.t)
            error = velocity - context.prediction.target(point)
            return jnp.mean(error * error, axis=(1, 2, 3))

        pairs = zip(context.points, context.output.pred, strict=True)
        return jnp.concatenate([one(point, out) for point, out in pairs])


def term_name(term: Term) -> str:
    """The name under which a term is logged."""
    return type(term).__name__


def draw_points(
    keys: Array, images: Array, stages: tuple[Stage, ...], time: TimeLaw
) -> tuple[Point, ...]:
    """Training points for `images` [b, h, w, c], divided evenly among the stages.

    Time and noise of image i depend on `keys[i]` only. Where b does not divide, the
    first (coarsest) stages get one image more.
    """
    b, height, width, channels = images.shape
    points, start = [], 0
    for index, stage in enumerate(stages):
        size = b // len(stages) + (index < b % len(stages))
        part = slice(start, start + size)
        start += size
        time_keys, noise_keys = split_keys(keys[part], 2)
        t = jax.vmap(lambda key: time(key, 1)[0])(time_keys)
        noise = image_noise(noise_keys, *stage.size(height, width), channels)
        points.append(stage.draw(images[part], noise, t))
    return tuple(points)


def split_keys(keys: Array, n: int) -> Array:
    """`n` independent keys for each of `keys` [b], as [n, b]."""
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, n))(keys), 0, 1)


def combine(terms: list[Term], context: Context) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the terms' batch means, and each mean by name."""
    means = [jnp.mean(term(context)) for term in terms]
    total = sum(term.weight * mean for term, mean in zip(terms, means, strict=True))
    return total, dict(zip(map(term_name, terms), means, strict=True))
