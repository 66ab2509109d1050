"""One training step: draw points, run the network, take the gradient, move."""

import dataclasses
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pixelflow_jax import sharding
from pixelflow_jax.conditioning import Conditioner, drop
from pixelflow_jax.flow.path import Stage
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.time import TimeLaw
from pixelflow_jax.models.base import Cond, DenoiserConfig, Network
from pixelflow_jax.objective import Context, Term, combine, draw_points, split_keys
from pixelflow_jax.training.state import TrainState, averaged, create

Step = Callable[[TrainState, dict], tuple[TrainState, dict[str, Array]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a step is made of; all of it is static under `jit`."""

    model: DenoiserConfig
    network: Network
    stages: tuple[Stage, ...]
    prediction: Prediction
    time: TimeLaw
    terms: list[Term]
    conditioner: Conditioner
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    seed: int
    accumulate: int = 1

    def loss(
        self, params: dict, batch: dict, keys: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Weighted loss and its terms for images [b, h, w, c] with a key each."""
        point_keys, drop_keys = split_keys(keys, 2)
        points = draw_points(point_keys, batch["image"], self.stages, self.time)
        cond = self.conditioner.encode({}, batch)
        null = self.conditioner.null(cond, self.model)
        uniform = jax.vmap(jax.random.uniform)(drop_keys)
        cond = drop(uniform, cond, null, self.conditioner.drop)
        output = self.network.apply(
            params["denoiser"],
            tuple(point.x_t for point in points),
            tuple(point.clock for point in points),
            _by_stage(cond, [len(point.t) for point in points]),
        )
        return combine(self.terms, Context(points, output, self.prediction))


def _by_stage(cond: Cond, sizes: list[int]) -> tuple[Cond, ...]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return tuple(jax.tree.map(operator.itemgetter(part), cond) for part in parts)


def make_step(recipe: Recipe) -> Step:
    """The step as a pure function of state and batch.

    The batch holds "image" [b, h, w, c] in [-1, 1] and "label" [b]. Randomness depends
    on (seed, step, index in the batch) alone: not on devices, nor on `accumulate`.
    """

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        index = jnp.arange(batch["image"].shape[0])
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        grads, metrics = _gradient(recipe, state.params, batch, keys)
        updates, opt_state = recipe.optimizer.update(
            grads, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(recipe.learning_rate(state.step), jnp.float32),
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=averaged(state.ema, params["denoiser"]),
            carry=state.carry,
        )
        return state, metrics

    return step


def _gradient(
    recipe: Recipe, params: dict, batch: dict, keys: Array
) -> tuple[dict, dict[str, Array]]:
    """Gradient and metrics, averaged over `accumulate` slices of the batch."""

    def one(batch: dict, keys: Array) -> tuple[dict, dict[str, Array]]:
        grad = jax.value_and_grad(recipe.loss, has_aux=True)
        (loss, terms), grads = grad(params, batch, keys)
        return grads, {"loss": loss, **terms}

    parts = recipe.accumulate
    if parts == 1:
        return one(batch, keys)

    def slices(a: Array) -> Array:
        # Every parts-th image, so that a slice stays spread over the devices.
        return jnp.swapaxes(a.reshape(-1, parts, *a.shape[1:]), 0, 1)

    def add(total: tuple, part: tuple) -> tuple[tuple, None]:
        return jax.tree.map(jnp.add, total, one(*part)), None

    sliced = jax.tree.map(slices, (batch, keys))
    shapes = jax.eval_shape(one, *jax.tree.map(lambda a: a[0], sliced))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, sliced)
    return jax.tree.map(lambda a: a / parts, total)


def abstract_state(
    recipe: Recipe, ema: tuple[float, ...], mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes and shardings of a run's state; allocates nothing."""
    init = functools.partial(create, recipe.network, recipe.optimizer, ema)
    shapes = jax.eval_shape(init, jax.random.key(0))
    layout = sharding.state_sharding(shapes, mesh)
    return jax.tree.map(
        lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, layout
    )


def fresh_state(
    recipe: Recipe, ema: tuple[float, ...], mesh: jax.sharding.Mesh
) -> TrainState:
    """The state before the first step, drawn where it will live."""
    init = functools.partial(create, recipe.network, recipe.optimizer, ema)
    layout = jax.tree.map(lambda s: s.sharding, abstract_state(recipe, ema, mesh))
    return jax.jit(init, out_shardings=layout)(jax.random.key(recipe.seed))
