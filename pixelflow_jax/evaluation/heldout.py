"""The flow-matching loss on images that training never saw, at fixed times."""

import dataclasses
import math
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

        program = self.program(mesh)
        every, weights, first = [], [], 0
        with jax.set_mesh(mesh):
            for batch in batches:
                arrays = sharding.global_batch(batch, mesh)
                seen = program(params, arrays, first, frozen_params)
                every.append(np.asarray(seen[0]))
                weights.append(np.asarray(seen[1]))
                first += len(weights[-1])
        means = _means(np.concatenate(every, axis=1), np.concatenate(weights))
        by_time = {f"loss_at_{t}": mean for t, mean in zip(TIMES, means, strict=True)}
        return {"loss": math.fsum(means) / len(means), **by_time}

    def program(self, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
        """Errors [times, b] of a batch and its weights [b], whole on every device.

        Takes parameters, batch, the number of its first image, and frozen parameters.
        """

        def errors(
            params: dict, batch: dict, first: Array, frozen_params: dict
        ) -> tuple[Array, Array]:
            net = Net(self.network, params, frozen_params)
            cond = self.conditioner.encode(frozen_params, batch)
            at = lambda t: self._errors(net, batch, cond, first, t)
            return jax.lax.map(at, jnp.asarray(TIMES)), batch["weight"]

        return jax.jit(errors, out_shardings=sharding.replicated(mesh))

    def _errors(
        self, net: Net, batch: dict, cond: Condition, first: Array, t: Array
    ) -> Array:
        """Error [b] of each image at time `t`, mean over stages."""
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
        # Of each image where the image is; then gathered.
        return sharding.constrain_batch(sum(values[1:], values[0]) / len(values))


def _means(errors: np.ndarray, weights: np.ndarray) -> list[float]:
    """Weighted mean over the images of errors [times, n], for each time.

    No device adds errors of several images, and the sums here are rounded once: the
    means do not depend on how batches are divided over devices and processes.
    """
    counted = weights > 0
    weighted = np.float64(errors[:, counted]) * weights[counted]
    return [math.fsum(row) / math.fsum(weights) for row in weighted]
