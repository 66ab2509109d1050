"""Moving averages of the denoiser's parameters, of constant decay or growing width.

A constant decay forgets at the same rate for ever. A power-function average (Karras et
al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section
3.1) weighs the parameters after step k by k^gamma, so that its width is a constant part
of the run, whatever its length: `sigma_rel`, the deviation of its profile over the time
so far. `training.posthoc` makes averages of other widths from two such.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

PREFIX = "posthoc:"
WIDEST = 0.28  # gamma = 0.1; all steps weigh the same at 1 / sqrt(12) = 0.2887


@dataclasses.dataclass(frozen=True)
class ConstantDecay:
    """decay * average + (1 - decay) * parameters, at every step."""

    decay: float

    def move(self, average: Array, parameter: Array, step: Array | int) -> Array:
        """The average after `step` steps (1 after the first)."""
        return self.decay * average + (1 - self.decay) * parameter


@dataclasses.dataclass(frozen=True)
class PowerFunction:
    """An average of the relative width `sigma_rel`, in (0, 0.28]."""

    sigma_rel: float

    def move(self, average: Array, parameter: Array, step: Array | int) -> Array:
        """The average after `step` steps; the first forgets how it began.

        beta = (1 - 1/t)^(gamma + 1) (section 3.1): for parameters that are constant
        between two steps this is the integral over k^gamma, and no approximation.
        """
        exponent = gamma_of(self.sigma_rel) + 1
        log_beta = exponent * jnp.log1p(-1 / jnp.asarray(step, jnp.float32))
        return average - jnp.expm1(log_beta) * (parameter - average)


def gamma_of(sigma_rel: float) -> float:
    """The exponent of a profile of that relative width: 0.1 has 6.94, 0.05 16.97.

    The largest root of (gamma + 2)^2 (gamma + 3) sigma_rel^2 = gamma + 1 (appendix C
    of Karras et al. 2024). Raises ValueError for a width outside (0, 0.28].
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(
            f"The relative width {sigma_rel:g} of an average must lie in (0, {WIDEST}]."
        )
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(np.max(roots[np.abs(roots.imag) < 1e-9 * np.abs(roots)].real))


def sigma_rel_of(gamma: float) -> float:
    """The deviation of the profile t^gamma on [0, 1], the inverse of `gamma_of`."""
    return float(np.sqrt(gamma + 1) / (gamma + 2) / np.sqrt(gamma + 3))


def posthoc_name(sigma_rel: float) -> str:
    """What a power-function average is called: "posthoc:0.05"."""
    return f"{PREFIX}{sigma_rel:g}"


def average_called(name: str) -> ConstantDecay | PowerFunction:
    """The average of a name: a decay written out, or `posthoc_name`'s.

    Raises ValueError for what is neither, or for a width outside (0, 0.28].
    """
    if not name.startswith(PREFIX):
        return ConstantDecay(float(name))
    number = name.removeprefix(PREFIX)
    if not re.fullmatch(r"\d*\.?\d+(e-?\d+)?", number):
        raise ValueError(
            f"{name!r} is no average: write {PREFIX}SIGMA_REL, such as {PREFIX}0.08."
        )
    average = PowerFunction(float(number))
    gamma_of(average.sigma_rel)
    return average


def in_words(name: str) -> str:
    """An average for people."""
    width = name.removeprefix(PREFIX)
    kind = f"with decay {name}" if width == name else f"of relative width {width}"
    return f"average {kind}"


def start_ema(params: dict, names: tuple[str, ...]) -> dict[str, dict]:
    """Averages that begin as copies of the parameters, under their names."""
    return {name: jax.tree.map(jnp.copy, params) for name in names}


def update_ema(
    ema: dict[str, dict], params: dict, step: Array | int
) -> dict[str, dict]:
    """Every average as it is after `step` steps, the last of which gave `params`."""

    def move(name: str, average: dict) -> dict:
        kind = average_called(name)
        return jax.tree.map(lambda a, p: kind.move(a, p, step), average, params)

    return {name: move(name, average) for name, average in ema.items()}
