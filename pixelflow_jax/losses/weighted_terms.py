"""The terms of a loss together: their weighted sum, and all that they ask for."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.context import Context, Role, Term, term_name
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.teachers.suite import RequiredFeatures, Teachers, union

WEIGHT = "adaptive_weight"  # under which the carry holds it


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightedTerms:
    """Loss terms, the frozen networks they look through, and their adaptive weight."""

    terms: Sequence[Term]
    teachers: Teachers = dataclasses.field(default_factory=Teachers)
    adaptive_weight: AdaptiveWeight | None = None

    def __call__(self, context: Context, carry: dict) -> tuple[Array, dict[str, Array]]:
        """The weighted sum, and each term's mean by name."""
        weight: Array | float = 1.0
        if self.adaptive_weight is not None:
            weight = self.adaptive_weight.ratio * carry[WEIGHT]
        return combine(self.terms, context, weight)

    def group(self, role: Role, context: Context) -> Array:
        """The weighted sum of the terms of one role, without the adaptive weight."""
        return combine([t for t in self.terms if t.role == role], context)[0]

    @property
    def required_features(self) -> RequiredFeatures:
        """What the terms ask of the teachers."""
        return union(term.required_features() for term in self.terms)

    def projectors(self, key: Array, model: DenoiserConfig) -> dict:
        """Fresh parameters of the terms that have some, by name."""
        projectors = {}
        for number, term in enumerate(self.terms, 1):
            own = jax.random.fold_in(key, number)
            projectors[term_name(term)] = term.init_projector(own, model, self.teachers)
        return {name: params for name, params in projectors.items() if params}

    def carry(self) -> dict:
        """What the terms remember from step to step, before the first one."""
        if self.adaptive_weight is None:
            return {}
        return {WEIGHT: jnp.ones((), jnp.float32)}

    def weight_is_due(self, step: int) -> bool:
        """Whether the adaptive weight moves before step number `step`."""
        return self.adaptive_weight is not None and bool(
            self.adaptive_weight.is_due(step)
        )

    def load(self) -> dict:
        """The teachers' parameters (numpy), by name."""
        return self.teachers.load(self.required_features)

    def shapes(self) -> dict:
        """The same as shapes; reads nothing."""
        return self.teachers.shapes(self.required_features)

    def problems(self) -> list[str]:
        """What is wrong with the terms, alone and together."""
        messages = [problem for term in self.terms for problem in term.problems()]
        names = [term_name(term) for term in self.terms]
        if len(set(names)) < len(names):
            messages.append(f"terms {names}: each kind may be there once")
        if self.adaptive_weight is None:
            return messages
        messages += self.adaptive_weight.problems()
        roles = {term.role for term in self.terms}
        return messages + [
            f"adaptive_weight is set but no term is {role}: remove it"
            for role in ("flow", "perceptual")
            if role not in roles
        ]


def combine(
    terms: Sequence[Term], context: Context, adaptive_weight: Array | float = 1.0
) -> tuple[Array, dict[str, Array]]:
    """The weighted sum of the terms' batch means, and each mean by name.

    `adaptive_weight` multiplies the weights of the perceptual terms.
    """
    means = [jnp.mean(term(context)) for term in terms]
    total = jnp.zeros(())
    for term, mean in zip(terms, means, strict=True):
        scale = adaptive_weight if term.role == "perceptual" else 1.0
        total += term.weight * scale * mean
    return total, dict(zip(map(term_name, terms), means, strict=True))
