"""Dropout as a function of keys: the mask of an image depends on its own key alone."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.nn.packing import Packing

Drop = Callable[[Array], Array]


class Dropping(NamedTuple):
    """One layer's dropout: a key an image, [b_i] a group, and whether it drops.

    `active` is a boolean scalar, or None where the layer drops for certain.
    """

    keys: tuple[Array, ...]
    active: Array | None = None


def layer_drops(
    key: Array, batches: tuple[int, ...], depth: int, layers: range
) -> list[Dropping | None]:
    """Dropout of each of `depth` layers; None for those that are not in `layers`.

    `key` is one key an image, [sum(batches)] in the order of the groups, or a single
    one from which those are split. Masks then depend on the image's key, the layer and
    the place in it: not on other images, groups or devices, nor on how a network's
    layers are divided into stacks.
    """
    images = sum(batches)
    keys = key if key.ndim else jax.random.split(key, images)
    if keys.shape != (images,):
        raise ValueError(
            f"Dropout needs one key, or one for each of {images} images, not keys of "
            f"shape {keys.shape}."
        )
    own = jax.vmap(lambda key: jax.random.split(key, depth))(keys)  # [images, depth]
    ends = [sum(batches[: i + 1]) for i in range(len(batches))]
    parts = [own[end - b : end] for b, end in zip(batches, ends, strict=True)]
    return [
        Dropping(tuple(part[:, i] for part in parts)) if i in layers else None
        for i in range(depth)
    ]


def group_drops(
    drop: Dropping | None, rate: float, place: int
) -> tuple[Drop, ...] | None:
    """For each group a function that drops elements of [b_i, ...]; None: no dropout.

    `place` tells the uses of one layer's keys apart.
    """
    if drop is None or not rate:
        return None

    def one(keys: Array) -> Drop:
        own = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
        return lambda x: dropout(x, rate, own, drop.active)

    return tuple(one(keys) for keys in drop.keys)


def packed_drop(
    drop: Dropping | None, rate: float, place: int, packing: Packing
) -> Drop | None:
    """A function that drops elements of packed tokens [rows, n, ...], or None."""
    groups = group_drops(drop, rate, place)
    if groups is None:
        return None

    def apply(tokens: Array) -> Array:
        pairs = zip(groups, packing.split(tokens), strict=True)
        return packing.join([one(part) for one, part in pairs])

    return apply


def dropout(x: Array, rate: float, keys: Array, active: Array | None = None) -> Array:
    """Zero elements of x [b, ...] with probability `rate`; divide the rest by 1 - rate.

    `keys` [b]. Where `active` is False, x comes back and no random bits are drawn.
    """
    keep = 1 - rate

    def draw() -> Array:
        one = lambda key: jax.random.bernoulli(key, keep, x.shape[1:])
        return jax.vmap(one)(keys)

    if active is None:
        kept, scale = draw(), 1 / keep
    else:
        kept = jax.lax.cond(active, draw, lambda: jnp.ones(x.shape, bool))
        scale = jnp.where(active, 1 / keep, 1.0)
    scaled = x.astype(jnp.float32) * scale
    return jnp.where(kept, scaled, 0).astype(x.dtype)
