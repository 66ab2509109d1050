"""The official PixelFlow's Dopri5 sampler, which integrates every image twice.

Each image travels with a twin that has noise of its own from the second stage on and
moves at the image's velocity. It changes nothing but the error estimate of a solver
with one step size for the whole batch, and so the steps.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.flow.guidance import Branches
from pixelflow_jax.sampling.sampler import Noise, Sampler, Samples, keyed_noise


def with_twins(fields: Branches) -> Branches:
    """The fields of the first half of a batch, for both halves."""

    def twice(field):
        def both(x, t, step):
            first = field(x[: len(x) // 2], t, step)
            return jax.tree.map(lambda v: jnp.concatenate([v, v]), first)

        return both

    return Branches(*(field and twice(field) for field in fields))


def follow(
    sampler: Sampler,
    fields: Callable[[int], Branches],
    noise: Noise,
    *,
    record: bool = False,
) -> Samples:
    """`Sampler.follow` with twins, whose `noise` comes behind that of their images.

    For all stages but the first `noise` gives 2 b images; the twins begin with the
    noise of their images. Of the samples the images' half is returned.
    """

    def fresh(index: int) -> Array:
        drawn = noise.fresh(index)
        return jnp.concatenate([drawn, drawn]) if index == 0 else drawn

    samples = sampler.follow(
        lambda index: with_twins(fields(index)),
        noise._replace(fresh=fresh),
        record=record,
    )
    half = len(samples.images) // 2
    return Samples(
        samples.images[:half],
        tuple(states[:half] for states in samples.stages),
        None if samples.clean is None else samples.clean[:, :half],
    )


@dataclasses.dataclass(frozen=True)
class Twins:
    """A sampler with twins, called as it is called without."""

    sampler: Sampler

    def __call__(self, net, keys, cond, null, size, *, record=False) -> Samples:
        stages, (height, width, channels) = self.sampler.stages, size

        def fields(index: int) -> Branches:
            shape = (len(keys), *stages[index].size(height, width), channels)
            return self.sampler.fields(index, net, cond, null, shape=shape)

        own = keyed_noise(keys, size, stages)
        twin_keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**31))(keys)
        twins = keyed_noise(twin_keys, size, stages)

        def fresh(index: int) -> Array:
            both = [one.fresh(index) for one in (own, twins)]
            return jnp.concatenate(both) if index else both[0]

        return follow(self.sampler, fields, own._replace(fresh=fresh), record=record)
