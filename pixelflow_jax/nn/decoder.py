"""From tokens back to pixels."""

import functools
from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jaxtyping import Float

from pixelflow_jax.nn.layers import layer_normalise, linear, modulate, zeros
from pixelflow_jax.nn.patch import unpatchify
from pixelflow_jax.nn.precision import Precision


class Patches(Protocol):
    """The width of a model's tokens, and the patches they stand for."""

    width: int
    patch: int
    channels: int


class TokenDecoder(nnx.Module):
    """A norm, modulated by the condition, and a linear layer to each patch's pixels.

    `norm` maps [..., width] to the same; where it is a module, its parameters are the
    decoder's. The modulation, left out unless `modulated`, and the linear layer begin
    as zero.
    """

    def __init__(
        self,
        model: Patches,
        rngs: nnx.Rngs,
        precision: Precision,
        norm: Callable[[Array], Array] = layer_normalise,
        *,
        modulated: bool = True,
    ):
        d, self.patch = model.width, model.patch
        layer = functools.partial(
            linear, precision=precision, rngs=rngs, init=zeros, bias_init=zeros
        )
        self.norm = norm
        self.modulation = layer(d, 2 * d) if modulated else None
        self.linear = layer(d, model.patch**2 * model.channels)

    def __call__(
        self,
        image: Float[Array, "b h w channels"],
        tokens: Float[Array, "b n width"],
        time: Float[Array, "b width"],
        cond: Float[Array, "b width"],
    ) -> Float[Array, "b h w channels"]:
        """The image that the tokens stand for, float32, in the shape of `image`.

        All decoders are called alike; this one does not look at the time.
        """
        out = self.patches(tokens, cond)
        pixels = out.reshape(*out.shape[:2], self.patch**2, -1).astype(jnp.float32)
        return unpatchify(pixels, self.patch, *image.shape[1:3])

    def patches(
        self, tokens: Float[Array, "b n width"], cond: Float[Array, "b width"]
    ) -> Float[Array, "b n numbers"]:
        """The numbers of a patch's pixels (row, column, channel), a row a token."""
        normal = self.norm(tokens).astype(tokens.dtype)
        if self.modulation is None:
            return self.linear(normal)
        shift, scale = jnp.split(self.modulation(cond)[:, None], 2, -1)
        return self.linear(modulate(normal, shift, scale))
