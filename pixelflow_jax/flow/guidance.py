"""Classifier-free guidance: from a conditional and a null field to a guided one."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax import Array

# (x, t, step) -> dx/dt. `t` is the scalar time inside the stage; `step` is the time at
# which the solver's current step began. They differ in the second evaluation of a Heun
# step, whose guidance window the official code tests at the beginning of the step.
Field = Callable[[Array, Array, Array], Array]


class Branches(NamedTuple):
    """The two fields that guidance combines, and both at once in one doubled batch."""

    cond: Field
    both: Callable[[Array, Array, Array], tuple[Array, Array]]  # -> (cond, null)


class Guidance(Protocol):
    """Maps the branches of a stage to the field that the solver follows."""

    def __call__(self, branches: Branches, stage: int) -> Field:
        """The guided field of stage number `stage`."""


@dataclasses.dataclass(kw_only=True)
class ClassifierFree:
    """null + scale * (cond - null) inside the interval (low, high), cond outside.

    `closed` says which ends belong to the interval: "neither" (PixNerd), "high"
    (PixelGen's Euler and Heun), "low" or "both". Ends are compared in float32. The
    defaults guide everywhere. Outside the interval, and where the scale is 1, the null
    half is not computed. Sources: Ho & Salimans 2022; Kynkaanniemi et al. 2024.
    """

    scale: float = 1.0
    low: float = -np.inf
    high: float = np.inf
    closed: str = "neither"

    def __call__(self, branches: Branches, stage: int) -> Field:
        """The guided field; the scale is the same on every stage."""
        if self.closed not in ("neither", "low", "high", "both"):
            raise ValueError(
                f'guidance.closed must be "neither", "low", "high" or "both", not '
                f'"{self.closed}".'
            )
        if self.scale == 1:
            return branches.cond

        def guided(x: Array, t: Array, step: Array) -> Array:
            cond, null = branches.both(x, t, step)
            return null + self.scale * (cond - null)

        if self.low == -np.inf and self.high == np.inf:
            return guided
        return lambda x, t, step: jax.lax.cond(
            self.active(step), guided, branches.cond, x, t, step
        )

    def active(self, t: Array | np.ndarray) -> Array | np.ndarray:
        """Whether time `t` lies inside the interval."""
        low, high = np.float32(self.low), np.float32(self.high)
        above = t >= low if self.closed in ("low", "both") else t > low
        below = t <= high if self.closed in ("high", "both") else t < high
        return above & below
