"""The flow-matching loss on images that training never saw, at fixed times."""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax import sharding
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.flow.path import Stage, image_noise
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.models.interface import Condition, Inputs, Network, Output
from pixelflow_jax.sampling.sampler import image_keys

TIMES = tuple(round(0.05 + 0.1 * i, 2) for i in range(10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldoutLoss:
    """Mean squared velocity error at each of `TIMES` and overall.

    The noise of image i depends on (seed, i) alone, so that the figures of two
    checkpoints differ by the weights only.
    """

    network: Network
    stages: tuple[Stage, ...]
    prediction: Prediction
    conditioner: Conditioner
    seed: int

    def __call__(
        self,
        params: dict,
        batches: Iterable[dict],
        mesh: jax.sharding.Mesh,
        frozen_params: dict | None = None,
    ) -> dict[str, float]:
        """Means over the batches of one pass.

        Their "weight" [b] is 0 for images that only fill the last batch.
        `frozen_params` are the parameters of the conditioner's and the model's frozen
        networks.
        """
        frozen_params = jax.device_put(frozen_params or {}, sharding.replicated(mesh))

        def errors(
            params: dict, batch: dict, first: Array, frozen_params: dict
        ) -> Array:
            cond = self.conditioner.encode(frozen_params, batch)
            net = functools.partial(
                self.network.apply, params, frozen_params=frozen_params
            )
            return jax.lax.map(
                lambda t: self._error(net, batch, cond, first, t), jnp.asarray(TIMES)
            )

        program = jax.jit(errors, out_shardings=sharding.replicated(mesh))
        total, weight, first = np.zeros(len(TIMES)), 0.0, 0
        with jax.set_mesh(mesh):
            for batch in batches:
                arrays = sharding.global_batch(batch, mesh)
                total += np.asarray(
                    program(params, arrays, first, frozen_params), np.float64
                )
                weight += float(arrays["weight"].sum())
                first += len(arrays["weight"])
        means = dict(zip(TIMES, total / weight, strict=True))
        by_time = {f"loss_at_{t}": float(value) for t, value in means.items()}
        return {"loss": float(np.mean(list(means.values()))), **by_time}

    def _error(
        self,
        net: Callable[[tuple[Inputs, ...]], Output],
        batch: dict,
        cond: Condition,
        first: Array,
        t: Array,
    ) -> Array:
        """Sum over the batch of the weighted error at time `t`, mean over stages."""
        images = batch["image"]
        count, height, width, channels = images.shape
        keys = image_keys(self.seed, first + jnp.arange(count))
        values = []
        for stage in self.stages:
            noise = image_noise(keys, *stage.size(height, width), channels)
            point = stage.draw(images, noise, jnp.full(count, t))
            inputs = Inputs(point.x_t, point.timestep, cond)
            context = Context((point,), net((inputs,)), self.prediction, (stage,))
            values.append(FlowMatching()(context))
        return jnp.sum(sum(values) / len(values) * batch["weight"])
