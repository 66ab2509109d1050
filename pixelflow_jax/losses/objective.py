"""The training objective: what is drawn, what the network makes of it, the loss."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.flow.path import Point, Stage
from pixelflow_jax.flow.prediction import CONSTANTS, Prediction
from pixelflow_jax.flow.time import TimeSampler
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.points import draw_points, split_keys, split_round_robin
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.models.interface import (
    Condition,
    DenoiserConfig,
    Inputs,
    Network,
    frozen_shapes,
    load_frozen,
)

DROPOUT = 2**31  # a number apart from the splits that points and conditions use


class Drawn(NamedTuple):
    """All that is random in a step: points and conditions, one group a stage."""

    images: Array  # real, full size [b, h, w, c]
    points: tuple[Point, ...]
    conds: tuple[Condition, ...]
    keys: Array  # [b], one an image in the order of the points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """What a network learns from a batch; all of it is static under `jit`.

    The parameters of frozen networks are arguments of the methods, `frozen_params`:
    those of the terms' teachers, the conditioner's and the model's own.
    """

    model: DenoiserConfig
    network: Network
    conditioner: Conditioner
    stages: tuple[Stage, ...]
    prediction: Prediction
    time: TimeSampler
    terms: WeightedTerms

    def init(self, key: Array, constants: dict | None = None) -> dict:
        """Fresh parameters: the denoiser, and projectors where terms have them.

        `constants` are the prediction's.
        """
        return self._around(self.network.init(key), key, constants)

    def shapes(self) -> dict:
        """What `init` returns, as shapes; allocates nothing, and builds no network."""
        fresh, key = self.network.shapes(), jax.random.key(0)
        return jax.eval_shape(self._around, fresh, key, self.constant_shapes())

    def _around(self, fresh: dict, key: Array, constants: dict | None) -> dict:
        params = {"denoiser": self.prediction.init(fresh, constants or {})}
        projectors = self.terms.projectors(key, self.model)
        return params | ({"projectors": projectors} if projectors else {})

    def carry(self, constants: dict | None = None) -> dict:
        """What is remembered from step to step, before the first one.

        The adaptive weight, and the prediction's `constants` under CONSTANTS.
        """
        return self.terms.carry() | ({CONSTANTS: constants} if constants else {})

    def bind(self, carry: dict) -> "Objective":
        """The objective whose prediction has the constants of `carry` at hand."""
        if CONSTANTS not in carry:
            return self
        prediction = self.prediction.bind(carry[CONSTANTS])
        return dataclasses.replace(self, prediction=prediction)

    def draw(self, batch: dict, keys: Array, frozen_params: dict) -> Drawn:
        """Points and conditions for images [b, h, w, c] with a key each."""
        count = len(self.stages)
        point_keys, drop_keys = split_keys(keys, 2)
        points = draw_points(point_keys, batch["image"], self.stages, self.time)
        cond = self.conditioner.encode(frozen_params, batch)
        null = self.conditioner.null(frozen_params, cond, self.model)
        cond = self.conditioner.dropped(drop_keys, cond, null)
        in_order = jnp.concatenate(split_round_robin(keys, count))
        return Drawn(batch["image"], points, _by_stage(cond, count), in_order)

    def context(self, params: dict, drawn: Drawn, frozen_params: dict) -> Context:
        """What the network and the teachers make of the drawn points."""
        points, teachers = drawn.points, self.terms.teachers
        batch = tuple(
            Inputs(*self.prediction.inputs(point.x_t, point.t, stage), cond)
            for point, stage, cond in zip(points, self.stages, drawn.conds, strict=True)
        )
        dropout_keys = jax.vmap(lambda key: jax.random.fold_in(key, DROPOUT))(
            drawn.keys
        )
        output = self.network.apply(
            params["denoiser"], batch, key=dropout_keys, frozen_params=frozen_params
        )
        targets = teachers.extract_targets(
            self.terms.required_features,
            frozen_params,
            drawn.images,
            tuple(point.clean for point in points),
        )
        return Context(
            points=points,
            output=output,
            prediction=self.prediction,
            stages=self.stages,
            batch=batch,
            keys=drawn.keys,
            teachers=teachers,
            frozen_params=frozen_params,
            targets=targets,
            projectors=params.get("projectors", {}),
        )

    def loss(
        self, params: dict, drawn: Drawn, frozen_params: dict, carry: dict
    ) -> tuple[Array, dict[str, Array]]:
        """The weighted loss, and the means of its terms by name."""
        return self.terms(self.context(params, drawn, frozen_params), carry)

    def output_gradients(
        self, params: dict, drawn: Drawn, frozen_params: dict
    ) -> tuple[Array, Array]:
        """Gradients of the flow's and of the perceptual terms' weighted sums.

        With respect to the denoiser's last matrix alone, for `AdaptiveWeight`.
        """
        path = self.model.output_kernel

        def groups(kernel: Array) -> Array:
            denoiser = _with_leaf(params["denoiser"], path, kernel)
            changed = {**params, "denoiser": denoiser}
            context = self.context(changed, drawn, frozen_params)
            return jnp.stack(
                [self.terms.group(role, context) for role in ("flow", "perceptual")]
            )

        _, pull = jax.vjp(groups, self._output_kernel(params["denoiser"]))
        flow, perceptual = (pull(row)[0] for row in jnp.eye(2))
        return flow, perceptual

    def _output_kernel(self, denoiser: dict) -> Array:
        """The denoiser's last matrix; ValueError where the model names another."""
        path = self.model.output_kernel
        node = denoiser
        for name in path:
            node = node.get(name) if isinstance(node, dict) else None
        if node is None or isinstance(node, dict):
            raise ValueError(
                f"{type(self.model).__name__}.output_kernel={path} is not the path of "
                "an array in the model's parameters: adaptive_weight needs that of the "
                "last matrix."
            )
        return node

    def constant_shapes(self) -> dict:
        """The prediction's constants, as shapes."""
        return self.prediction.constant_shapes(self.model.channels)

    def forward_flops(self, height: int, width: int) -> float:
        """Operations of the denoiser's forward pass, an image, mean over the stages."""
        sizes = [stage.size(height, width) for stage in self.stages]
        return sum(self.model.flops(*size) for size in sizes) / len(sizes)

    def frozen_shapes(self) -> dict:
        """The parameters of all frozen networks, as shapes."""
        shapes = self.terms.shapes() | self.conditioner.shapes()
        return shapes | frozen_shapes(self.model)

    def load_frozen(self) -> dict:
        """The parameters of all frozen networks (numpy); WeightsError without."""
        return self.terms.load() | self.conditioner.load() | load_frozen(self.model)

    def check(self, height: int, width: int) -> None:
        """Trace the loss without compiling it; raises what it would raise.

        Where there is an adaptive weight its gradients are traced as well, which a run
        may first compute after many steps.
        """
        count = len(self.stages)
        image = jax.ShapeDtypeStruct(
            (count, height, width, self.model.channels), jnp.float32
        )

        def trace(
            params: dict, batch: dict, keys: Array, frozen_params: dict, carry: dict
        ) -> tuple:
            bound = self.bind(carry)
            drawn = bound.draw(batch, keys, frozen_params)
            loss = bound.loss(params, drawn, frozen_params, carry)
            if self.terms.adaptive_weight is None:
                return loss
            return loss, bound.output_gradients(params, drawn, frozen_params)

        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))
        carry = jax.eval_shape(self.carry, self.constant_shapes())
        batch = {"image": image, **self.conditioner.example(count)}
        jax.eval_shape(trace, self.shapes(), batch, keys, self.frozen_shapes(), carry)


def _with_leaf(params: dict, path: Sequence[str], leaf: Array) -> dict:
    """The parameters with another array at a path."""
    name, *rest = path
    return {**params, name: _with_leaf(params[name], rest, leaf) if rest else leaf}


def _by_stage(cond: Condition, stages: int) -> tuple[Condition, ...]:
    """The conditions of the images of each stage."""
    leaves, structure = jax.tree.flatten(cond)
    parts = zip(*(split_round_robin(leaf, stages) for leaf in leaves), strict=True)
    return tuple(jax.tree.unflatten(structure, part) for part in parts)
