"""From tokens back to pixels."""

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from flax import nnx
from jax import Array

from pixelflow_jax.nn.layers import layer_normalise, linear, modulate
from pixelflow_jax.nn.patch import unpatchify
from pixelflow_jax.nn.precision import Precision

zeros = nnx.initializers.zeros


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
        nothing = {"init": zeros, "bias_init": zeros}
        self.norm = norm
        self.modulation = (
            linear(d, 2 * d, precision, rngs, **nothing) if modulated else None
        )
        outputs = model.patch**2 * model.channels
        self.linear = linear(d, outputs, precision, rngs, **nothing)

    def __call__(self, image: Array, tokens: Array, time: Array, cond: Array) -> Array:
        """Tokens [b, n, width], condition [b, width] to an image of `image`'s shape.

        All decoders are called alike; this one does not look at the time.
        """
        out = self.patches(tokens, cond)
        pixels = out.reshape(*out.shape[:2], self.patch**2, -1).astype(jnp.float32)
        return unpatchify(pixels, self.patch, *image.shape[1:3])

    def patches(self, tokens: Array, cond: Array) -> Array:
        """A patch's pixels (row, column, channel) for each token [b, n, ...]."""
        normal = self.norm(tokens).astype(tokens.dtype)
        if self.modulation is None:
            return self.linear(normal)
        shift, scale = jnp.split(self.modulation(cond)[:, None], 2, -1)
        return self.linear(modulate(normal, shift, scale))
