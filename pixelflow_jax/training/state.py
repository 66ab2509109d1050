"""Everything a training run must remember, as one pytree."""

from typing import NamedTuple

import optax
from flax import struct
from jax import Array


@struct.dataclass
class TrainState:
    """The state of a run after `step` steps.

    `params` holds "denoiser", and "projectors" where loss terms have parameters of
    their own; `ema` averages of the denoiser, each under its name
    (`training.ema.average_called`); `carry` what the objective remembers from step
    to step.
    """

    step: Array
    params: dict
    opt_state: optax.OptState
    ema: dict[str, dict]
    carry: dict


class Initial(NamedTuple):
    """What a run begins with; parameters that are absent are drawn as ever.

    `ema` holds an average for every constant decay, under the decay written out;
    `constants` are those of the prediction that the parameters were trained for, if it
    had the same.
    """

    params: dict
    ema: dict[str, dict]
    report: str
    constants: dict = {}
