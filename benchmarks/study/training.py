"""Training of several seeds of one config side by side, in one program.

A small network leaves a large GPU idle: three seeds in one program cost little more than
one, and are compiled once. The step is the project's own.
"""

import dataclasses
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
    constants: dict
    losses: np.ndarray
    segment_seconds: list[float]


@dataclasses.dataclass(frozen=True)
class Together:
    """The seeds of a config that train in one program."""

    config: Experiment
    seeds: tuple[int, ...]

    def train(self, pictures: Pictures, turn: Callable) -> Trained:
        """Train all seeds to the end; `turn()` is entered for every launch."""
        config, images = self.config, jnp.asarray(pictures.signed())
        labels = jnp.asarray(pictures.labels)
        constants = config.prediction.constants(_batches(config, pictures))
        objective = build.objective(config)
        seeds = jnp.asarray(self.seeds, jnp.uint32)
        states = self._begin(objective, constants, seeds)
        length = min(SEGMENT, config.steps)
        run = self._segment(objective, images, labels)
        program = run.lower(states, self._order(len(images), 0, length), seeds)
        compiled = program.compile(compiler_options=backend.loop_options())
        losses, seconds = [], []
        for start in range(0, config.steps - length + 1, length):
            order = self._order(len(images), start, length)
            with turn():
                began = time.perf_counter()
                states, loss = compiled(states, order, seeds)
                losses.append(np.asarray(loss))
                seconds.append(time.perf_counter() - began)
        return Trained(states.ema, constants, np.stack(losses, 1), seconds)

    def _begin(self, objective, constants: dict, seeds: Array) -> TrainState:
        """The states before the first step, leaves [seeds, ...]."""
        settings = build.step_settings(self.config)

        def begin(seed: Array) -> TrainState:
            params = objective.init(jax.random.key(seed), constants)
            return create_state(params, settings, objective.carry(constants))

        return jax.jit(jax.vmap(begin))(seeds)

    def _order(self, count: int, start: int, length: int) -> Array:
        """The pictures of each step and seed, [seeds, length, batch]."""
        config, end = self.config, start + length
        orders = [
            epochs(count, config.steps, config.batch_size, seed)[start:end]
            for seed in self.seeds
        ]
        return jnp.asarray(np.stack(orders))

    def _segment(self, objective, images: Array, labels: Array):
        """`length` steps of all seeds as a jitted function of states and order."""
        settings = build.step_settings(self.config)

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
