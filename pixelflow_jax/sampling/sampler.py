"""From noise to images: guidance and solver on every stage, in one program."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Key

from pixelflow_jax.flow.guidance import Branches, Field, Guidance, runs
from pixelflow_jax.flow.path import Stage, block_noise, image_noise, upsample2
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.solver import FixedSteps, Solution, Solver, Steps
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.flow.walk import Walk, ends, walk, watch
from pixelflow_jax.flow.walk import follow as follow_walk
from pixelflow_jax.models.interface import Condition
from pixelflow_jax.sampling.fields import Net, StageView, StaticTimes, stage_fields

Walks = tuple[Walk, ...]  # one a stage
# Fields of guidance that walks hold, as a scale and as bounds of runs.
DECIDED = ("scale", "low", "high", "interval", "interval_time")


class Noise(NamedTuple):
    """Where the randomness of sampling comes from; all at the size of the stage.

    `fresh(stage)` begins a stage: standard normal in the first, correlated inside
    blocks in the others. `step(stage, i)` serves step i of a stochastic solver.
    """

    fresh: Callable[[int], Array]
    step: Callable[[int, Array], Array]

    def of_stage(self, stage: int) -> Callable[[Array], Array]:
        """`step` of one stage; only stochastic solvers ever ask for it."""
        return lambda i: self.step(stage, i)


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
        walks: Walks = (),
    ) -> Samples:
        """Draw one image of `size` (height, width, channels) for every key [b].

        Image i depends on `keys[i]` and its condition alone, not on batch or devices.
        Made to be traced once: everything but parameters, keys, conditions and `walks`
        is static. `guide` is the weaker model of `AutoGuidance`; `walks` are what the
        method of that name gives for settings of the same `program`.
        """
        height, width, channels = size

        def fields(index: int) -> Branches:
            shape = (len(keys), *self.stages[index].size(height, width), channels)
            times = walks[index].times if walks else None
            return self.fields(
                index, net, cond, null, guide=guide, shape=shape, times=times
            )

        noise = keyed_noise(keys, size, self.stages)
        return self.follow(fields, noise, record=record, walks=walks)

    def walks(self) -> Walks:
        """The evaluations of each stage as arguments of a program.

        Empty where they are found on the way, by a solver of adaptive steps.
        """
        solver = self.solver
        if not _is_fixed(solver):
            return ()
        scale = self.guidance.scale_of
        return tuple(
            walk(solver, self.grid.times(index), self._blank_field(index), scale(index))
            for index in range(len(self.stages))
        )

    def ends(self) -> tuple[list[int], ...]:
        """How many evaluations are behind each step of each stage, at its end.

        Of a solver of adaptive steps a stage is one step.
        """
        solver, stages = self.solver, range(len(self.stages))
        if not _is_fixed(solver):
            return tuple([1] for _ in stages)
        return tuple(ends(solver, self.grid.times(index)) for index in stages)

    def program(self) -> str:
        """What of its settings a program with walks is compiled for, written out.

        The solver, and which runs of evaluations are guided on each stage; neither the
        number of steps nor their times, nor the scale.
        """
        guided = []
        for index in range(len(self.stages) if _is_fixed(self.solver) else 0):
            field = self._blank_field(index)
            parts = self._runs(field, index)
            inside = [own is getattr(field, "inside", None) for _, own in parts]
            guided.append((self.guidance.scale_of(index) != 1, *inside))
        fixed = {name: 0.5 for name in DECIDED if hasattr(self.guidance, name)}
        guidance: Any = self.guidance
        rest = {**vars(guidance), **fixed} if guided else vars(guidance)
        grid = self.grid.timestep_scale if guided else self.grid
        parts = (type(guidance).__name__, rest, guided, self.solver, grid)
        return repr((self.stages, self.prediction, *parts))

    def _blank_field(self, index: int) -> Field:
        """The guided field of a stage, to see how it is cut; never evaluated."""

        def never(*_: Any) -> Any:
            raise AssertionError("this field is not to be evaluated")

        return self.guidance(Branches(never, never, never), index)

    def _runs(self, field: Field, index: int) -> list[tuple[slice, Field]]:
        """The evaluations of a stage, cut where they are guided otherwise."""
        solver: Any = self.solver
        t, step, _ = solver.evaluations(self.grid.times(index))
        return runs(field, t, step)

    def fields(
        self,
        index: int,
        net: Net,
        cond: Condition,
        null: Condition,
        *,
        guide: Net | None = None,
        shape: tuple[int, ...] | None = None,
        times: Array | np.ndarray | None = None,
    ) -> Branches:
        """The fields of stage number `index`, for guidance to combine.

        Where the `shape` [b, h, w, c] of the stage's images is given and the solver's
        times are static, or given as `times`, what depends on times and conditions
        alone is precomputed.
        """
        if times is None:
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
        self,
        fields: Callable[[int], Branches],
        noise: Noise,
        *,
        record: bool = False,
        walks: Walks = (),
    ) -> Samples:
        """Integrate the guided field of each stage in turn, from noise to images.

        `fields(index)` are those of a stage. With `walks` the steps are theirs, and
        nothing is recorded. Raises ValueError for settings that do not fit the path.
        """
        if problems := self.problems():
            raise ValueError("; ".join(problems))
        x, ends, clean = None, [], []
        for index, stage in enumerate(self.stages):
            x = stage.begin(x, noise.fresh(index))
            if walks:
                own = self.fields_of_runs(fields(index), index, walks[index])
                solver: Any = self.solver
                carry = solver.start(x)
                carry = follow_walk(
                    solver, own, carry, walks[index], noise.of_stage(index)
                )
                x = solver.end(carry)
            else:
                times = self.grid.times(index)
                solution = self.solver(
                    self.guidance(fields(index), index),
                    x,
                    Steps(times, noise.of_stage(index), record),
                )
                x = solution.x
                if record:
                    clean.append(_implied_clean(solution, times[:-1], stage))
            ends.append(x)
        return Samples(ends[-1], tuple(ends), jnp.concatenate(clean) if clean else None)

    def advance(
        self, index: int, branches: Branches, carry: Any, own: Walk | None, noise: Noise
    ) -> tuple[Any, Array, Array]:
        """Go on in stage number `index`, as far as its walk leads.

        Gives what the solver remembers, the state, and the clean images seen on the
        way, at full size. Without a walk it goes to the stage's end from the state
        `carry`, which is what is seen.
        """
        stage, step = self.stages[index], noise.of_stage(index)
        if own is None:
            steps = Steps(self.grid.times(index), step)
            x = self.solver(self.guidance(branches, index), carry, steps).x
            return x, x, _enlarged(x, stage)
        solver: Any = self.solver
        fields = self.fields_of_runs(branches, index, own)
        carry, seen = watch(solver, fields, carry, own, step)
        return carry, solver.end(carry), _clean_at(*seen, stage)

    def start(self, index: int, previous: Array | None, noise: Noise) -> Any:
        """What the solver remembers where stage number `index` begins."""
        x = self.stages[index].begin(previous, noise.fresh(index))
        return self.solver.start(x) if _is_fixed(self.solver) else x

    def fields_of_runs(self, branches: Branches, index: int, own: Walk) -> list[Field]:
        """The field of each run of a stage's evaluations, by the walk's scale."""
        field = self.guidance(branches, index, scale=jnp.asarray(own.scale))
        return [field for _, field in self._runs(field, index)]

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

    recorded = (jnp.asarray(times), solution.states, solution.velocities)
    at = lambda t, x, v: _clean_at(x, t, v, stage)
    return jax.lax.map(lambda a: at(*a), recorded)


def _clean_at(x: Array, t: Array, v: Array, stage: Stage) -> Array:
    """The clean images that velocities `v` at time `t` imply, at full size."""
    return _enlarged(stage.clean(x - t * v, x + (1 - t) * v), stage)


def _enlarged(x: Array, stage: Stage) -> Array:
    for _ in range(stage.log2_downscale):
        x = upsample2(x)
    return x


def _is_fixed(solver: Solver) -> TypeGuard[FixedSteps]:
    """Whether a solver's evaluations follow from its grid."""
    return FixedSteps in type(solver).__mro__


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
