"""A metric in the course of training, and the best checkpoint by it.

Training knows no evaluation: what is measured is handed in as an `OnlineCheck`.
"""

import pathlib
from typing import Protocol

from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.state import TrainState

FOLDER = "best"
VALUE = "online"  # its place in a checkpoint's position in the data


class OnlineCheck(Protocol):
    """Measures an average of the denoiser; the lower, the better."""

    @property
    def every(self) -> int:
        """How many steps lie between two measurements."""
        ...

    def __call__(self, params: dict, frozen_params: dict) -> dict[str, float]:
        """Values by name, the first of which decides; all processes call it."""
        ...


class BestCheckpoint:
    """The best state so far, in WORKDIR/best, which can be used like a run's workdir.

    One at a time; it appears whole or not at all, as every checkpoint does.
    """

    def __init__(self, workdir: pathlib.Path):
        folder = workdir / FOLDER / "checkpoints"
        self._checkpointer = Checkpointer(folder, Checkpointing(keep=1))
        self._kept: dict[str, float] = {}  # by the metric's name
        if (latest := self._checkpointer.latest()) is not None:
            self._kept = self._checkpointer.position(latest).get(VALUE, {})

    @property
    def lowest(self) -> float:
        """The lowest value so far; infinity before the first."""
        return min(self._kept.values(), default=float("inf"))

    def offer(
        self,
        step: int,
        values: dict[str, float],
        state: TrainState,
        position: dict,
        config: dict,
    ) -> bool:
        """Keep a state whose first value is the lowest so far; says whether it is.

        Values of another name, as of a run that went on with another metric, compare
        with none.
        """
        name, value = next(iter(values.items()))
        if not value < self._kept.get(name, float("inf")):
            return False
        self._kept = {name: value}
        self._checkpointer.forget(step)
        self._checkpointer.save(step, state, position | {VALUE: {name: value}}, config)
        return True

    def close(self) -> None:
        """Finish writing."""
        self._checkpointer.close()
