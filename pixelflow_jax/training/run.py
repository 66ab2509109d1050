"""A training run, as it was built from a config."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import traverse_util

from pixelflow_jax.config_versions import migrate
from pixelflow_jax.data.loader import BatchLoader
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.training.best import OnlineCheck
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.guard import Guard
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.observe import Observer
from pixelflow_jax.training.posthoc import PostHocEMA
from pixelflow_jax.training.profile import Window
from pixelflow_jax.training.state import Initial, TrainState
from pixelflow_jax.training.step import StepSettings, abstract_state, fresh_state
from pixelflow_jax.training.throughput import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run, ready to go: built from a config, carried out by `train`.

    `open_data(k)` gives the batches from number k on; `preview(ema, frozen_params)`
    draws a picture, uint8 [h, w, 3], from an average of the denoiser, and `online`
    measures one. A run without checkpoints begins with the parameters that `initial`
    reads, or with random ones, and with what `constants` computes for the prediction
    from the training images. `frozen_params` are the parameters of frozen networks,
    arrays of the host. `config` is written down with every checkpoint; `read_config`
    makes one that was written before, perhaps by an earlier version, comparable.
    `observer` computes what every report shows of the state; the steps of `profile` are
    traced. `guard` says when the run turns back.
    """

    objective: Objective
    settings: StepSettings
    mesh: jax.sharding.Mesh
    open_data: Callable[[int], BatchLoader]
    preview: Callable[[dict, dict], np.ndarray]
    steps: int
    workload: Workload
    checkpointing: Checkpointing
    logging: Logging
    config: dict
    posthoc: PostHocEMA | None = None
    online: OnlineCheck | None = None
    read_config: Callable[[dict], dict] = migrate
    initial: Callable[[], Initial] | None = None
    constants: Callable[[], dict] = dict
    frozen_params: dict = dataclasses.field(default_factory=dict)
    observer: Observer | None = None
    profile: Window | None = None
    guard: Guard = dataclasses.field(default_factory=Guard)

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state; allocates nothing."""
        return abstract_state(self.objective, self.settings, self.mesh)

    def fresh_state(self, initial: Initial | None = None) -> TrainState:
        """The state before the first step, laid out where it will live."""
        constants = (initial and initial.constants) or self.constants()
        state = fresh_state(self.objective, self.settings, self.mesh, constants)
        if initial is None:
            return state
        denoiser = _overlaid(state.params["denoiser"], initial.params)
        # Those of growing width forget how they began.
        begun = {name: initial.ema.get(name, initial.params) for name in state.ema}
        ema = {name: _overlaid(state.ema[name], begun[name]) for name in begun}
        params = {**state.params, "denoiser": denoiser}
        return dataclasses.replace(state, params=params, ema=ema)


def _overlaid(fresh: dict, given: dict) -> dict:
    """Fresh parameters, with copies of those that are given in their places."""
    flat: dict = traverse_util.flatten_dict(fresh)
    for path, a in traverse_util.flatten_dict(given).items():
        # A copy each: the step gives its inputs away.
        flat[path] = jax.device_put(np.array(a), flat[path].sharding)
    return traverse_util.unflatten_dict(flat)
