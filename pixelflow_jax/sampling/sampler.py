"""From noise to images: guidance and solver on every stage, in one program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.flow.guidance import Branches, Field, Guidance, Pair
from pixelflow_jax.flow.path import Stage, block_noise, image_noise, upsample2
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.solver import Solution, Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.interface import Condition, Inputs, Output

Apply = Callable[..., Output]


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


class Model(NamedTuple):
    """A network with its parameters."""

    apply: Apply
    params: dict
    precompute: Callable[..., object] | None = None  # see `models.interface.Network`


def sample(
    apply: Apply,
    params: dict,
    keys: Array,
    cond: Condition,
    null: Condition,
    *,
    size: tuple[int, int, int],
    stages: tuple[Stage, ...],
    prediction: Prediction,
    guidance: Guidance,
    solver: Solver,
    grid: Grid,
    precompute: Callable[..., object] | None = None,
    guide: Model | None = None,
    doubled: bool = False,
    record: bool = False,
) -> Samples:
    """Draw one image of `size` (height, width, channels) for every key of `keys` [b].

    Image i depends on `keys[i]` and its condition alone, not on batch or devices. Made
    to be traced once: everything but parameters, `keys`, `cond` and `null` is static.
    `precompute`: the network's (`models.interface.Network`); `guide` is the weaker model of
    `AutoGuidance`; `doubled`: see `follow`.
    """
    height, width, channels = size

    def white(index: int, draw: Array | int, twins: bool = False) -> Array:
        # Stage 0 of a cascade draws what a path of a single stage draws.
        number = (draw if index == 0 else draw + index * 2**24) + twins * 2**31
        own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        return image_noise(own, *stages[index].size(height, width), channels)

    def fresh(index: int) -> Array:
        if index == 0:
            return white(0, 0)
        noise = white(index, 0)
        if doubled:
            noise = jnp.concatenate([noise, white(index, 0, twins=True)])
        return block_noise(noise, stages[index].gamma)

    def branches(stage: Stage) -> Branches:
        times = solver.evaluated(grid.times(stages.index(stage)))
        shape = (len(keys), *stage.size(height, width), channels)
        known = None if times is None else Known(times, shape)
        given = (apply, params, cond, null, stage, prediction, guide)
        return denoise(
            *given,
            timestep_scale=grid.timestep_scale,
            precompute=precompute,
            known=known,
        )

    return follow(
        branches,
        Noise(fresh, lambda index, step: white(index, step + 1)),
        stages=stages,
        prediction=prediction,
        guidance=guidance,
        solver=solver,
        grid=grid,
        doubled=doubled,
        record=record,
    )


def follow(
    branches: Callable[[Stage], Branches],
    noise: Noise,
    *,
    stages: tuple[Stage, ...],
    prediction: Prediction,
    guidance: Guidance,
    solver: Solver,
    grid: Grid,
    doubled: bool = False,
    record: bool = False,
) -> Samples:
    """Integrate the guided field of each stage in turn, from noise to images.

    With `doubled` every image travels with a twin that has noise of its own from the
    second stage on and moves at the image's velocity: it changes nothing but the error
    estimate of a solver with one step size for the whole batch. `noise` then gives 2 b
    images for all stages but the first. The official Dopri5 sampler does this.
    """
    problems = [*grid.problems(len(stages)), *guidance.problems(len(stages))]
    if problems:
        raise ValueError("; ".join(problems))
    x, ends, clean = None, [], []
    for index, stage in enumerate(stages):
        fresh = noise.fresh(index)
        if doubled and index == 0:
            fresh = jnp.concatenate([fresh, fresh])
        fields = branches(stage)
        solution = solver(
            guidance(_with_twins(fields) if doubled else fields, index),
            stage.begin(x, fresh),
            grid.times(index),
            noise=lambda step, index=index: noise.step(index, step),
            record=record,
        )
        x = solution.x
        ends.append(x[: len(x) // 2] if doubled else x)
        if record:
            clean.append(
                _implied(solution, grid.times(index)[:-1], stage, len(ends[0]))
            )
    return Samples(ends[-1], tuple(ends), jnp.concatenate(clean) if record else None)


def _with_twins(branches: Branches) -> Branches:
    """The fields of the first half of a batch, for both halves."""

    def twice(field: Field | Pair) -> Field | Pair:
        def both(x: Array, t: Array, step: Array) -> Array | tuple[Array, Array]:
            first = field(x[: len(x) // 2], t, step)
            return jax.tree.map(lambda v: jnp.concatenate([v, v]), first)

        return both

    return Branches(*(field and twice(field) for field in branches))


def _implied(solution: Solution, times: np.ndarray, stage: Stage, b: int) -> Array:
    """Clean images [steps, b, h, w, c] that a stage's states and velocities imply."""

    def at(t: Array, x: Array, v: Array) -> Array:
        clean = stage.clean(x - t * v, x + (1 - t) * v)
        for _ in range(stage.log2_downscale):
            clean = upsample2(clean)
        return clean

    states, velocities = solution.states[:, :b], solution.velocities[:, :b]
    return jax.lax.map(lambda a: at(*a), (jnp.asarray(times), states, velocities))


class Known(NamedTuple):
    """All times at which a field is asked, rising, and the shape of its images."""

    times: np.ndarray
    shape: tuple[int, ...]


# What is made ahead of the steps may take as many bytes as this; it matters where a
# batch is too small to hide reading the weights for it in every step.
PRECOMPUTE_BYTES = 2**28


def denoise(
    apply: Apply,
    params: dict,
    cond: Condition,
    null: Condition,
    stage: Stage,
    prediction: Prediction,
    guide: Model | None = None,
    timestep_scale: float = 1.0,
    precompute: Callable[..., object] | None = None,
    known: Known | None = None,
) -> Branches:
    """The velocity fields of a stage: conditional, with the null, and with a guide.

    The doubled batch alternates between the two halves, so that a batch that is split
    over devices stays where it is. The network is told the timestep of `timestep_scale` * t. Where
    all times are `known`, what the network makes of them is made ahead, at once.
    """

    def timesteps(t: Array, count: int) -> Array:
        return jnp.broadcast_to(stage.timestep(timestep_scale * t), (count,))

    def velocity(model: Model, cond: Condition, count: int) -> Field:
        table = known and _precomputed(model, cond, known, timesteps, count)

        def field(x: Array, t: Array, step: Array) -> Array:
            timestep = timesteps(t, len(x))
            made = {"pre": table(t)} if table else {}
            inputs = Inputs(x, timestep, cond)
            out = model.apply(model.params, (inputs,), **made).pred[0]
            return prediction.velocity(out, x, t, stage)

        return field

    model = Model(apply, params, precompute)
    count = len(jax.tree.leaves(cond)[0])
    pair = jax.tree.map(_alternate, cond, null)
    plain, doubled = velocity(model, cond, count), velocity(model, pair, 2 * count)

    def both(x: Array, t: Array, step: Array) -> tuple[Array, Array]:
        t = _alternate(t, t) if jnp.ndim(t) else t
        v = doubled(_alternate(x, x), t, step)
        v = v.reshape(x.shape[0], 2, *x.shape[1:])
        return v[:, 0], v[:, 1]

    if guide is None:
        return Branches(plain, both, None)
    weak = velocity(guide, cond, count)
    return Branches(
        plain, both, lambda x, t, step: (plain(x, t, step), weak(x, t, step))
    )


def _precomputed(
    model: Model, cond: Condition, known: Known, timesteps: Callable, count: int
) -> Callable[[Array], object] | None:
    """What the model makes of time and condition, as a function of one of the times.

    None where the model does not tell them apart, or for all times it is too much.
    """
    if model.precompute is None:
        return None
    image = jax.ShapeDtypeStruct((count, *known.shape[1:]), jnp.float32)
    one = lambda t: model.precompute(
        model.params, (Inputs(image, timesteps(t, count), cond),)
    )
    times = jnp.asarray(known.times)
    shapes = jax.tree.leaves(jax.eval_shape(jax.vmap(one), times))
    if sum(a.size * a.dtype.itemsize for a in shapes) > PRECOMPUTE_BYTES:
        return None
    made = jax.vmap(one)(times)

    def at(t: Array) -> object:
        number = jnp.sum(times < t)
        return jax.tree.map(lambda a: a[number], made)

    return at


def _alternate(a: Array, b: Array) -> Array:
    """[b, ...] twice to [2 b, ...]: a0, b0, a1, b1, ..."""
    return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])


def image_keys(seed: int, indices: Array | np.ndarray) -> Array:
    """The key of each image: a function of the seed and the image's number alone."""
    root = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.asarray(indices))
