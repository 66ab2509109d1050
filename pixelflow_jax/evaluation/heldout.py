"""The flow-matching loss on images that training never saw, at fixed times."""

import dataclasses
from collections.abc import Iterable

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
from pixelflow_jax.models.interface import Condition, Inputs, Network
from pixelflow_jax.sampling.fields import Net
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
        `frozen_params` are those of the frozen networks that the denoiser and the
        conditioner look through, and the prediction's constants.
        """
        frozen_params = jax.device_put(frozen_params or {}, sharding.replicated(mesh))

        def errors(
            params: dict, batch: dict, first: Array, frozen_params: dict
        ) -> Array:
            net = Net(self.network, params, frozen_params)
            cond = self.conditioner.encode(frozen_params, batch)
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
        self, net: Net, batch: dict, cond: Condition, first: Array, t: Array
    ) -> Array:
        """Sum over the batch of the weighted error at time `t`, mean over stages."""
        images, prediction = batch["image"], net.bound(self.prediction)
        count, height, width, channels = images.shape
        keys = image_keys(self.seed, first + jnp.arange(count))
        values = []
        for stage in self.stages:
            noise = image_noise(keys, *stage.size(height, width), channels)
            point = stage.draw(images, noise, jnp.full(count, t))
            inputs = Inputs(*prediction.inputs(point.x_t, point.t, stage), cond)
            context = Context((point,), net((inputs,)), prediction, (stage,))
            values.append(FlowMatching()(context))
        return jnp.sum(sum(values) / len(values) * batch["weight"])
