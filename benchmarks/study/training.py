"""Training of several seeds of one config side by side, in one program.

Seeds in one program are compiled once, and launched together. The step is the
project's own.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.study.data import Pictures, epochs
from pixelflow_jax import backend, build
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.training.step import create_state, make_step

SEGMENT = 100  # steps a launch


class Trained(NamedTuple):
    """Averages by name, their leaves [seeds, ...], and how the training went.

    `losses` [seeds, segments] are means over each segment, `segment_seconds` what each
    took.
    """

    averages: dict[str, dict]
    losses: np.ndarray
    segment_seconds: list[float]


@dataclasses.dataclass(frozen=True)
class Together:
    """The seeds of a config that train in one program, on these pictures."""

    config: Experiment
    seeds: tuple[int, ...]
    pictures: Pictures

    @functools.cached_property
    def constants(self) -> dict:
        """Those of the prediction."""
        return self.config.prediction.constants(_batches(self.config, self.pictures))

    def averages(self) -> dict[str, dict]:
        """The averages as shapes, leaves [seeds, ...]."""
        return jax.eval_shape(self._begin, self._seeds()).ema

    def compile(self) -> jax.stages.Compiled:
        """The program of a segment."""
        seeds = self._seeds()
        states = jax.eval_shape(self._begin, seeds)
        order = self._order(0)
        lowered = self._segment().lower(states, order, seeds)
        return lowered.compile(compiler_options=backend.loop_options())

    def train(self, program: jax.stages.Compiled, turn: Callable) -> Trained:
        """Train all seeds to the end; `turn()` is entered for every launch."""
        seeds = self._seeds()
        states = jax.jit(self._begin)(seeds)
        losses, seconds = [], []
        for start in range(0, self.config.steps - self.length + 1, self.length):
            order = self._order(start)
            with turn():
                began = time.perf_counter()
                states, loss = program(states, order, seeds)
                losses.append(np.asarray(loss))
                seconds.append(time.perf_counter() - began)
        return Trained(states.ema, np.stack(losses, 1), seconds)

    @property
    def length(self) -> int:
        """Steps a launch."""
        return min(SEGMENT, self.config.steps)

    def _seeds(self) -> Array:
        return jnp.asarray(self.seeds, jnp.uint32)

    def _begin(self, seeds: Array) -> TrainState:
        """The states before the first step, leaves [seeds, ...]."""
        settings = build.step_settings(self.config)
        objective = build.objective(self.config)

        def begin(seed: Array) -> TrainState:
            params = objective.init(jax.random.key(seed), self.constants)
            return create_state(params, settings, objective.carry(self.constants))

        return jax.vmap(begin)(seeds)

    def _order(self, start: int) -> Array:
        """The pictures of each step of a segment, [seeds, length, batch]."""
        config, count = self.config, len(self.pictures.labels)
        orders = [
            epochs(count, config.steps, config.batch_size, seed) for seed in self.seeds
        ]
        return jnp.asarray(np.stack(orders)[:, start : start + self.length])

    def _segment(self):
        """`length` steps of all seeds as a jitted function of states and order."""
        settings, objective = (
            build.step_settings(self.config),
            build.objective(self.config),
        )
        images = jnp.asarray(self.pictures.signed())
        labels = jnp.asarray(self.pictures.labels)

        def one(state: TrainState, order: Array, seed: Array):
            step = make_step(objective, dataclasses.replace(settings, seed=seed))

            def advance(state: TrainState, rows: Array):
                batch = {"image": images[rows], "label": labels[rows]}
                state, metrics = step(state, batch, {})
                return state, metrics["loss"]

            state, losses = jax.lax.scan(advance, state, order)
            return state, losses.mean()

        return jax.jit(jax.vmap(one), donate_argnums=0)


def _batches(config: Experiment, pictures: Pictures) -> Iterator[np.ndarray]:
    """The training pictures in batches, from which constants are computed."""
    images = pictures.signed()
    while True:
        for start in range(0, len(images), config.batch_size):
            yield images[start : start + config.batch_size]
