"""Training states under the names that earlier versions gave their entries."""

import dataclasses
from typing import Any

from pixelflow_jax import renamed
from pixelflow_jax.training.state import TrainState

# New names by old ones, and back, by the version that wrote the old ones.
OLD = {1: renamed.STATE}


def as_written(state: TrainState, version: int) -> TrainState:
    """A state, or its shapes, with its entries called as that version called them."""
    return _renamed(state, {new: old for old, new in OLD.get(version, {}).items()})


def as_today(state: TrainState, version: int) -> TrainState:
    """A state that `as_written` describes, with its entries called as today."""
    return _renamed(state, OLD.get(version, {}))


def _renamed(state: TrainState, names: dict[str, str]) -> TrainState:
    """With other names in the parameters, what is shaped like them, and the carry."""

    def rename(tree: Any) -> Any:
        if isinstance(tree, dict):  # its entries' names alone, not those inside
            return {names.get(name, name): inside for name, inside in tree.items()}
        if isinstance(tree, tuple):
            inside = [rename(part) for part in tree]
            return type(tree)(*inside) if type(tree) is not tuple else tuple(inside)
        return tree

    return dataclasses.replace(
        state,
        params=rename(state.params),
        opt_state=rename(state.opt_state),
        carry=rename(state.carry),
    )
