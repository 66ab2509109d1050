"""The path from noise (t = 0) to data (t = 1), cut into stages.

A stage is a line segment at one resolution between two points that share their noise:

    start = s * up(down(clean)) + (1 - s) * noise
    end   = e * clean           + (1 - e) * noise
    x_t   = t * end + (1 - t) * start,        t in [0, 1] inside the stage

One stage with s = 0 and e = 1 is plain flow matching on a linear path.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Point(NamedTuple):
    """Training points of one stage; images are [b, h, w, c], times are [b]."""

    x_t: Array
    t: Array  # in-stage time, 0 at the stage's start
    clock: Array  # the time the network is told
    start: Array
    end: Array
    clean: Array  # the image at this stage's resolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One segment of the path.

    `halvings` is how many times the full-size image is halved to this stage's
    resolution; `start` and `end` are the data weights of the two end points;
    `clock` is the range of times the network is told.
    """

    halvings: int = 0
    start: float = 0.0
    end: float = 1.0
    clock: tuple[float, float] = (0.0, 1.0)

    def draw(self, image: Array, noise: Array, t: Array) -> Point:
        """Points of this stage at times `t` [b] in [0, 1].

        `image` [b, H, W, c] is full size, `noise` [b, h, w, c] has the stage's size.
        """
        clean = halve(image, self.halvings)
        start = noise
        if self.start > 0:
            coarse = double(halve(clean, 1))
            start = self.start * coarse + (1 - self.start) * noise
        end = clean
        if self.end < 1:
            end = self.end * clean + (1 - self.end) * noise
        weight = per_image(t, image)
        x_t = weight * end + (1 - weight) * start
        return Point(x_t, t, self.to_clock(t), start, end, clean)

    def to_clock(self, t: Array) -> Array:
        """The time the network is told at in-stage time `t`."""
        low, high = self.clock
        return low + (high - low) * t

    def size(self, height: int, width: int) -> tuple[int, int]:
        """This stage's image size, for a full size of `height` x `width`."""
        return height >> self.halvings, width >> self.halvings


def linear_path() -> tuple[Stage, ...]:
    """Plain flow matching: a cascade of one stage."""
    return (Stage(),)


def halve(image: Array, times: int) -> Array:
    """Mean over 2x2 blocks, `times` times (bilinear halving without antialias)."""
    for _ in range(times):
        b, h, w, c = image.shape
        image = image.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return image


def double(image: Array) -> Array:
    """Nearest-neighbour upsampling by two."""
    return jnp.repeat(jnp.repeat(image, 2, axis=1), 2, axis=2)


def per_image(t: Array, image: Array) -> Array:
    """`t` [b] (or a scalar) shaped to broadcast against `image` [b, ...]."""
    return t.reshape(t.shape + (1,) * (image.ndim - t.ndim)) if t.ndim else t


def image_noise(keys: Array, height: int, width: int, channels: int) -> Array:
    """Standard normal [b, height, width, channels]; image i depends on `keys[i]`."""
    shape = (height, width, channels)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
