"""Everything a training run must remember, as one pytree."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array


@struct.dataclass
class TrainState:
    """The state of a run after `step` steps.

    `params` holds "denoiser", and "projectors" where loss terms have parameters of their
    own; `ema` one average of the denoiser for every decay, under the decay written out;
    `carry` what the loss remembers from step to step.
    """

    step: Array
    params: dict
    opt_state: optax.OptState
    ema: dict[str, dict]
    carry: dict


class Initial(NamedTuple):
    """What a run begins with; parameters that are absent are drawn as ever.

    `ema` holds an average for every decay, under the decay written out.
    """

    params: dict
    ema: dict[str, dict]
    report: str


def create(
    params: dict,
    optimizer: optax.GradientTransformation,
    ema: tuple[float, ...],
    carry: dict,
) -> TrainState:
    """The state before the first step; averages begin as copies of the denoiser."""
    copies = {str(d): jax.tree.map(jnp.copy, params["denoiser"]) for d in ema}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema=copies,
        carry=carry,
    )


def update_ema(ema: dict[str, dict], params: dict) -> dict[str, dict]:
    """Every average moved one step: decay * average + (1 - decay) * parameter."""

    def move(decay: str, average: dict) -> dict:
        d = float(decay)
        return jax.tree.map(lambda a, p: d * a + (1 - d) * p, average, params)

    return {decay: move(decay, average) for decay, average in ema.items()}
