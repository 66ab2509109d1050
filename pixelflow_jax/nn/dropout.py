"""Dropout as a function of keys: the mask of an image depends on its own key alone."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Key, UInt32

from pixelflow_jax.nn.packing import Packing

KEEP_ALL = 2**24  # rates are multiples of 1 / KEEP_ALL


class DropoutKeys(NamedTuple):
    """One layer's dropout: a key an image, [b_i] a group, and whether it drops at all.

    `active` is a boolean scalar, or None where the layer drops for certain.
    """

    keys: tuple[Array, ...]
    active: Array | None = None


class Dropout(NamedTuple):
    """Drops elements of one group's [b_i, ...]: `dropout` with all but x given."""

    keys: Array
    rate: float
    active: Array | None

    def __call__(self, x: Float[Array, " b *rest"]) -> Float[Array, " b *rest"]:
        """x with elements dropped."""
        return dropout(x, self.rate, self.keys, self.active)


def layer_dropout_keys(
    key: Key[Array, "*images"], batches: tuple[int, ...], depth: int, layers: range
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
    of_layers = jax.vmap(lambda key: jax.random.split(key, depth))(keys)
    ends = [sum(batches[: i + 1]) for i in range(len(batches))]
    groups = [of_layers[end - b : end] for b, end in zip(batches, ends, strict=True)]
    return [
        DropoutKeys(tuple(group[:, i] for group in groups)) if i in layers else None
        for i in range(depth)
    ]


def group_dropouts(
    drop: DropoutKeys | None, rate: float, place: int
) -> tuple[Dropout, ...] | None:
    """For each group a function that drops elements of [b_i, ...]; None: no dropout.

    `place` tells the uses of one layer's keys apart.
    """
    if drop is None or not rate:
        return None

    def of_group(keys: Array) -> Dropout:
        at_place = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
        return Dropout(at_place, rate, drop.active)

    return tuple(map(of_group, drop.keys))


def drop_packed(
    tokens: Float[Array, "rows n *rest"],
    packing: Packing,
    dropouts: tuple[Dropout, ...] | None,
) -> Float[Array, "rows n *rest"]:
    """Packed tokens with elements dropped, by a function a group."""
    if dropouts is None:
        return tokens
    pairs = zip(dropouts, packing.split(tokens), strict=True)
    return packing.join([drop(part) for drop, part in pairs])


def stacked_seeds(dropouts: tuple[Dropout, ...]) -> Int[Array, "b groups 3"]:
    """What a kernel needs to drop as `dropouts` of equal batches do.

    The two seeds of every image and how many of 2^24 elements are kept, int32.
    """

    def of_group(drop: Dropout) -> Array:
        seeds = jax.random.key_data(drop.keys)
        ends = jnp.stack([seeds[:, 0], seeds[:, -1]], 1).astype(jnp.int32)
        keep = kept_count(drop.rate, drop.active)
        return jnp.concatenate([ends, jnp.full((len(ends), 1), keep, jnp.int32)], 1)

    return jnp.stack([of_group(drop) for drop in dropouts], 1)


def kept_count(rate: float, active: Bool[Array, ""] | None) -> Int[Array, ""]:
    """How many of `KEEP_ALL` elements are kept, int32."""
    keep = jnp.int32(round((1 - rate) * KEEP_ALL))
    return keep if active is None else jnp.where(active, keep, jnp.int32(KEEP_ALL))


def dropout(
    x: Float[Array, " b *rest"],
    rate: float,
    keys: Key[Array, " b"],
    active: Bool[Array, ""] | None = None,
) -> Float[Array, " b *rest"]:
    """Zero elements of x with probability `rate`; divide the rest by 1 - rate.

    The rate is rounded to a multiple of 2^-24. Where `active` is False, x comes back.
    An element's fate is a hash of its number and of its image's key, so that no mask
    needs to be written to memory, or drawn ahead of its use.
    """
    keep = kept_count(rate, active)
    seeds = jax.random.key_data(keys).reshape(len(x), -1, *[1] * (x.ndim - 1))
    number = jax.lax.broadcasted_iota(jnp.uint32, (math.prod(x.shape[1:]),), 0)
    kept = survives(seeds[:, 0], seeds[:, -1], number.reshape(x.shape[1:]), keep)
    scaled = x.astype(jnp.float32) * (KEEP_ALL / keep.astype(jnp.float32))
    return jnp.where(kept, scaled, 0).astype(x.dtype)


def survives(
    seed1: UInt32[Array, "..."],
    seed2: UInt32[Array, "..."],
    number: UInt32[Array, "..."],
    keep: Int[Array, ""],
) -> Bool[Array, "..."]:
    """Whether the elements of these numbers are among the `keep` of `KEEP_ALL`."""
    return (hash_bits(seed1, seed2, number) >> 8).astype(jnp.int32) < keep


def hash_bits(
    seed1: UInt32[Array, "..."],
    seed2: UInt32[Array, "..."],
    number: UInt32[Array, "..."],
) -> UInt32[Array, "..."]:
    """Bits that depend on two seeds and a number.

    Twice the finaliser of MurmurHash3 (Appleby), a seed before each.
    """
    bits = _mixed(number * np.uint32(0x9E3779B1) + seed1)
    return _mixed(bits ^ seed2)


def _mixed(bits: Array) -> Array:
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
