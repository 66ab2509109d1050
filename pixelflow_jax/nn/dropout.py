"""Dropout as a function of keys: the mask of an image depends on its own key alone."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.nn.packing import Packing

KEEP_ALL = 2**24  # rates are multiples of 1 / KEEP_ALL


class DropoutKeys(NamedTuple):
    """One layer's dropout: a key an image, [b_i] a group, and whether it dropouts.

    `active` is a boolean scalar, or None where the layer dropouts for certain.
    """

    keys: tuple[Array, ...]
    active: Array | None = None


class Dropout(NamedTuple):
    """Drops elements of one group's [b_i, ...]: `dropout` with all but x given."""

    keys: Array
    rate: float
    active: Array | None

    def __call__(self, x: Array) -> Array:
        """x with elements dropped."""
        return dropout(x, self.rate, self.keys, self.active)


def layer_drops(
    key: Array, batches: tuple[int, ...], depth: int, layers: range
) -> list[DropoutKeys | None]:
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
        DropoutKeys(tuple(part[:, i] for part in parts)) if i in layers else None
        for i in range(depth)
    ]


def group_drops(
    drop: DropoutKeys | None, rate: float, place: int
) -> tuple[Dropout, ...] | None:
    """For each group a function that dropouts elements of [b_i, ...]; None: no dropout.

    `place` tells the uses of one layer's keys apart.
    """
    if drop is None or not rate:
        return None

    def one(keys: Array) -> Dropout:
        own = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
        return Dropout(own, rate, drop.active)

    return tuple(one(keys) for keys in drop.keys)


def drop_packed(
    tokens: Array, packing: Packing, dropouts: tuple[Dropout, ...] | None
) -> Array:
    """Packed tokens [rows, n, ...] with elements dropped, by a function a group."""
    if dropouts is None:
        return tokens
    pairs = zip(dropouts, packing.split(tokens), strict=True)
    return packing.join([drop(part) for drop, part in pairs])


def stacked_seeds(dropouts: tuple[Dropout, ...]) -> Array:
    """What a kernel needs to drop as `dropouts` of equal batches do.

    The two seeds of every image and how many of 2^24 elements are kept, int32 [b,
    groups, 3].
    """

    def one(drop: Dropout) -> Array:
        seeds = jax.random.key_data(drop.keys)
        ends = jnp.stack([seeds[:, 0], seeds[:, -1]], 1).astype(jnp.int32)
        keep = kept_of(drop.rate, drop.active)
        return jnp.concatenate([ends, jnp.full((len(ends), 1), keep, jnp.int32)], 1)

    return jnp.stack([one(drop) for drop in dropouts], 1)


def kept_of(rate: float, active: Array | None) -> Array:
    """How many of `KEEP_ALL` elements are kept, int32."""
    keep = jnp.int32(round((1 - rate) * KEEP_ALL))
    return keep if active is None else jnp.where(active, keep, jnp.int32(KEEP_ALL))


def dropout(x: Array, rate: float, keys: Array, active: Array | None = None) -> Array:
    """Zero elements of x [b, ...] with probability `rate`; divide the rest by 1 - rate.

    `keys` [b]; the rate is rounded to a multiple of 2^-24. Where `active` is False, x
    comes back. An element's fate is a hash of its number and of its image's key, so
    that no mask needs to be written to memory, or drawn ahead of its use.
    """
    keep = kept_of(rate, active)
    seeds = jax.random.key_data(keys).reshape(len(x), -1, *[1] * (x.ndim - 1))
    number = jax.lax.broadcasted_iota(jnp.uint32, (math.prod(x.shape[1:]),), 0)
    kept = survives(seeds[:, 0], seeds[:, -1], number.reshape(x.shape[1:]), keep)
    scaled = x.astype(jnp.float32) * (KEEP_ALL / keep.astype(jnp.float32))
    return jnp.where(kept, scaled, 0).astype(x.dtype)


def survives(one: Array, other: Array, number: Array, keep: Array) -> Array:
    """Whether the elements of these numbers are among the `keep` of `KEEP_ALL`."""
    return (hashed(one, other, number) >> 8).astype(jnp.int32) < keep


def hashed(one: Array, other: Array, number: Array) -> Array:
    """Bits, uint32, that depend on two seeds and a number, all uint32.

    Twice the finaliser of MurmurHash3 (Appleby), a seed before each.
    """
    bits = _mixed(number * np.uint32(0x9E3779B1) + one)
    return _mixed(bits ^ other)


def _mixed(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
