"""The flow-matching loss on images that training never saw, at fixed times."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax import sharding
from pixelflow_jax.flow.path import image_noise
from pixelflow_jax.objective import Context, FlowMatching
from pixelflow_jax.sampler import image_keys
from pixelflow_jax.training.step import Recipe

TIMES = tuple(round(0.05 + 0.1 * i, 2) for i in range(10))


def heldout_loss(
    recipe: Recipe,
    params: dict,
    batches: Iterable[dict],
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """Mean squared velocity error over `batches`, at each of `TIMES` and overall.

    The noise of image i depends on (seed, i) alone, so that the figures of two
    checkpoints differ by the weights only. `batches` are those of one pass: their
    "weight" [b] is 0 for images that only fill the last batch.
    """

    def errors(params: dict, batch: dict, first: Array) -> Array:
        return jnp.stack([_error(recipe, params, batch, first, t) for t in TIMES])

    program = jax.jit(errors)
    layout = sharding.batch_sharding(mesh)
    total, weight, first = np.zeros(len(TIMES)), 0.0, 0
    with jax.set_mesh(mesh):
        for batch in batches:
            arrays = {
                name: jax.make_array_from_process_local_data(layout, array)
                for name, array in batch.items()
            }
            total += np.asarray(program(params, arrays, first), np.float64)
            weight += float(arrays["weight"].sum())
            first += len(arrays["weight"])
    means = dict(zip(TIMES, total / weight, strict=True))
    by_time = {f"loss_at_{t}": float(value) for t, value in means.items()}
    return {"loss": float(np.mean(list(means.values()))), **by_time}


def _error(
    recipe: Recipe, params: dict, batch: dict, first: Array, t: float
) -> Array:
    """Sum over the batch of the weighted error at time `t` of every stage's mean."""
    images = batch["image"]
    count, height, width, channels = images.shape
    keys = image_keys(recipe.seed, first + jnp.arange(count))
    cond = recipe.conditioner.encode({}, batch)
    values = []
    for stage in recipe.stages:
        noise = image_noise(keys, *stage.size(height, width), channels)
        point = stage.draw(images, noise, jnp.full(count, t))
        output = recipe.network.apply(params, (point.x_t,), (point.clock,), (cond,))
        context = Context((point,), output, recipe.prediction)
        values.append(FlowMatching()(context))
    return jnp.sum(sum(values) / len(values) * batch["weight"])
