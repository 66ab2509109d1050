"""Drawing from several seeds' averages at once, with guidance as an argument.

A sampler of the package has its guidance compiled in. Here one program serves every
point of a sweep, for all rows of a family: scale, interval, average, steps and their
times, and the prediction's constants are its arguments.
"""

import dataclasses
import functools
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.study import compiling
from pixelflow_jax import build
from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.evaluation.sweep import interval_ends
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import Branches, Field, Guidance, stage_ramp
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Sampler, Walks, image_keys

RAMP = "stages"  # in place of an interval: the share of guidance grows with the stage


class Guiding(NamedTuple):
    """Guidance as arrays: its scale, its open interval, each stage's share."""

    scale: Array
    low: Array
    high: Array
    shares: Array


@dataclasses.dataclass(frozen=True)
class TracedGuidance(Guidance):
    """Classifier-free guidance whose numbers are known only when the program runs."""

    guiding: Guiding
    scale: float = 1.0  # of the protocol: what is compiled in, which is nothing

    def __call__(
        self, branches: Branches, stage: int, scale: Array | None = None
    ) -> Field:
        """null + scale * (cond - null) in steps that begin inside the interval.

        A walk's own `scale` says nothing: that of `guiding` counts.
        """
        own, low, high, shares = self.guiding

        def field(x: Array, t: Array, step: Array) -> Array:
            cond, null = branches.both(x, t, step)
            inside = (step > low) & (step < high)
            factor = jnp.where(inside, 1 + (own - 1) * shares[stage], 1.0)
            return null + factor * (cond - null)

        return field

    def problems(self, num_stages: int) -> list[str]:
        """None that could be told here."""
        return []

    def active(self, t, stage: int = 0):
        """Everywhere: both halves are always computed."""
        return t == t


class Wanted(NamedTuple):
    """What to draw: labels [n], and the seed of the noise."""

    labels: np.ndarray
    seed: int


@dataclasses.dataclass(frozen=True)
class Drawer:
    """Draws images of a family's rows, `batch` of each seed at a time.

    `shapes` are those of the averages by name, leaves [seeds, ...]; `constants` are a
    prediction's of the family, of which the shapes count.
    """

    config: Experiment
    shapes: dict[str, dict]
    constants: dict
    batch: int

    @property
    def seeds(self) -> int:
        """How many seeds are drawn from at once."""
        return len(jax.tree.leaves(self.shapes)[0])

    def __call__(
        self,
        averages: dict[str, dict],
        constants: dict,
        points: list[dict],
        steps: int,
        wanted: Wanted,
    ) -> np.ndarray:
        """Images uint8 [seeds, n, h, w, 3]; a point of scale, interval and ema a seed.

        The work is done in whole batches.
        """
        fixed = (*self._point(points, steps), constants)
        program, parts = self.compile(), []
        count = len(wanted.labels)
        for start in range(0, count, self.batch):
            index = start + np.arange(self.batch)
            labels = wanted.labels[index % count].astype(np.int32)
            rows = index.astype(np.uint32), labels, np.uint32(wanted.seed)
            parts.append(program(tuple(averages.values()), *fixed, *rows))
        images = np.concatenate([np.asarray(part) for part in parts], 1)
        return to_uint8(images[:, :count])

    def compile(self) -> jax.stages.Compiled:
        """The one program, built when it is first asked for."""
        with self._lock:
            return self._program

    @functools.cached_property
    def _program(self) -> jax.stages.Compiled:
        first = {"scale": 1, "interval": "all", "ema": next(iter(self.shapes))}
        index = np.arange(self.batch, dtype=np.uint32)
        together = jax.vmap(self._draw, in_axes=(0, 0, 0, *[None] * 5))
        lowered = jax.jit(together).lower(
            tuple(self.shapes.values()),
            *self._point([first] * self.seeds, 2),
            self.constants,
            index,
            index.astype(np.int32),
            np.uint32(0),
        )
        return lowered.compile(compiler_options=compiling.options())

    @functools.cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    def _point(
        self, points: list[dict], steps: int
    ) -> tuple[np.ndarray, Guiding, Walks]:
        """The number of each seed's average, its guidance, and the steps of all."""
        names, guiding = list(self.shapes), self._guiding(points)
        which = np.asarray([names.index(str(p["ema"])) for p in points], np.int32)
        return which, guiding, self._sampler(guiding, steps).walks()

    def _guiding(self, points: list[dict]) -> Guiding:
        stages = len(self.config.path.stages())
        rows = []
        for point in points:
            text = str(point["interval"])
            ramp = text == RAMP
            low, high = interval_ends("all" if ramp else text)
            shares = stage_ramp(stages) if ramp else (1.0,) * stages
            rows.append((float(point["scale"]), low, high, shares))
        columns = zip(*rows, strict=True)
        return Guiding(*(np.asarray(column, np.float32) for column in columns))

    def _sampler(self, guiding: Guiding, steps: int) -> Sampler:
        return Sampler(
            stages=build.stages(self.config),
            prediction=self.config.prediction,
            guidance=TracedGuidance(guiding),
            solver=self.config.sampling.solver,
            grid=Grid(steps=steps),
        )

    def _draw(
        self, averages, which, guiding, walks, constants, index, labels, seed
    ) -> Array:
        """One seed's images float32 [batch, h, w, 3]."""
        params = jax.tree.map(lambda *a: jnp.stack(a)[which], *averages)
        config, size = self.config, self.config.data.image_size
        network, conditioner = build.network(config), config.conditioner
        cond = conditioner.encode({}, {"label": labels})
        null = conditioner.null({}, cond, config.model)
        frozen_params = {CONSTANTS: constants} if constants else {}
        net = Net(network, network.cast_for_inference(params), frozen_params)
        keys = image_keys(seed, index)
        shape = (size, size, config.model.channels)
        # Of the steps' number and times nothing is left in the program.
        sampler = self._sampler(guiding, steps=2)
        return sampler(net, keys, cond, null, shape, walks=walks).images
