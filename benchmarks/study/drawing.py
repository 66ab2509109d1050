"""Drawing from several seeds' averages at once, with guidance as an argument.

A sampler of the package has its guidance compiled in. Here one program serves all
scales and intervals of a number of steps: a sweep compiles but once for each.
"""

import dataclasses
import functools
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax import backend, build
from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.evaluation.sweep import interval_ends
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import Branches, Field, Guidance, stage_ramp
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Sampler, image_keys

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

    def __call__(self, branches: Branches, stage: int) -> Field:
        """null + scale * (cond - null) in steps that begin inside the interval."""
        scale, low, high, shares = self.guiding

        def field(x: Array, t: Array, step: Array) -> Array:
            cond, null = branches.both(x, t, step)
            inside = (step > low) & (step < high)
            own = jnp.where(inside, 1 + (scale - 1) * shares[stage], 1.0)
            return null + own * (cond - null)

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
    """Draws images of a config, `batch` of each seed at a time.

    `shapes` are those of the averages by name, leaves [seeds, ...]; `constants` belong
    to the prediction.
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
        self, averages: dict[str, dict], points: list[dict], steps: int, wanted: Wanted
    ) -> np.ndarray:
        """Images uint8 [seeds, n, h, w, 3]; a point of scale, interval and ema a seed.

        The work is done in whole batches.
        """
        weights, which = tuple(averages.values()), self._which(points)
        guiding = self._guiding(points)
        program, parts = self.program(steps), []
        count = len(wanted.labels)
        for start in range(0, count, self.batch):
            index = start + np.arange(self.batch)
            labels = wanted.labels[index % count].astype(np.int32)
            seed = np.uint32(wanted.seed)
            rows = index.astype(np.uint32), labels, seed
            parts.append(program(weights, which, guiding, *rows))
        images = np.concatenate([np.asarray(part) for part in parts], 1)
        return to_uint8(images[:, :count])

    def program(self, steps: int) -> jax.stages.Compiled:
        """The compiled program of that many steps, built when first asked for."""
        if steps in self._programs:
            return self._programs[steps]
        with self._lock:
            if steps not in self._programs:
                self._programs[steps] = self._compiled(steps)
            return self._programs[steps]

    def _compiled(self, steps: int) -> jax.stages.Compiled:
        first = {"scale": 1, "interval": "all", "ema": next(iter(self.shapes))}
        points, index = [first] * self.seeds, np.arange(self.batch, dtype=np.uint32)
        rows = index, index.astype(np.int32), np.uint32(0)
        together = jax.vmap(
            functools.partial(self._draw, steps), in_axes=(0, 0, 0, None, None, None)
        )
        lowered = jax.jit(together).lower(
            tuple(self.shapes.values()),
            self._which(points),
            self._guiding(points),
            *rows,
        )
        return lowered.compile(compiler_options=backend.loop_options())

    @functools.cached_property
    def _programs(self) -> dict:
        return {}

    @functools.cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    def _which(self, points: list[dict]) -> Array:
        """The number of each seed's average."""
        names = list(self.shapes)
        return jnp.asarray([names.index(str(point["ema"])) for point in points])

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
        return Guiding(*(jnp.asarray(column, jnp.float32) for column in columns))

    def _draw(self, steps: int, averages, which, guiding, index, labels, seed) -> Array:
        """One seed's images float32 [batch, h, w, 3]."""
        params = jax.tree.map(lambda *a: jnp.stack(a)[which], *averages)
        config, size = self.config, self.config.data.image_size
        network, conditioner = build.network(config), config.conditioner
        sampler = Sampler(
            stages=build.stages(config),
            prediction=config.prediction,
            guidance=TracedGuidance(guiding),
            solver=config.sampling.solver,
            grid=Grid(steps=steps),
        )
        cond = conditioner.encode({}, {"label": labels})
        null = conditioner.null({}, cond, config.model)
        frozen_params = {CONSTANTS: self.constants}
        net = Net(network, network.cast_for_inference(params), frozen_params)
        keys = image_keys(seed, index)
        shape = (size, size, config.model.channels)
        return sampler(net, keys, cond, null, shape).images
