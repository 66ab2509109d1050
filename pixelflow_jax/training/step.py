"""One training step: draw points, run the network, take the gradient, move."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pixelflow_jax import sharding
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.losses.weighted_terms import WEIGHT
from pixelflow_jax.mesh import Rules
from pixelflow_jax.training.ema import posthoc_name, start_ema, update_ema
from pixelflow_jax.training.state import TrainState

Step = Callable[[TrainState, dict, dict], tuple[TrainState, dict[str, Array]]]
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What a step needs besides the objective; all of it is static under `jit`.

    `accumulate` is the number of slices of a batch that take turns, `ema` the decays of
    averages, `posthoc` the relative widths of those that others are made of; `rules`
    say how the state is split over devices.
    """

    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    seed: int
    accumulate: int = 1
    ema: tuple[float, ...] = ()
    posthoc: tuple[float, ...] = ()
    rules: Rules = Rules()

    @property
    def averages(self) -> tuple[str, ...]:
        """The names of all averages (`training.ema.average_called`)."""
        return (*map(str, self.ema), *map(posthoc_name, self.posthoc))


def make_step(
    objective: Objective, settings: StepSettings, weight_is_due: bool | None = None
) -> Step:
    """The step as a pure function of state, batch and frozen parameters.

    The batch holds "image" [b, h, w, c] in [-1, 1] and what the conditioner reads, such
    as "label" [b]. Randomness depends on (seed, step, index in the batch) alone: not on
    devices, nor on `accumulate`.

    `weight_is_due` says whether the adaptive weight moves before this step; None
    decides on the device, in a program that holds, and waits for, both.
    """

    def step(
        state: TrainState, batch: dict, frozen_params: dict
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
        index = jnp.arange(batch["image"].shape[0])
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        slices = _Slices(batch, keys, settings.accumulate, len(objective.stages))
        bound = objective.bind(state.carry)
        carry = _next_carry(bound, state, slices, frozen_params, weight_is_due)
        grads, metrics = _gradient(bound, state.params, slices, frozen_params, carry)
        updates, opt_state = settings.optimizer.update(
            grads, state.opt_state, state.params
        )
        params = cast(dict, optax.apply_updates(state.params, updates))
        metrics |= {name: carry[name] for name in (WEIGHT,) if name in carry}
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(settings.learning_rate(state.step), jnp.float32),
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=update_ema(state.ema, params["denoiser"], state.step + 1),
            carry=carry,
        )
        return state, metrics

    return step


@dataclasses.dataclass(frozen=True)
class _Slices:
    """A batch [b, ...] with a key an image, as `count` slices that take turns."""

    batch: dict
    keys: Array
    count: int
    stages: int

    def mean(self, compute: Callable[[dict, Array], Result]) -> Result:
        """The mean of `compute(batch, keys)` over the slices, one after the other."""
        if self.count == 1:
            return compute(self.batch, self.keys)

        def add(total: Result, part: tuple[dict, Array]) -> tuple[Result, None]:
            return jax.tree.map(jnp.add, total, compute(*part)), None

        slices = jax.tree.map(self._divided, (self.batch, self.keys))
        shapes = jax.eval_shape(compute, *jax.tree.map(lambda a: a[0], slices))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, slices)
        return jax.tree.map(lambda a: a / self.count, total)

    def _divided(self, a: Array) -> Array:
        """[b, ...] as [count, b / count, ...].

        Every `count`-th run of images, one image a stage, so that a slice stays spread
        over the devices, and that an image's stage does not depend on `count`.
        """
        run = 1 if len(a) % (self.count * self.stages) else self.stages
        runs = a.reshape(-1, self.count, run, *a.shape[1:])
        return jnp.swapaxes(runs, 0, 1).reshape(self.count, -1, *a.shape[1:])


def _gradient(
    objective: Objective,
    params: dict,
    slices: _Slices,
    frozen_params: dict,
    carry: dict,
) -> tuple[dict, dict[str, Array]]:
    """Gradient and metrics of the whole batch."""

    def gradient_of(batch: dict, keys: Array) -> tuple[dict, dict[str, Array]]:
        drawn = objective.draw(batch, keys, frozen_params)
        grad = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, terms), grads = grad(params, drawn, frozen_params, carry)
        return grads, {"loss": loss, **terms}

    return slices.mean(gradient_of)


def _next_carry(
    objective: Objective,
    state: TrainState,
    slices: _Slices,
    frozen_params: dict,
    weight_is_due: bool | None,
) -> dict:
    """The carry with the adaptive weight moved, where its schedule says so."""
    adaptive_weight = objective.terms.adaptive_weight
    if adaptive_weight is None or weight_is_due is False:
        return state.carry

    def gradients_of(batch: dict, keys: Array) -> tuple[Array, Array]:
        drawn = objective.draw(batch, keys, frozen_params)
        return objective.output_gradients(state.params, drawn, frozen_params)

    def move(weight: Array) -> Array:
        return adaptive_weight.update(weight, *slices.mean(gradients_of))[0]

    weight = state.carry[WEIGHT]
    if weight_is_due:
        weight = move(weight)
    else:
        due = adaptive_weight.is_due(state.step)
        weight = jax.lax.cond(due, move, lambda unchanged: unchanged, weight)
    return {**state.carry, WEIGHT: weight}


def create_state(params: dict, settings: StepSettings, carry: dict) -> TrainState:
    """The state before the first step, from the objective's parameters and carry."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=settings.optimizer.init(params),
        ema=start_ema(params["denoiser"], settings.averages),
        carry=carry,
    )


def abstract_state(
    objective: Objective, settings: StepSettings, mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes and shardings of a run's state; allocates nothing."""
    begin = _beginning(objective, settings)
    shapes = jax.eval_shape(begin, objective.shapes(), objective.constant_shapes())
    layout = sharding.state_sharding(shapes, mesh, settings.rules)
    return jax.tree.map(
        lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, layout
    )


def fresh_state(
    objective: Objective,
    settings: StepSettings,
    mesh: jax.sharding.Mesh,
    constants: dict | None = None,
) -> TrainState:
    """The state before the first step, drawn where it will live.

    `constants` are the prediction's, arrays of the host.
    """
    abstract = abstract_state(objective, settings, mesh)
    layout = jax.tree.map(lambda s: s.sharding, abstract)
    begin = _beginning(objective, settings)

    @functools.partial(jax.jit, out_shardings=layout)
    def draw(key: Array, constants: dict) -> TrainState:
        return begin(objective.init(key, constants), constants)

    return draw(jax.random.key(settings.seed), constants or {})


def _beginning(
    objective: Objective, settings: StepSettings
) -> Callable[[dict, dict], TrainState]:
    """The state before the first step, of the objective's parameters and constants."""
    return lambda params, constants: create_state(
        params, settings, objective.carry(constants)
    )
