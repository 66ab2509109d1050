"""An MLP: from tokens to its last product, by a kernel or by separate operations."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.dropout import Dropout
from pixelflow_jax.nn.kernels import backends, choice
from pixelflow_jax.nn.kernels.activate_and_project import Kind, activate_and_project
from pixelflow_jax.nn.kernels.mosaic_gpu.activated_product import (
    Sizes,
    activated_product,
)
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.products import matmul
from pixelflow_jax.sharding import by_device, shard_count, tensor_shards

# Of all rounds of tiles; on 132 multiprocessors nothing was gained at 0.73.
BUSY = 0.75


class Layers(NamedTuple):
    """The matrices [inputs, outputs] and biases of an MLP, but for the last bias.

    `first` is one matrix (GELU), two (SwiGLU's gate and up), or these two side by side
    in one; `biases` are one for each of gate and up, or none.
    """

    first: tuple[Array, ...]
    biases: tuple[Array, ...]
    last: Array


def mlp(
    kind: Kind,
    x: Array,
    layers: Layers,
    packing: Packing,
    dropouts: tuple[Dropout, ...] | None = None,
) -> Array:
    """drop(activation(x @ first + biases)) @ last, without the last bias.

    Packed tokens [rows, n, width] to the same. While nobody asks for gradients, one
    kernel gives the hidden values from x on where it gains; else they are computed from
    products that the backward pass needs as well.
    """
    if dropouts is None and gains(kind, x, layers):
        return _fused((kind, packing), x, layers)
    return separate(kind, x, layers, packing, dropouts)


def separate(
    kind: Kind,
    x: Array,
    layers: Layers,
    packing: Packing,
    dropouts: tuple[Dropout, ...] | None = None,
) -> Array:
    """`mlp` as products and `activate_and_project`."""
    products = (matmul(x, matrix) for matrix in layers.first)
    named = tuple(checkpoint_name(product, "mlp_hidden") for product in products)
    given = named, layers.biases, layers.last
    return activate_and_project(kind, *given, packing, dropouts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(spec: tuple[Kind, Packing], x: Array, layers: Layers) -> Array:
    kind, count = spec[0], len(layers.first)

    def hidden(x: Array, *whole: Array) -> Array:
        tokens = x.reshape(-1, x.shape[-1])
        out = activated_product(kind, tokens, whole[:count], whole[count:])
        return out.reshape(*x.shape[:-1], -1)

    # Cast before they are gathered from all devices: half the bytes.
    first = (matrix.astype(x.dtype) for matrix in layers.first)
    whole = (*first, *layers.biases)
    return matmul(by_device(hidden, x, whole=whole), layers.last)


def _forward(spec: tuple[Kind, Packing], x: Array, layers: Layers) -> tuple:
    kind, packing = spec
    apart = lambda x, layers: separate(kind, x, layers, packing)
    return jax.vjp(apart, x, layers)


def _backward(
    spec: tuple[Kind, Packing], pull: Callable[[Array], tuple], cotangent: Array
) -> tuple:
    return pull(cotangent)


_fused.defvjp(_forward, _backward)


def gains(kind: Kind, x: Array, layers: Layers) -> bool:
    """Whether there is a Hopper GPU, and the kernel is known to gain.

    In bfloat16, where `kernels.blocks` is "auto" or "mosaic", and the last round of
    tiles leaves few multiprocessors without work. Where a batch does not divide over
    the devices, each would compute all of it.
    """
    asked = choice.chosen().blocks in ("auto", "mosaic")
    if not asked or x.dtype != jnp.bfloat16 or backends.missing_hopper():
        return False
    if tensor_shards() > 1 or x.shape[0] % shard_count():
        return False
    rows = x.shape[0] * x.shape[1] // shard_count()
    sizes = Sizes(kind, rows, x.shape[2], len(layers.last))
    return sizes.known and sizes.busy >= BUSY
