"""The training loss: points on the path, loss terms, and their weighted sum."""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.flow.path import Point, Stage, image_noise
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.time import TimeSampler
from pixelflow_jax.models.interface import DenoiserConfig, Output
from pixelflow_jax.teachers.suite import RequiredFeatures, TargetFeatures, Teachers


class Context(NamedTuple):
    """What a loss term may look at; one entry a stage in the tuples.

    `teachers` and `frozen_params` are the frozen networks and their parameters, `targets` what
    they make of the real images; `projectors` are parameters that serve the loss alone.
    """

    points: tuple[Point, ...]
    output: Output
    prediction: Prediction
    stages: tuple[Stage, ...] = (Stage(),)
    teachers: Teachers | None = None
    frozen_params: dict | None = None
    targets: TargetFeatures = TargetFeatures()
    projectors: dict | None = None

    def velocity(self) -> tuple[Array, ...]:
        """The velocities that the network's outputs imply, [b_i, h_i, w_i, c] each."""
        return tuple(
            self.prediction.velocity(out, point.x_t, point.t, stage)
            for out, point, stage in self._groups()
        )

    def clean(self) -> tuple[Array, ...]:
        """The clean images that the network's outputs imply, [b_i, h_i, w_i, c]."""
        return tuple(
            self.prediction.clean(out, point.x_t, point.t, stage)
            for out, point, stage in self._groups()
        )

    def data_share(self) -> Array:
        """The data weight of every image's point, [b]; the time on a plain path."""
        return jnp.concatenate(
            [
                stage.start + (stage.end - stage.start) * point.t
                for _, point, stage in self._groups()
            ]
        )

    def _groups(self) -> zip:
        return zip(self.output.pred, self.points, self.stages, strict=True)


class Term(Protocol):
    """One term of the loss; the `perceptual` ones share an adaptive weight."""

    weight: float
    perceptual: bool

    def __call__(self, context: Context) -> Array:
        """The term's value for every image of the batch, float32 [b]."""

    def required_features(self) -> RequiredFeatures:
        """What the term asks of the teachers."""

    def projector(self, key: Array, model: DenoiserConfig, teachers: Teachers) -> dict:
        """Fresh parameters of the term's own; empty for most."""

    def problems(self) -> list[str]:
        """What is wrong with these fields."""


@dataclasses.dataclass(kw_only=True)
class FlowMatching(Term):
    """Mean squared error between the predicted and the target velocity.

    The mean is taken over each image first, so that images count alike whatever their
    resolution (PixelFlow eq. 5, PixNerd and PixelGen's flow-matching loss).
    """

    weight: float = 1.0
    perceptual = False

    def __call__(self, context: Context) -> Array:
        """One mean squared error an image, float32 [b]."""
        errors = []
        for point, velocity in zip(context.points, context.velocity(), strict=True):
            error = velocity - context.prediction.target(point)
            errors.append(jnp.mean(error * error, axis=(1, 2, 3)))
        return jnp.concatenate(errors)

    def required_features(self) -> RequiredFeatures:
        """Nothing."""
        return RequiredFeatures()

    def projector(self, key: Array, model: DenoiserConfig, teachers: Teachers) -> dict:
        """None."""
        return {}

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        return negative_weight(self)


def negative_weight(term: Term) -> list[str]:
    """A message where a term's weight is below 0."""
    if term.weight >= 0:
        return []
    return [f"{type(term).__name__}.weight={term.weight} must not be negative"]


def term_name(term: Term) -> str:
    """The name under which a term is logged, and its head stored."""
    return type(term).__name__


def draw_points(
    keys: Array, images: Array, stages: tuple[Stage, ...], time: TimeSampler
) -> tuple[Point, ...]:
    """Training points for `images` [b, h, w, c], dealt out evenly to the stages.

    Time and noise of image i depend on `keys[i]` only. Where b does not divide, the
    first (coarsest) stages get one image more.
    """
    height, width, channels = images.shape[1:]
    dealt = zip(
        split_round_robin(images, len(stages)),
        split_round_robin(keys, len(stages)),
        strict=True,
    )
    points = []
    for stage, (part, part_keys) in zip(stages, dealt, strict=True):
        time_keys, noise_keys = split_keys(part_keys, 2)
        t = jax.vmap(lambda key: time(key, 1)[0])(time_keys)
        noise = image_noise(noise_keys, *stage.size(height, width), channels)
        points.append(stage.draw(part, noise, t))
    return tuple(points)


def split_round_robin(a: Array, parts: int) -> list[Array]:
    """Row i of [b, ...] goes to part i modulo `parts`, so the first get what is over.

    Neighbours go to different parts: a batch that is spread over devices stays where it
    is when every device holds a multiple of `parts`.
    """
    if len(a) % parts:
        return [a[index::parts] for index in range(parts)]
    rows = a.reshape(-1, parts, *a.shape[1:])
    return [rows[:, index] for index in range(parts)]


def split_keys(keys: Array, n: int) -> Array:
    """`n` independent keys for each of `keys` [b], as [n, b]."""
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, n))(keys), 0, 1)


def combine(
    terms: list[Term], context: Context, balance: Array | float = 1.0
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the terms' batch means, and each mean by name.

    `adaptive_weight` multiplies the weights of the perceptual terms.
    """
    means = [jnp.mean(term(context)) for term in terms]
    total = sum(
        term.weight * (balance if term.perceptual else 1.0) * mean
        for term, mean in zip(terms, means, strict=True)
    )
    return total, dict(zip(map(term_name, terms), means, strict=True))
