"""From noise to images: guidance and solver on every stage, in one program."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Key

from pixelflow_jax.flow.guidance import Branches, Guidance
from pixelflow_jax.flow.path import Stage, block_noise, image_noise, upsample2
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.solver import Solution, Solver, Steps
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.interface import Condition
from pixelflow_jax.sampling.fields import Net, StageView, StaticTimes, stage_fields


class Noise(NamedTuple):
    """Where the randomness of sampling comes from; all at the size of the stage.

    `fresh(stage)` begins a stage: standard normal in the first, correlated inside
    blocks in the others. `step(stage, i)` serves step i of a stochastic solver.
    """

    fresh: Callable[[int], Array]
    step: Callable[[int, Array], Array]


class Samples(NamedTuple):
    """Images [b, h, w, c], nominally in [-1, 1], and the way there if recorded.

    `stages` holds the state at the end of every stage, at its own size. `clean`
    [steps, b, h, w, c] are the clean images implied by every step's velocity, enlarged
    to full size.
    """

    images: Array
    stages: tuple[Array, ...] = ()
    clean: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Draws images from noise, with any network of that path and prediction.

    On every stage of the path `guidance` makes one field of the network's, and `solver`
    follows it over the times of `grid`; the next stage begins where it ended, enlarged
    and with fresh noise. All of it is static while a program is traced.
    """

    stages: tuple[Stage, ...]
    prediction: Prediction
    guidance: Guidance
    solver: Solver
    grid: Grid

    def __call__(
        self,
        net: Net,
        keys: Key[Array, " b"],
        cond: Condition,
        null: Condition,
        size: tuple[int, int, int],
        *,
        guide: Net | None = None,
        record: bool = False,
    ) -> Samples:
        """Draw one image of `size` (height, width, channels) for every key [b].

        Image i depends on `keys[i]` and its condition alone, not on batch or devices.
        Made to be traced once: everything but parameters, keys and conditions is
        static. `guide` is the weaker model of `AutoGuidance`.
        """
        height, width, channels = size

        def fields(index: int) -> Branches:
            shape = (len(keys), *self.stages[index].size(height, width), channels)
            return self.fields(index, net, cond, null, guide=guide, shape=shape)

        return self.follow(fields, keyed_noise(keys, size, self.stages), record=record)

    def fields(
        self,
        index: int,
        net: Net,
        cond: Condition,
        null: Condition,
        *,
        guide: Net | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Branches:
        """The fields of stage number `index`, for guidance to combine.

        Where the `shape` [b, h, w, c] of the stage's images is given and the solver's
        times are static, what depends on times and conditions alone is precomputed.
        """
        times = self.solver.static_times(self.grid.times(index))
        static = None if times is None or shape is None else StaticTimes(times, shape)
        view = StageView(
            stage=self.stages[index],
            prediction=self.prediction.for_sampling(),
            timestep_scale=self.grid.timestep_scale,
            static_times=static,
        )
        return stage_fields(view, net, cond, null, guide)

    def follow(
        self, fields: Callable[[int], Branches], noise: Noise, *, record: bool = False
    ) -> Samples:
        """Integrate the guided field of each stage in turn, from noise to images.

        `fields(index)` are those of a stage. Raises ValueError for settings that do not
        fit the path.
        """
        if problems := self.problems():
            raise ValueError("; ".join(problems))
        x, ends, clean = None, [], []
        for index, stage in enumerate(self.stages):
            fresh, times = noise.fresh(index), self.grid.times(index)
            solution = self.solver(
                self.guidance(fields(index), index),
                stage.begin(x, fresh),
                Steps(times, lambda i, index=index: noise.step(index, i), record),
            )
            x = solution.x
            ends.append(x)
            if record:
                clean.append(_implied_clean(solution, times[:-1], stage))
        return Samples(ends[-1], tuple(ends), jnp.concatenate(clean) if clean else None)

    def problems(self) -> list[str]:
        """What is wrong with its parts, for the stages of the path."""
        return [
            *self.grid.problems(len(self.stages)),
            *self.guidance.problems(len(self.stages)),
            *self.prediction.problems(self.stages),
            *self.solver.problems(),
        ]


def _implied_clean(solution: Solution, times: np.ndarray, stage: Stage) -> Array:
    """Clean images [steps, b, h, w, c] that a stage's states and velocities imply."""

    def at(t: Array, x: Array, v: Array) -> Array:
        clean = stage.clean(x - t * v, x + (1 - t) * v)
        for _ in range(stage.log2_downscale):
            clean = upsample2(clean)
        return clean

    recorded = (jnp.asarray(times), solution.states, solution.velocities)
    return jax.lax.map(lambda a: at(*a), recorded)


def keyed_noise(
    keys: Key[Array, " b"], size: tuple[int, int, int], stages: tuple[Stage, ...]
) -> Noise:
    """Noise for images of `size`, of which image i's depends on `keys[i]` alone."""
    height, width, channels = size

    def white(index: int, draw: Array | int) -> Array:
        # Stage 0 of a cascade draws what a path of a single stage draws.
        number = draw if index == 0 else draw + index * 2**24
        own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        return image_noise(own, *stages[index].size(height, width), channels)

    def fresh(index: int) -> Array:
        noise = white(index, 0)
        return noise if index == 0 else block_noise(noise, stages[index].gamma)

    return Noise(fresh, lambda index, step: white(index, step + 1))


def image_keys(seed: int | Array, indices: Array | np.ndarray) -> Key[Array, " b"]:
    """The key of each image: a function of the seed and the image's number alone.

    `seed` is that of all images, or an array [b] with each one's own.
    """
    own = 0 if jnp.ndim(seed) else None
    make = lambda seed, index: jax.random.fold_in(jax.random.key(seed), index)
    return jax.vmap(make, (own, 0))(seed, jnp.asarray(indices))
