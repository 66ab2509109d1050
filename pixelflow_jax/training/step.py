"""One training step: draw points, run the network, take the gradient, move."""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pixelflow_jax import sharding
from pixelflow_jax.conditioning.conditioner import Conditioner, drop
from pixelflow_jax.flow.path import Point, Stage
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.time import TimeSampler
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.objective import (
    Context,
    FlowMatching,
    Term,
    combine,
    draw_points,
    split_keys,
    split_round_robin,
    term_name,
)
from pixelflow_jax.models.interface import (
    LAST_KERNEL,
    Condition,
    DenoiserConfig,
    Inputs,
    Network,
)
from pixelflow_jax.teachers.suite import RequiredFeatures, Teachers, union
from pixelflow_jax.training.state import TrainState, create, update_ema

Step = Callable[[TrainState, dict, dict], tuple[TrainState, dict[str, Array]]]
Tree = TypeVar("Tree")
DROPOUT = 2**31  # a number apart from the splits that points and labels use


class Drawn(NamedTuple):
    """All that is random in a step: points and conditions, one group a stage."""

    images: Array  # real, full size [b, h, w, c]
    points: tuple[Point, ...]
    conds: tuple[Condition, ...]
    keys: Array  # of each image's dropout, in the order of the points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a step is made of; all of it is static under `jit`.

    The parameters of frozen networks are arguments of the methods, called `frozen_params`.
    """

    model: DenoiserConfig
    network: Network
    stages: tuple[Stage, ...]
    prediction: Prediction
    time: TimeSampler
    terms: list[Term]
    conditioner: Conditioner
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    seed: int
    accumulate: int = 1
    teachers: Teachers = dataclasses.field(default_factory=Teachers)
    adaptive_weight: AdaptiveWeight | None = None

    @property
    def required_features(self) -> RequiredFeatures:
        """What the terms ask of the teachers."""
        return union(term.required_features() for term in self.terms)

    def init(self, key: Array) -> dict:
        """Fresh parameters: the denoiser, and heads where terms have them."""
        params = {"denoiser": self.network.init(key)}
        projectors = {}
        for number, term in enumerate(self.terms, 1):
            own = term.projector(
                jax.random.fold_in(key, number), self.model, self.teachers
            )
            projectors |= {term_name(term): own} if own else {}
        return params | ({"projectors": projectors} if projectors else {})

    def forward_flops(self, height: int, width: int) -> float:
        """Operations of the denoiser's forward pass, an image, mean over the stages."""
        sizes = [stage.size(height, width) for stage in self.stages]
        return sum(self.model.flops(*size) for size in sizes) / len(sizes)

    def frozen_shapes(self) -> dict:
        """The parameters of all frozen networks, as shapes."""
        return self.teachers.shapes(self.required_features) | self.conditioner.shapes()

    def load_frozen(self) -> dict:
        """The parameters of all frozen networks (numpy); WeightsError without."""
        return self.teachers.load(self.required_features) | self.conditioner.load()

    def balancing(self, step: int) -> bool:
        """Whether the adaptive weight moves before step number `step`."""
        return self.adaptive_weight is not None and bool(
            self.adaptive_weight.is_due(step)
        )

    def carry(self) -> dict:
        """What the loss remembers, before the first step."""
        return (
            {}
            if self.adaptive_weight is None
            else {"adaptive_weight": jnp.ones((), jnp.float32)}
        )

    def draw(self, batch: dict, keys: Array, frozen_params: dict) -> Drawn:
        """Points and conditions for images [b, h, w, c] with a key each."""
        point_keys, drop_keys = split_keys(keys, 2)
        points = draw_points(point_keys, batch["image"], self.stages, self.time)
        cond = self.conditioner.encode(frozen_params, batch)
        null = self.conditioner.null(frozen_params, cond, self.model)
        uniform = jax.vmap(jax.random.uniform)(drop_keys)
        cond = drop(uniform, cond, null, self.conditioner.drop)
        own = jax.vmap(lambda key: jax.random.fold_in(key, DROPOUT))(keys)
        conds = _by_stage(cond, len(points))
        dropout = jnp.concatenate(split_round_robin(own, len(points)))
        return Drawn(batch["image"], points, conds, dropout)

    def context(self, params: dict, drawn: Drawn, frozen_params: dict) -> Context:
        """What the network and the teachers make of the drawn points."""
        points = drawn.points
        output = self.network.apply(
            params["denoiser"],
            tuple(
                Inputs(point.x_t, point.timestep, cond)
                for point, cond in zip(points, drawn.conds, strict=True)
            ),
            key=drawn.keys,
        )
        clean = tuple(point.clean for point in points)
        return Context(
            points=points,
            output=output,
            prediction=self.prediction,
            stages=self.stages,
            teachers=self.teachers,
            frozen_params=frozen_params,
            targets=self.teachers.extract_targets(
                self.required_features, frozen_params, drawn.images, clean
            ),
            projectors=params.get("projectors"),
        )

    def loss(
        self, params: dict, drawn: Drawn, frozen_params: dict, carry: dict
    ) -> tuple[Array, dict[str, Array]]:
        """The weighted loss, and the means of its terms by name."""
        weight = 1.0
        if self.adaptive_weight is not None:
            weight = self.adaptive_weight.ratio * carry["adaptive_weight"]
        return combine(self.terms, self.context(params, drawn, frozen_params), weight)

    def last_gradients(
        self, params: dict, drawn: Drawn, frozen_params: dict
    ) -> tuple[Array, Array]:
        """Gradients of the flow-matching and of the weighted perceptual loss.

        With respect to the denoiser's last matrix alone, for `AdaptiveWeight`.
        """

        def groups(kernel: Array) -> Array:
            changed = {"denoiser": _with_last(params["denoiser"], kernel)}
            context = self.context({**params, **changed}, drawn, frozen_params)
            flow = [t for t in self.terms if isinstance(t, FlowMatching)]
            perceptual = [t for t in self.terms if t.perceptual]
            return jnp.stack([combine(t, context)[0] for t in (flow, perceptual)])

        kernel = functools.reduce(operator.getitem, LAST_KERNEL, params["denoiser"])
        _, pull = jax.vjp(groups, kernel)
        flow, perceptual = (pull(row)[0] for row in jnp.eye(2))
        return flow, perceptual


def _with_last(params: dict, kernel: Array, path: tuple = LAST_KERNEL) -> dict:
    """The parameters with another last matrix."""
    name, *rest = path
    return {**params, name: _with_last(params[name], kernel, rest) if rest else kernel}


def _by_stage(cond: Condition, stages: int) -> tuple[Condition, ...]:
    leaves, structure = jax.tree.flatten(cond)
    dealt = zip(*(split_round_robin(leaf, stages) for leaf in leaves), strict=True)
    return tuple(jax.tree.unflatten(structure, part) for part in dealt)


def make_step(objective: Objective, balancing: bool | None = None) -> Step:
    """The step as a pure function of state, batch and frozen parameters.

    The batch holds "image" [b, h, w, c] in [-1, 1] and what the conditioner reads, such
    as "label" [b]. Randomness depends on (seed, step, index in the batch) alone: not on
    devices, nor on `accumulate`.

    `balancing` says whether the adaptive weight moves (`Objective.balancing` of the step);
    None decides on the device, in a program that holds, and waits for, both.
    """

    def step(
        state: TrainState, batch: dict, frozen_params: dict
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(objective.seed), state.step)
        index = jnp.arange(batch["image"].shape[0])
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        carry = _balanced(objective, state, batch, keys, frozen_params, balancing)
        grads, metrics = _gradient(
            objective, state.params, batch, keys, frozen_params, carry
        )
        updates, opt_state = objective.optimizer.update(
            grads, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        metrics |= carry | {
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(objective.learning_rate(state.step), jnp.float32),
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=update_ema(state.ema, params["denoiser"]),
            carry=carry,
        )
        return state, metrics

    return step


def _gradient(
    objective: Objective,
    params: dict,
    batch: dict,
    keys: Array,
    frozen_params: dict,
    carry: dict,
) -> tuple[dict, dict[str, Array]]:
    """Gradient and metrics of the whole batch."""

    def one(batch: dict, keys: Array) -> tuple[dict, dict[str, Array]]:
        drawn = objective.draw(batch, keys, frozen_params)
        grad = jax.value_and_grad(objective.loss, has_aux=True)
        (loss, terms), grads = grad(params, drawn, frozen_params, carry)
        return grads, {"loss": loss, **terms}

    return _mean_of_slices(objective, one, batch, keys)


def _balanced(
    objective: Objective,
    state: TrainState,
    batch: dict,
    keys: Array,
    frozen_params: dict,
    balancing: bool | None,
) -> dict:
    """The carry with the adaptive weight moved, where its schedule says so."""
    balance = objective.adaptive_weight
    if balance is None or balancing is False:
        return state.carry

    def one(batch: dict, keys: Array) -> tuple[Array, Array]:
        drawn = objective.draw(batch, keys, frozen_params)
        return objective.last_gradients(state.params, drawn, frozen_params)

    def move(weight: Array) -> Array:
        gradients = _mean_of_slices(objective, one, batch, keys)
        return balance.update(weight, *gradients)[0]

    weight = state.carry["adaptive_weight"]
    if balancing:
        weight = move(weight)
    else:
        weight = jax.lax.cond(balance.is_due(state.step), move, lambda w: w, weight)
    return {**state.carry, "adaptive_weight": weight}


def _mean_of_slices(
    objective: Objective, one: Callable[[dict, Array], Tree], batch: dict, keys: Array
) -> Tree:
    """`one(batch, keys)` update_ema over `accumulate` slices of the batch in turn."""
    parts = objective.accumulate
    if parts == 1:
        return one(batch, keys)
    run = len(objective.stages)
    if len(keys) % (parts * run):
        run = 1

    def slices(a: Array) -> Array:
        # Every parts-th run of images, so that a slice stays spread over the devices,
        # and that an image's stage does not depend on the number of slices.
        runs = a.reshape(-1, parts, run, *a.shape[1:])
        return jnp.swapaxes(runs, 0, 1).reshape(parts, -1, *a.shape[1:])

    def add(total: Tree, part: tuple) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, one(*part)), None

    sliced = jax.tree.map(slices, (batch, keys))
    shapes = jax.eval_shape(one, *jax.tree.map(lambda a: a[0], sliced))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, sliced)
    return jax.tree.map(lambda a: a / parts, total)


def abstract_state(
    objective: Objective, ema: tuple[float, ...], mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes and shardings of a run's state; allocates nothing."""
    shapes = jax.eval_shape(_beginning(objective, ema), jax.random.key(0))
    layout = sharding.state_sharding(shapes, mesh)
    return jax.tree.map(
        lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, layout
    )


def fresh_state(
    objective: Objective, ema: tuple[float, ...], mesh: jax.sharding.Mesh
) -> TrainState:
    """The state before the first step, drawn where it will live."""
    layout = jax.tree.map(lambda s: s.sharding, abstract_state(objective, ema, mesh))
    begin = jax.jit(_beginning(objective, ema), out_shardings=layout)
    return begin(jax.random.key(objective.seed))


def _beginning(
    objective: Objective, ema: tuple[float, ...]
) -> Callable[[Array], TrainState]:
    return lambda key: create(
        objective.init(key), objective.optimizer, ema, objective.carry()
    )
