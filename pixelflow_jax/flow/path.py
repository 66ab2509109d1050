"""The path from noise (t = 0) to data (t = 1), cut into stages.

A stage is a line segment at one resolution between two points that share their noise:

    start = s * up(down(clean)) + (1 - s) * noise
    end   = e * clean           + (1 - e) * noise
    x_t   = t * end + (1 - t) * start,        t in [0, 1] inside the stage

One stage with s = 0 and e = 1 is plain flow matching on a linear path. A pyramid of
stages begins small and noisy; between two stages the image is doubled and fresh noise
makes its distribution that of the next start (PixelFlow, section 3.2).
"""

import dataclasses
import math
from typing import Annotated, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Key

from pixelflow_jax.values import Count, Positive, Range


class Point(NamedTuple):
    """Training points of one stage; images are [b, h, w, c], times are [b]."""

    x_t: Array
    t: Array  # in-stage time, 0 at the stage's start
    timestep: Array  # the time the network is told
    start: Array
    end: Array
    clean: Array  # the image at this stage's resolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One segment of the path.

    `log2_downscale` is how many times the full-size image is halved to this stage's
    resolution; `start` and `end` are the data weights of the two end points;
    `timestep_range` is what the network is given at t = 0 and t = 1. `jump` weighs the
    enlarged image of the previous stage and the fresh noise at this stage's beginning,
    `gamma` is the correlation of that noise inside a block of 2x2. `noise_scale`
    multiplies all noise.
    """

    log2_downscale: int = 0
    start: float = 0.0
    end: float = 1.0
    timestep_range: tuple[float, float] = (0.0, 1.0)
    jump: tuple[float, float] = (0.0, 1.0)
    gamma: float = 0.0
    noise_scale: float = 1.0

    def draw(
        self,
        image: Float[Array, "b full_h full_w c"],
        noise: Float[Array, "b h w c"],
        t: Float[Array, " b"],
    ) -> Point:
        """Points of this stage at times `t` in [0, 1].

        `image` is full size, `noise` has the stage's size.
        """
        clean = downsample2(image, self.log2_downscale)
        if self.noise_scale != 1:
            noise = self.noise_scale * noise
        start = noise
        if self.start > 0:
            coarse = upsample2(downsample2(clean, 1))
            start = self.start * coarse + (1 - self.start) * noise
        end = clean
        if self.end < 1:
            end = self.end * clean + (1 - self.end) * noise
        weight = per_image(t, image)
        x_t = weight * end + (1 - weight) * start
        return Point(x_t, t, self.timestep(t), start, end, clean)

    def clean(
        self, start: Float[Array, "b h w c"], end: Float[Array, "b h w c"]
    ) -> Float[Array, "b h w c"]:
        """The clean image of a segment between `start` and `end`.

        Both hold the same noise, so they are two equations for two unknowns: one pair
        for the means of the 2x2 blocks, which both points share, and one for what is
        left, of which `start` holds the noise alone.
        """
        if self.start == 0 and self.end == 1:
            return end
        s, e = self.start, self.end
        if s == 0:  # the start is the noise itself
            return (end - (1 - e) * start) / e
        low_start, low_end = downsample2(start, 1), downsample2(end, 1)
        low = ((1 - s) * low_end - (1 - e) * low_start) / (e - s)
        noise = (start - upsample2(low_start)) / (1 - s)
        fine = (end - upsample2(low_end) - (1 - e) * noise) / e
        return upsample2(low) + fine

    def begin(
        self,
        previous: Float[Array, "b half_h half_w c"] | None,
        noise: Float[Array, "b h w c"],
    ) -> Float[Array, "b h w c"]:
        """Where sampling starts, from the previous stage's result and fresh noise.

        `noise` [b, h, w, c] is standard normal for the first stage and comes from
        `block_noise` for the others.
        """
        if self.noise_scale != 1:
            noise = self.noise_scale * noise
        if previous is None:
            return noise
        kept, fresh = self.jump
        return kept * upsample2(previous) + fresh * noise

    def timestep(self, t: Float[Array, "*times"]) -> Float[Array, "*times"]:
        """The time the network is told at in-stage time `t`."""
        low, high = self.timestep_range
        return low + (high - low) * t

    def size(self, height: int, width: int) -> tuple[int, int]:
        """This stage's image size, for a full size of `height` x `width`."""
        return height >> self.log2_downscale, width >> self.log2_downscale


class Path(Protocol):
    """The way from noise to data; config nodes name it as their base."""

    def stages(self) -> tuple[Stage, ...]:
        """Its stages, the coarsest first."""
        ...

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        ...


@dataclasses.dataclass(kw_only=True)
class Straight(Path):
    """Plain flow matching from noise to data at full size: PixNerd and PixelGen.

    `noise_scale` is the noise's standard deviation; JiT takes 2 at 512 pixels.
    """

    noise_scale: Positive = 1.0

    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage(noise_scale=self.noise_scale),)

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        if self.noise_scale > 0:
            return []
        return [f"path.noise_scale={self.noise_scale} must be positive"]


@dataclasses.dataclass(kw_only=True)
class Pyramid(Path):
    """PixelFlow's cascade of `num_stages` resolutions; see `pyramid`."""

    num_stages: Annotated[int, Range(low=1, high=14)] = 4
    gamma: Annotated[float, Range(low=-1 / 3 - 1e-9, high=0, interval="[)")] = -1 / 3
    num_train_timesteps: Count = 1000

    def stages(self) -> tuple[Stage, ...]:
        """The stages, the coarsest first."""
        return pyramid(self.num_stages, self.gamma, self.num_train_timesteps)

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        try:
            self.stages()
        except ValueError as error:
            return [f"path: {error}"]
        return []


def pyramid(
    num_stages: int = 4, gamma: float = -1 / 3, num_train_timesteps: int = 1000
) -> tuple[Stage, ...]:
    """PixelFlow's cascade: `num_stages` segments, each at twice the last one's size.

    The path is cut at equal times. A stage begins where its predecessor ended, but the
    doubled image's noise is correlated inside blocks; fresh noise of correlation
    `gamma` (in [-1/3, 0)) whitens it, which moves the start back towards the noise by
    the factor r(s) = 1 / (sqrt(1 - 1/gamma) (1 - s) + s). The timestep divides 0 ..
    `num_train_timesteps` among the stages in proportion to their lengths, with the
    official code's integer roundings. Sources: PixelFlow section 3.2, and Jin et al.
    2024 (Pyramidal Flow Matching) for the correction.
    """
    total = num_train_timesteps
    if num_stages < 1 or not -1 / 3 - 1e-9 <= gamma < 0 or total < num_stages:
        raise ValueError(
            "A pyramid needs num_stages >= 1, gamma in [-1/3, 0) and at least as many "
            f"timesteps as stages, not num_stages={num_stages}, gamma={gamma} and "
            f"num_train_timesteps={total}."
        )
    cuts = [_float32(int(total * k / num_stages) / total) for k in range(num_stages)]
    ends = [*cuts[1:], 1.0]
    ratios = [1.0] + [rectification(s, gamma) for s in cuts[1:]]
    starts = [r * s for r, s in zip(ratios, cuts, strict=True)]
    ranges = _timestep_ranges([e - s for s, e in zip(starts, ends, strict=True)], total)
    return tuple(
        Stage(
            log2_downscale=num_stages - 1 - k,
            start=starts[k],
            end=ends[k],
            timestep_range=ranges[k],
            **_jump(ratios[k], cuts[k], gamma) if k else {},
        )
        for k in range(num_stages)
    )


def _jump(ratio: float, cut: float, gamma: float) -> dict:
    fresh = ratio * (1 - cut) / math.sqrt(-gamma)
    return {"jump": (ratio, fresh), "gamma": gamma}


def rectification(start: float, gamma: float) -> float:
    """r(s), by which a stage's start shrinks when fresh noise whitens the old."""
    return 1 / (math.sqrt(1 - 1 / gamma) * (1 - start) + start)


def _timestep_ranges(lengths: list[float], total: int) -> list[tuple[float, float]]:
    """The timestep at t = 0 and t = 1 of every stage.

    The official table holds `total` times a stage: t = 0, 1/total, ... The last stage's
    table ends in `total` - 1 exactly, so that its timestep runs a little faster.
    """
    shares = [sum(lengths[:k]) / sum(lengths) for k in range(len(lengths) + 1)]
    marks = [int(total * share) for share in shares[:-1]]
    last = marks[-1] + (total - 1 - marks[-1]) * total / (total - 1)
    return list(zip(marks, [*marks[1:], last], strict=True))


def _float32(value: float) -> float:
    return float(np.float32(value))


def block_noise(
    noise: Float[Array, "b h w c"], gamma: float
) -> Float[Array, "b h w c"]:
    """Normal noise with covariance (1 - gamma) I + gamma 11' in every block of 2x2.

    `noise` is standard normal. Its block means and the rest are scaled by
    the square roots of the covariance's two eigenvalues, 1 + 3 gamma and 1 - gamma. The
    official code draws one block at a time with a Cholesky factor, which exists at
    gamma = -1/3 (eigenvalue 0) only because 1e-6 is added to the diagonal; this form
    needs neither, so that its variance is 1 and not 1.000001.
    """
    mean = upsample2(downsample2(noise, 1))
    rest, common = math.sqrt(1 - gamma), math.sqrt(max(0.0, 1 + 3 * gamma))
    return rest * (noise - mean) + common * mean


def downsample2(image: Float[Array, "b h w c"], times: int) -> Float[Array, "b _ _ c"]:
    """Mean over 2x2 blocks, `times` times (bilinear halving without antialias)."""
    for _ in range(times):
        b, h, w, c = image.shape
        image = image.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
    return image


def upsample2(image: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Nearest-neighbour upsampling by two."""
    return jnp.repeat(jnp.repeat(image, 2, axis=1), 2, axis=2)


def per_image(t: Array, image: Array) -> Array:
    """`t` [b] (or a scalar) shaped to broadcast against `image` [b, ...]."""
    return t.reshape(t.shape + (1,) * (image.ndim - t.ndim)) if t.ndim else t


def image_noise(
    keys: Key[Array, " b"], height: int, width: int, channels: int
) -> Float[Array, "b {height} {width} {channels}"]:
    """Standard normal noise; image i's depends on `keys[i]` alone."""
    shape = (height, width, channels)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
