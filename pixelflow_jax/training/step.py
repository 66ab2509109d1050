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
from pixelflow_jax.flow.time import TimeLaw
from pixelflow_jax.losses.adaptive_weight import Balance
from pixelflow_jax.losses.objective import (
    Context,
    FlowMatching,
    Term,
    combine,
    deal,
    draw_points,
    split_keys,
    term_name,
)
from pixelflow_jax.models.interface import LAST_KERNEL, Cond, DenoiserConfig, Network
from pixelflow_jax.teachers.suite import Needs, Teachers, together
from pixelflow_jax.training.state import TrainState, averaged, create

Step = Callable[[TrainState, dict, dict], tuple[TrainState, dict[str, Array]]]
Tree = TypeVar("Tree")
DROPOUT = 2**31  # a number apart from the splits that points and labels use


class Drawn(NamedTuple):
    """All that is random in a step: points and conditions, one group a stage."""

    images: Array  # real, full size [b, h, w, c]
    points: tuple[Point, ...]
    conds: tuple[Cond, ...]
    keys: Array  # of each image's dropout, in the order of the points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a step is made of; all of it is static under `jit`.

    The parameters of frozen networks are arguments of the methods, called `frozen`.
    """

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
    teachers: Teachers = dataclasses.field(default_factory=Teachers)
    balance: Balance | None = None

    @property
    def needs(self) -> Needs:
        """What the terms ask of the teachers."""
        return together(term.needs() for term in self.terms)

    def init(self, key: Array) -> dict:
        """Fresh parameters: the denoiser, and heads where terms have them."""
        params = {"denoiser": self.network.init(key)}
        heads = {}
        for number, term in enumerate(self.terms, 1):
            own = term.head(jax.random.fold_in(key, number), self.model, self.teachers)
            heads |= {term_name(term): own} if own else {}
        return params | ({"heads": heads} if heads else {})

    def forward_flops(self, height: int, width: int) -> float:
        """Operations of the denoiser's forward pass, an image, mean over the stages."""
        sizes = [stage.size(height, width) for stage in self.stages]
        return sum(self.model.flops(*size) for size in sizes) / len(sizes)

    def frozen_shapes(self) -> dict:
        """The parameters of all frozen networks, as shapes."""
        return self.teachers.shapes(self.needs) | self.conditioner.shapes()

    def load_frozen(self) -> dict:
        """The parameters of all frozen networks (numpy); TeacherError without."""
        return self.teachers.load(self.needs) | self.conditioner.load()

    def balancing(self, step: int) -> bool:
        """Whether the adaptive weight moves before step number `step`."""
        return self.balance is not None and bool(self.balance.due(step))

    def carry(self) -> dict:
        """What the loss remembers, before the first step."""
        return {} if self.balance is None else {"balance": jnp.ones((), jnp.float32)}

    def draw(self, batch: dict, keys: Array, frozen: dict) -> Drawn:
        """Points and conditions for images [b, h, w, c] with a key each."""
        point_keys, drop_keys = split_keys(keys, 2)
        points = draw_points(point_keys, batch["image"], self.stages, self.time)
        cond = self.conditioner.encode(frozen, batch)
        null = self.conditioner.null(frozen, cond, self.model)
        uniform = jax.vmap(jax.random.uniform)(drop_keys)
        cond = drop(uniform, cond, null, self.conditioner.drop)
        own = jax.vmap(lambda key: jax.random.fold_in(key, DROPOUT))(keys)
        conds = _by_stage(cond, len(points))
        dropout = jnp.concatenate(deal(own, len(points)))
        return Drawn(batch["image"], points, conds, dropout)

    def context(self, params: dict, drawn: Drawn, frozen: dict) -> Context:
        """What the network and the teachers make of the drawn points."""
        points = drawn.points
        output = self.network.apply(
            params["denoiser"],
            tuple(point.x_t for point in points),
            tuple(point.clock for point in points),
            drawn.conds,
            key=drawn.keys,
        )
        clean = tuple(point.clean for point in points)
        return Context(
            points=points,
            output=output,
            prediction=self.prediction,
            stages=self.stages,
            teachers=self.teachers,
            frozen=frozen,
            seen=self.teachers.observe(self.needs, frozen, drawn.images, clean),
            heads=params.get("heads"),
        )

    def loss(
        self, params: dict, drawn: Drawn, frozen: dict, carry: dict
    ) -> tuple[Array, dict[str, Array]]:
        """The weighted loss, and the means of its terms by name."""
        weight = 1.0
        if self.balance is not None:
            weight = self.balance.ratio * carry["balance"]
        return combine(self.terms, self.context(params, drawn, frozen), weight)

    def last_gradients(
        self, params: dict, drawn: Drawn, frozen: dict
    ) -> tuple[Array, Array]:
        """Gradients of the flow-matching and of the weighted perceptual loss.

        With respect to the denoiser's last matrix alone, for `Balance`.
        """

        def groups(kernel: Array) -> Array:
            changed = {"denoiser": _with_last(params["denoiser"], kernel)}
            context = self.context({**params, **changed}, drawn, frozen)
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


def _by_stage(cond: Cond, stages: int) -> tuple[Cond, ...]:
    leaves, structure = jax.tree.flatten(cond)
    dealt = zip(*(deal(leaf, stages) for leaf in leaves), strict=True)
    return tuple(jax.tree.unflatten(structure, part) for part in dealt)


def make_step(recipe: Recipe, balancing: bool | None = None) -> Step:
    """The step as a pure function of state, batch and frozen parameters.

    The batch holds "image" [b, h, w, c] in [-1, 1] and what the conditioner reads, such
    as "label" [b]. Randomness depends on (seed, step, index in the batch) alone: not on
    devices, nor on `accumulate`.

    `balancing` says whether the adaptive weight moves (`Recipe.balancing` of the step);
    None decides on the device, in a program that holds, and waits for, both.
    """

    def step(
        state: TrainState, batch: dict, frozen: dict
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        index = jnp.arange(batch["image"].shape[0])
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        carry = _balanced(recipe, state, batch, keys, frozen, balancing)
        grads, metrics = _gradient(recipe, state.params, batch, keys, frozen, carry)
        updates, opt_state = recipe.optimizer.update(
            grads, state.opt_state, state.params
        )
        params = optax.apply_updates(state.params, updates)
        metrics |= carry | {
            "grad_norm": optax.tree.norm(grads),
            "lr": jnp.asarray(recipe.learning_rate(state.step), jnp.float32),
        }
        state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=averaged(state.ema, params["denoiser"]),
            carry=carry,
        )
        return state, metrics

    return step


def _gradient(
    recipe: Recipe, params: dict, batch: dict, keys: Array, frozen: dict, carry: dict
) -> tuple[dict, dict[str, Array]]:
    """Gradient and metrics of the whole batch."""

    def one(batch: dict, keys: Array) -> tuple[dict, dict[str, Array]]:
        drawn = recipe.draw(batch, keys, frozen)
        grad = jax.value_and_grad(recipe.loss, has_aux=True)
        (loss, terms), grads = grad(params, drawn, frozen, carry)
        return grads, {"loss": loss, **terms}

    return _mean_of_slices(recipe, one, batch, keys)


def _balanced(
    recipe: Recipe,
    state: TrainState,
    batch: dict,
    keys: Array,
    frozen: dict,
    balancing: bool | None,
) -> dict:
    """The carry with the adaptive weight moved, where its schedule says so."""
    balance = recipe.balance
    if balance is None or balancing is False:
        return state.carry

    def one(batch: dict, keys: Array) -> tuple[Array, Array]:
        drawn = recipe.draw(batch, keys, frozen)
        return recipe.last_gradients(state.params, drawn, frozen)

    def move(weight: Array) -> Array:
        gradients = _mean_of_slices(recipe, one, batch, keys)
        return balance.moved(weight, *gradients)[0]

    weight = state.carry["balance"]
    if balancing:
        weight = move(weight)
    else:
        weight = jax.lax.cond(balance.due(state.step), move, lambda w: w, weight)
    return {**state.carry, "balance": weight}


def _mean_of_slices(
    recipe: Recipe, one: Callable[[dict, Array], Tree], batch: dict, keys: Array
) -> Tree:
    """`one(batch, keys)` averaged over `accumulate` slices of the batch in turn."""
    parts = recipe.accumulate
    if parts == 1:
        return one(batch, keys)
    run = len(recipe.stages)
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
    recipe: Recipe, ema: tuple[float, ...], mesh: jax.sharding.Mesh
) -> TrainState:
    """Shapes and shardings of a run's state; allocates nothing."""
    shapes = jax.eval_shape(_beginning(recipe, ema), jax.random.key(0))
    layout = sharding.state_sharding(shapes, mesh)
    return jax.tree.map(
        lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, layout
    )


def fresh_state(
    recipe: Recipe, ema: tuple[float, ...], mesh: jax.sharding.Mesh
) -> TrainState:
    """The state before the first step, drawn where it will live."""
    layout = jax.tree.map(lambda s: s.sharding, abstract_state(recipe, ema, mesh))
    begin = jax.jit(_beginning(recipe, ema), out_shardings=layout)
    return begin(jax.random.key(recipe.seed))


def _beginning(recipe: Recipe, ema: tuple[float, ...]) -> Callable[[Array], TrainState]:
    return lambda key: create(recipe.init(key), recipe.optimizer, ema, recipe.carry())
