"""Training points on the path, and how a batch is divided among its stages."""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Key, Shaped

from pixelflow_jax.flow.path import Point, Stage, image_noise
from pixelflow_jax.flow.time import TimeSampler


def draw_points(
    keys: Key[Array, " b"],
    images: Float[Array, "b h w c"],
    stages: tuple[Stage, ...],
    time: TimeSampler,
) -> tuple[Point, ...]:
    """Training points for `images` [b, h, w, c], dealt out evenly to the stages.

    Time and noise of image i depend on `keys[i]` only. Where b does not divide, the
    first (coarsest) stages get one image more.
    """
    height, width, channels = images.shape[1:]
    parts = zip(
        split_round_robin(images, len(stages)),
        split_round_robin(keys, len(stages)),
        strict=True,
    )
    points = []
    for stage, (part, part_keys) in zip(stages, parts, strict=True):
        time_keys, noise_keys = split_keys(part_keys, 2)
        t = jax.vmap(lambda key: time(key, 1)[0])(time_keys)
        noise = image_noise(noise_keys, *stage.size(height, width), channels)
        points.append(stage.draw(part, noise, t))
    return tuple(points)


def split_round_robin(
    a: Shaped[Array, "b ..."], parts: int
) -> list[Shaped[Array, "_ ..."]]:
    """Row i of [b, ...] goes to part i modulo `parts`, so the first get what is over.

    Neighbours go to different parts: a batch that is spread over devices stays where it
    is when every device holds a multiple of `parts`.
    """
    if len(a) % parts:
        return [a[index::parts] for index in range(parts)]
    rows = a.reshape(-1, parts, *a.shape[1:])
    return [rows[:, index] for index in range(parts)]


def split_keys(keys: Key[Array, " b"], n: int) -> Key[Array, "{n} b"]:
    """`n` independent keys for each of `keys` [b], as [n, b]."""
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, n))(keys), 0, 1)
