"""What is looked at besides the loss: sizes of parameters, of updates, of averages.

All of it is computed from the state as a step left it, by a program of its own that
runs at every report: steps neither wait for it nor hold more memory.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax import Array

from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.training.state import TrainState

STACK = re.compile(r"(?:^|.*?/)blocks(?=/)")  # parameters below have a layer axis first


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Observer:
    """Norms and ratios of a state, for a run of `steps` with that optimizer.

    "param_norm" is the norm of the denoiser's parameters; "update_ratio" that of the
    last step's update, as a part of it, for the whole, each layer of a stack and each
    part beside; "ema_distance" the norm of an average's difference from the parameters,
    as a part of theirs.
    """

    optimizer: AdamW
    steps: int

    def __call__(self, state: TrainState) -> dict[str, Array]:
        """The figures, float32 scalars by their names; a pure function.

        The state is one after at least one step.
        """
        params = state.params["denoiser"]
        update = self.optimizer.last_update(state.opt_state, state.params, self.steps)
        norm = optax.tree.norm(params)
        found = {"param_norm": norm}
        found["update_ratio"] = optax.tree.norm(update["denoiser"]) / norm
        moved, sizes = _squares(update["denoiser"]), _squares(params)
        for group, square in moved.items():
            tiny = jnp.finfo(jnp.float32).tiny  # parameters may all be zero
            ratio = jnp.sqrt(square / jnp.maximum(sizes[group], tiny))
            found |= _named(f"update_ratio/{group}", ratio)
        for name, average in state.ema.items():
            distance = optax.tree.norm(jax.tree.map(jnp.subtract, average, params))
            found[f"ema_distance/{name}"] = distance / norm
        return found


def _squares(tree: dict) -> dict[str, Array]:
    """The sum of squares of each stack, [layers], and of each part beside, []."""
    sums: dict[str, Array] = {}
    flat: dict = traverse_util.flatten_dict(tree, sep="/")
    for path, a in flat.items():
        stack = STACK.match(path)
        group = stack[0] if stack else path.split("/")[0]
        square = jnp.sum(jnp.square(a), axis=tuple(range(bool(stack), a.ndim)))
        sums[group] = sums.get(group, 0) + square
    return sums


def _named(name: str, values: Array) -> dict[str, Array]:
    """A number under its name, or those of layers under names with their numbers."""
    if values.ndim == 0:
        return {name: values}
    return {f"{name}/{layer:02d}": value for layer, value in enumerate(values)}
