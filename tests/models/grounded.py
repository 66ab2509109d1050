"""A denoiser that looks at the noisy image through a frozen network.

A stand-in for a method that somebody else brings: one file, from the house's parts.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from pixelflow_jax.models import trunk
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    FrozenNetwork,
    Inputs,
    Labels,
    Output,
    Paper,
)
from pixelflow_jax.nn.block import Block, BlockConfig
from pixelflow_jax.nn.decoder import TokenDecoder
from pixelflow_jax.nn.embed import ClassEmbed, TimeEmbed, rotary_table
from pixelflow_jax.nn.layers import linear
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """A frozen linear map of a pixel's channels."""

    channels: int
    outputs: int

    def load(self) -> dict:
        """Its parameters."""
        shape = self.channels, self.outputs
        return {"kernel": np.linspace(-1, 1, np.prod(shape)).reshape(shape)}

    def shapes(self) -> dict:
        """The same as shapes."""
        shape = self.channels, self.outputs
        return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def __call__(self, params: dict, image: Array) -> Array:
        """Mean features [b, outputs] of images [b, h, w, c]; nothing learns here."""
        return jax.lax.stop_gradient(image.mean((1, 2)) @ params["kernel"])


@dataclasses.dataclass(kw_only=True)
class Grounded(DenoiserConfig):
    """Blocks modulated by time, class and what `Look` sees of the noisy image.

    `Condition.grounding`, bool [b], says for which images it looks.
    """

    paper: ClassVar[Paper] = Paper(
        title="A stand-in", url="https://example.org", bibtex="@misc{standin}"
    )
    num_classes: int = 10
    channels: int = 3
    patch: int = 4
    width: int = 32
    heads: int = 2
    depth: int = 4
    feature_layer: int = 2
    seen: int = 8
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def condition(self) -> Labels:
        """Classes."""
        return Labels(self.num_classes)

    def build(self, rngs: nnx.Rngs, precision: Precision) -> "GroundedModel":
        """The module."""
        return GroundedModel(self, rngs, precision)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of that size."""
        return trunk.problems(self, height, width, also=("num_classes", "seen"))

    def flops(self, height: int, width: int) -> float:
        """Forward operations for one image, the blocks' not counted."""
        return 2.0 * trunk.embed_flops(self, height * width)

    def look(self) -> Look:
        """What it looks through."""
        return Look(channels=self.channels, outputs=self.seen)

    def frozen_networks(self) -> dict[str, FrozenNetwork]:
        """What it looks through, by name."""
        return {"look": self.look()}


class GroundedModel(nnx.Module):
    """The denoiser (`models.interface.Denoiser`)."""

    def __init__(self, config: Grounded, rngs: nnx.Rngs, precision: Precision):
        d, self.patch = config.width, config.patch
        self.look, self.head_width = config.look(), d // config.heads
        self.dtype = precision.dtype
        self.patch_embed = trunk.patch_linear(config, d, rngs, precision)
        self.time_embed = TimeEmbed(d, 10.0, precision, rngs)
        self.class_embed = ClassEmbed(config.num_classes, d, rngs)
        self.ground = linear(config.seen, d, precision, rngs)
        sizes = BlockConfig(width=d, heads=config.heads, hidden=2 * d)

        def block(rngs: nnx.Rngs) -> Block:
            return Block(sizes, precision, rngs)

        self.early, self.late = trunk.make_stacks(config, block, rngs)
        self.decoder = TokenDecoder(config, rngs, precision)

    def __call__(
        self,
        batch: tuple[Inputs, ...],
        *,
        key: Array | None = None,
        pre: tuple[Array, ...] | None = None,
        frozen_params: dict | None = None,
    ) -> Output:
        """Prediction for times in [0, 1] and labels in [0, num_classes].

        Raises ValueError without the parameters of what it looks through.
        """
        if not frozen_params or "look" not in frozen_params:
            raise ValueError(
                "This model looks through a frozen network: give frozen_params['look']."
            )
        total = []
        for known, inputs in zip(pre or self.precompute(batch), batch, strict=True):
            seen = self.ground(self.look(frozen_params["look"], inputs.image))
            total.append(known + seen * inputs.cond.grounding[:, None])
        stacks, images = (self.early, self.late), trunk.images_of(batch)
        cond = trunk.modulating(tuple(total), self.dtype)
        made = trunk.precompute(tuple(total), cond, stacks)
        tokens, features = trunk.run_stacks(stacks, self.embed(images), made)
        return Output(trunk.decode(self.decoder, images, tokens, made), features)

    def precompute(self, batch: tuple[Inputs, ...]) -> tuple[Array, ...]:
        """The sum of what does not look at the image."""
        return tuple(
            self.time_embed(inputs.timestep)
            + self.class_embed(trunk.labels_of(inputs.cond))
            for inputs in batch
        )

    def embed(self, images: trunk.Images) -> trunk.Tokens:
        """The embedded patches."""
        table = functools.partial(rotary_table, head_width=self.head_width, extent=16.0)
        x = trunk.pack_images(images, self.patch, self.dtype, table)
        return x._replace(array=self.patch_embed(x.array))
