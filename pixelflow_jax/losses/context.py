"""What a loss term looks at, and what a term is."""

import zlib
from typing import ClassVar, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.flow.path import Point, Stage
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.models.interface import DenoiserConfig, Inputs, Output
from pixelflow_jax.teachers.suite import RequiredFeatures, TargetFeatures, Teachers

# What a term is to the adaptive weight: it compares the gradients of the "flow" terms
# with those of the "perceptual" ones, which it multiplies.
Role = Literal["flow", "perceptual", "auxiliary"]
DRAWS = 2**31 + 1  # a number apart from those of all other draws of an image's key


class Context(NamedTuple):
    """What a loss term may look at; one entry a stage in the tuples.

    `batch` is what the denoiser was given, conditions as they are after dropping.
    `teachers` and `frozen_params` are the frozen networks and their parameters,
    `targets` what they make of the real images; `projectors` are the terms' own
    parameters by name.
    """

    points: tuple[Point, ...]
    output: Output
    prediction: Prediction
    stages: tuple[Stage, ...] = (Stage(),)
    batch: tuple[Inputs, ...] = ()
    keys: Array | None = None  # [b], one an image in the order of the points
    teachers: Teachers = Teachers()
    frozen_params: dict = {}
    targets: TargetFeatures = TargetFeatures()
    projectors: dict = {}

    def velocity(self) -> tuple[Array, ...]:
        """The velocities that the network's outputs imply, [b_i, h_i, w_i, c] each."""
        return tuple(
            self.prediction.velocity(out, point.x_t, point.t, stage)
            for out, point, stage in self._by_stage()
        )

    def clean(self) -> tuple[Array, ...]:
        """The clean images that the network's outputs imply, [b_i, h_i, w_i, c]."""
        return tuple(
            self.prediction.clean(out, point.x_t, point.t, stage)
            for out, point, stage in self._by_stage()
        )

    def data_share(self) -> Array:
        """The data weight of every image's point, [b]; the time on a plain path."""
        return jnp.concatenate(
            [
                stage.start + (stage.end - stage.start) * point.t
                for _, point, stage in self._by_stage()
            ]
        )

    def keys_of(self, term: "Term") -> tuple[Array, ...]:
        """A key for every image [b_i] of which `term` alone may draw."""
        if self.keys is None:
            raise ValueError(f"{term_name(term)} draws, but the context has no keys.")
        number = zlib.crc32(term_name(term).encode())

        def key_of(key: Array) -> Array:
            return jax.random.fold_in(jax.random.fold_in(key, DRAWS), number)

        own, first, parts = jax.vmap(key_of)(self.keys), 0, []
        for point in self.points:
            parts.append(own[first : first + len(point.t)])
            first += len(point.t)
        return tuple(parts)

    def _by_stage(self) -> zip:
        return zip(self.output.pred, self.points, self.stages, strict=True)


class Term(Protocol):
    """One term of the loss: a config node, which names this class as its base."""

    weight: float
    role: ClassVar[Role] = "auxiliary"

    def __call__(self, context: Context) -> Array:
        """The term's value for every image of the batch, float32 [b]."""
        ...

    def required_features(self) -> RequiredFeatures:
        """What the term asks of the teachers."""
        return RequiredFeatures()

    def init_projector(
        self, key: Array, model: DenoiserConfig, teachers: Teachers
    ) -> dict:
        """Fresh parameters of the term's own; empty for most."""
        return {}

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        return weight_problems(self)


def weight_problems(term: Term) -> list[str]:
    """A message where a term's weight is below 0."""
    if term.weight >= 0:
        return []
    return [f"{term_name(term)}.weight={term.weight} must not be negative"]


def term_name(term: Term) -> str:
    """The name under which a term is logged, and its projector stored."""
    return type(term).__name__
