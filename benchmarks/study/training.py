"""Training of several seeds of one row side by side, in a program that rows share.

What sets the rows of a family apart is an argument of the program (`Setting`), as are
the seeds and the pictures. The step is the project's own.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.study import compiling
from benchmarks.study.configs import FULL, IMAGES, PATCH, Family
from benchmarks.study.data import Pictures, epochs
from benchmarks.study.rows import Row
from pixelflow_jax import build
from pixelflow_jax.data.transforms import normalise
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.basis import BASIS, Gram
from pixelflow_jax.losses.context import term_name
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.training.step import create_state, make_step

SEGMENT = 100  # steps a launch


class Setting(NamedTuple):
    """What a row gives its family's programs.

    `weights` [terms] are those of the family's further terms, `constants` the
    prediction's: for all ranks a basis of full width, of which rank 0 has no column
    that is not 0, and full rank the identity.
    """

    weights: np.ndarray
    constants: dict[str, np.ndarray]

    @classmethod
    def of(cls, row: Row, family: Family, directions: np.ndarray) -> "Setting":
        """A row's numbers; `directions` [FULL, FULL] are the data's, rising."""
        own = [row.weights.get(term_name(term), 0.0) for term in family.terms]
        weights = np.asarray(own, np.float32)
        return cls(
            weights, {BASIS: basis(row.rank, directions)} if family.ranked else {}
        )


def basis(rank: int, directions: np.ndarray) -> np.ndarray:
    """The last `rank` directions, float32 [FULL, FULL], the other columns 0."""
    if rank == FULL:
        return np.eye(FULL, dtype=np.float32)
    kept = np.arange(FULL) >= FULL - rank
    return np.where(kept, directions, 0).astype(np.float32)


def directions_of(pictures: Pictures) -> np.ndarray:
    """The directions of the patches of the first pictures, [FULL, FULL]."""
    gram = Gram(PATCH)
    for start in range(0, min(IMAGES, len(pictures.images)), 500):
        gram.add(normalise(pictures.images[start : min(start + 500, IMAGES)]))
    return gram.directions()[1]


class Trained(NamedTuple):
    """Averages by name, their leaves [seeds, ...], and how the training went.

    `losses` [seeds, segments] are means over each segment, `segment_seconds` what each
    took.
    """

    averages: dict[str, dict]
    losses: np.ndarray
    segment_seconds: list[float]


class Programs(NamedTuple):
    """The state before the first step, and `length` steps of it."""

    begin: jax.stages.Compiled
    segment: jax.stages.Compiled


@dataclasses.dataclass(frozen=True)
class Together:
    """`seeds` runs of a family that train side by side on these pictures."""

    config: Experiment
    seeds: int
    pictures: Pictures
    setting: Setting  # any of the family: its shapes count

    def averages(self) -> dict[str, dict]:
        """The averages as shapes, leaves [seeds, ...]."""
        return self._states().ema

    def compile(self) -> Programs:
        """The programs that all rows of the family run."""
        seeds, order = (
            np.arange(self.seeds, dtype=np.uint32),
            self._order(range(self.seeds)),
        )
        options = compiling.options(convolutions=bool(self._fixed["frozen"]))
        begin = jax.jit(self._begin).lower(seeds, self.setting.constants)
        segment = jax.jit(self._segment, donate_argnums=0).lower(
            self._states(),
            order[:, : self.length],
            seeds,
            self.setting.weights,
            self._fixed,
        )
        return Programs(
            *(one.compile(compiler_options=options) for one in (begin, segment))
        )

    def train(
        self,
        programs: Programs,
        seeds: tuple[int, ...],
        setting: Setting,
        turn: Callable,
    ) -> Trained:
        """Train all seeds to the end; `turn()` is entered for every launch."""
        own, order = np.asarray(seeds, np.uint32), self._order(seeds)
        losses, seconds = [], []
        states = programs.begin(own, setting.constants)
        for start in range(0, self.config.steps - self.length + 1, self.length):
            rows = order[:, start : start + self.length]
            with turn():
                began = time.perf_counter()
                states, loss = programs.segment(
                    states, rows, own, setting.weights, self._fixed
                )
                losses.append(np.asarray(loss))
                seconds.append(time.perf_counter() - began)
        return Trained(states.ema, np.stack(losses, 1), seconds)

    @property
    def length(self) -> int:
        """Steps a launch: all are as long, and no longer than a segment."""
        steps = self.config.steps
        return steps // -(-steps // SEGMENT)

    def _states(self) -> TrainState:
        seeds = np.arange(self.seeds, dtype=np.uint32)
        return jax.eval_shape(self._begin, seeds, self.setting.constants)

    def _begin(self, seeds: Array, constants: dict) -> TrainState:
        """The states before the first step, leaves [seeds, ...]."""
        settings = build.step_settings(self.config)
        objective = build.objective(self.config)

        def begin(seed: Array) -> TrainState:
            params = objective.init(jax.random.key(seed), constants)
            return create_state(params, settings, objective.carry(constants))

        return jax.vmap(begin)(seeds)

    def _order(self, seeds) -> np.ndarray:
        """The pictures of each step, int32 [seeds, steps, batch]."""
        config, count = self.config, len(self.pictures.labels)
        return np.stack(
            [epochs(count, config.steps, config.batch_size, seed) for seed in seeds]
        )

    @functools.cached_property
    def _fixed(self) -> dict:
        """What is the same for all rows: pictures, labels, frozen networks."""
        frozen = build.objective(self.config).load_frozen()
        return jax.device_put(
            {
                "images": self.pictures.images,
                "labels": self.pictures.labels,
                "frozen": frozen,
            }
        )

    def _segment(self, states, order, seeds, weights, fixed: dict):
        """`length` steps of all seeds, [seeds, length, batch] of pictures."""
        settings = build.step_settings(self.config)
        objective = weighted(build.objective(self.config), weights)

        def one(state: TrainState, order: Array, seed: Array):
            step = make_step(objective, dataclasses.replace(settings, seed=seed))

            def advance(state: TrainState, rows: Array):
                # As `normalise` does on the host.
                image = fixed["images"][rows].astype(jnp.float32) / 127.5 - 1
                batch = {"image": image, "label": fixed["labels"][rows]}
                state, metrics = step(state, batch, fixed["frozen"])
                return state, metrics["loss"]

            state, losses = jax.lax.scan(advance, state, order)
            return state, losses.mean()

        return jax.vmap(one)(states, order, seeds)


def weighted(objective: Objective, weights: Array) -> Objective:
    """The objective with other weights of its terms, but for the first, the flow's."""
    flow, *others = objective.terms.terms
    own = [
        dataclasses.replace(term, weight=weights[i])  # type: ignore
        for i, term in enumerate(others)
    ]
    terms = dataclasses.replace(objective.terms, terms=[flow, *own])
    return dataclasses.replace(objective, terms=terms)
