"""Dropping conditions: the parts of a condition drop apart, image by image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.flow.path import per_image
from pixelflow_jax.models.interface import Condition

# What an image shows, and where: fields of a condition that stay together.
CONTENT = ("labels", "text", "mask")
GROUNDING = ("grounding",)
PARTS = (CONTENT, GROUNDING)


def drop(draw: Array, cond: Condition, null: Condition, rate: float) -> Condition:
    """`null` where the uniform `draw` [b] lies below `rate`, `cond` elsewhere."""
    dropped = draw < rate
    return jax.tree.map(lambda c, n: jnp.where(per_image(dropped, c), n, c), cond, null)


def drop_parts(
    keys: Array, cond: Condition, null: Condition, rates: Sequence[float]
) -> Condition:
    """`cond` with some of the parts of `null`, each part by a draw of its own.

    `keys` [b] are the images', `rates` those of `PARTS`; parts without one are kept.
    """
    for number, (part, rate) in enumerate(zip(PARTS, rates, strict=False)):

        def draw(key: Array, number: int = number) -> Array:
            own = jax.random.fold_in(key, number) if number else key
            return jax.random.uniform(own)

        cond = drop(jax.vmap(draw)(keys), cond, exchange(cond, null, part), rate)
    return cond


def exchange(cond: Condition, other: Condition, part: Sequence[str]) -> Condition:
    """`cond` with one part of `other`, such as GROUNDING."""
    return cond._replace(**{name: getattr(other, name) for name in part})


def drop_problems(rate: float) -> list[str]:
    """A message where a rate of dropping is none."""
    return [] if 0 <= rate <= 1 else ["conditioner.drop must lie in [0, 1]"]
