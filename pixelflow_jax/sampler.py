"""From noise to images: guidance and solver on every stage, in one program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.flow.guidance import Branches, Guidance
from pixelflow_jax.flow.path import Stage, image_noise, per_image
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.solver import Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.base import Cond, Output


class Samples(NamedTuple):
    """Images [b, h, w, c], nominally in [-1, 1], and the way there if recorded.

    `clean` [steps, b, h, w, c] are the clean images implied by every step's velocity.
    """

    images: Array
    clean: Array | None = None


def sample(
    apply: Callable[..., Output],
    params: dict,
    keys: Array,
    cond: Cond,
    null: Cond,
    *,
    size: tuple[int, int, int],
    stages: tuple[Stage, ...],
    prediction: Prediction,
    guidance: Guidance,
    solver: Solver,
    grid: Grid,
    record: bool = False,
) -> Samples:
    """Draw one image of `size` (height, width, channels) for every key of `keys` [b].

    Image i depends on `keys[i]` and its condition alone, not on batch or devices. Made
    to be traced once: everything but `params`, `keys`, `cond` and `null` is static.
    """
    (stage,) = stages  # a cascade would renoise between its stages here
    height, width, channels = size

    def noise(draw: Array | int) -> Array:
        own = jax.vmap(lambda key: jax.random.fold_in(key, draw))(keys)
        return image_noise(own, *stage.size(height, width), channels)

    branches = denoise(apply, params, cond, null, stage, prediction)
    times = grid.times()
    solution = solver(
        guidance(branches, 0),
        noise(0),
        times,
        noise=lambda step: noise(step + 1),
        record=record,
    )
    clean = None
    if record:
        remaining = per_image(jnp.asarray(1 - times[:-1]), solution.states)
        clean = solution.states + remaining * solution.velocities
    return Samples(solution.x, clean)


def denoise(
    apply: Callable[..., Output],
    params: dict,
    cond: Cond,
    null: Cond,
    stage: Stage,
    prediction: Prediction,
) -> Branches:
    """The velocity fields of a stage under `cond`, and under `cond` and `null` at once.

    The doubled batch alternates between the two halves, so that a batch that is split
    over devices stays where it is.
    """

    def field(x: Array, t: Array, step: Array, cond: Cond = cond) -> Array:
        clock = jnp.broadcast_to(stage.to_clock(t), x.shape[:1])
        out = apply(params, (x,), (clock,), (cond,)).pred[0]
        return prediction.velocity(out, x, t)

    def both(x: Array, t: Array, step: Array) -> tuple[Array, Array]:
        pair = jax.tree.map(lambda c, n: _alternate(c, n), cond, null)
        v = field(_alternate(x, x), t, step, pair)
        v = v.reshape(x.shape[0], 2, *x.shape[1:])
        return v[:, 0], v[:, 1]

    return Branches(field, both)


def _alternate(a: Array, b: Array) -> Array:
    """[b, ...] twice to [2 b, ...]: a0, b0, a1, b1, ..."""
    return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])


def image_keys(seed: int, indices: Array | np.ndarray) -> Array:
    """The key of each image: a function of the seed and the image's number alone."""
    root = jax.random.key(seed)
    return jax.vmap(lambda index: jax.random.fold_in(root, index))(jnp.asarray(indices))
