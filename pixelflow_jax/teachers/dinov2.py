"""DINOv2 (Oquab et al. 2023), frozen: the features of REPA and P-DINO."""

import dataclasses
import functools
import typing
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.activations import gelu
from pixelflow_jax.nn.attention import attend, cudnn_fits
from pixelflow_jax.nn.kernels.choice import Attention, is_half_on_gpu
from pixelflow_jax.nn.layers import gated, layer_normalise, split_heads
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig, layers_of, run_layers
from pixelflow_jax.teachers.dinov2_table import (
    IGNORED,
    SIZES,
    VARIANTS,
    Geometry,
    of_transformers,
    table,
)
from pixelflow_jax.teachers.resize import bicubic, enlarge, resample, size_at_least
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.locate import Origin, load
from pixelflow_jax.values import OptionalWidth, Pixels, Place

# Of ImageNet's pixels in [0, 1].
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
WHOLE_TOKENS = 16  # padded to a multiple; products like their rows in tiles

Position = Literal["hub", "transformers"]


class Interpolation(NamedTuple):
    """How position embeddings reach another grid than the trained one.

    `offset` is added to the new grid's size where it sets the scale of coordinates.
    """

    offset: float
    antialias: bool


class Tokens(NamedTuple):
    """What comes out behind a block, after the final norm, float32."""

    patches: Array  # [b, n, width]
    cls: Array  # [b, width]


@dataclasses.dataclass(kw_only=True)
class DinoV2:
    """A frozen DINOv2; `weights` names its file (see `tensors.locate`).

    `variant` is one of the published sizes, `geometry` any other size in its place;
    `registers` is 4 for the published networks with registers. Images, small ones
    enlarged (`smallest`), are resized so that each of their squares of `base_patch`
    pixels becomes one of the network's patches. Position embeddings are resized as
    torch.hub does (`position="hub"`: a tenth of a patch too wide; with registers
    antialiased and exact) or as transformers does ("transformers": exact; the two agree
    with registers).
    """

    variant: Place = "vitb14"
    geometry: Geometry | None = None
    registers: OptionalWidth = 0
    weights: Place = ""
    base_patch: Pixels = 16
    position: Position = "hub"
    attention: Attention = "auto"
    precision: Precision = dataclasses.field(default_factory=Precision)
    # remat="full" takes a quarter of the memory, and 3 % longer on an H100.
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def sizes(self) -> Geometry:
        """The network's sizes."""
        return self.geometry or VARIANTS[self.variant]

    @property
    def width(self) -> int:
        """The width of its features."""
        return self.sizes.width

    def load(self, field: str = "teachers.dino.weights") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Understands torch.hub's and transformers' names. Raises WeightsError, which
        names the config `field`, for absent, unreadable or other weights.
        """
        return load(
            self.weights,
            self._origin(field),
            lambda tensors: table(self.sizes, self.registers, of_transformers(tensors)),
            precision=self.precision,
            ignored=IGNORED,
        )

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        return mapping.shapes(table(self.sizes, self.registers), self.precision)

    def features(
        self, params: dict, images: Array, layers: tuple[int, ...] = (-1,)
    ) -> dict[int, Array]:
        """Patch tokens behind the given blocks, by the numbers given.

        `images` [b, h, w, 3] in [-1, 1]; blocks count from 0, or from the end if
        negative. Each is float32 [b, n, width] after the final norm, patches row by
        row: block -1 gives torch.hub's x_norm_patchtokens, any others its
        get_intermediate_layers. Gradients reach the images, never the parameters.
        """
        by_layer = self.tokens(params, images, layers)
        return {layer: tokens.patches for layer, tokens in by_layer.items()}

    def tokens(
        self, params: dict, images: Array, layers: tuple[int, ...] = (-1,)
    ) -> dict[int, Tokens]:
        """`features` with the class token's; computes nothing behind the last block."""
        params = self.precision.cast(jax.lax.stop_gradient(params))
        blocks = {layer: self._block_number(layer) for layer in layers}
        with jax.default_matmul_precision(self.precision.matmul):
            x = self.embedded(params, self.prepared(images))
            x, length = x.astype(self.precision.dtype), x.shape[1]
            x, block = self._padded(x), functools.partial(self._block, length)
            behind, start = {}, 0
            for end in sorted(set(blocks.values())):
                part = _between(params["blocks"], start, end + 1)
                run = part if self.stack.scan else layers_of(part)
                x = run_layers(block, run, x, self.stack)
                behind[end] = self._finished(params, x[:, :length])
                start = end + 1
        return {layer: behind[block] for layer, block in blocks.items()}

    def prepared(self, images: Array) -> Array:
        """Images [b, h, w, 3] in [-1, 1] as the network sees them: [b, H, W, 3].

        Enlarged where they are small, normalised with ImageNet's mean and deviation,
        then resized without a clamp.
        """
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"DINOv2 looks at RGB images [b, h, w, 3], not {images.shape}."
            )
        height, width = self._accepted((images.shape[1], images.shape[2]))
        images = enlarge(images, (height, width))
        normal = ((images.astype(jnp.float32) + 1) / 2 - MEAN) / STD
        size = self._resized(height, width)
        if size == (height, width):
            return normal
        return resample(normal, bicubic(height, size[0]), bicubic(width, size[1]))

    def embedded(self, params: dict, images: Array) -> Array:
        """Class token, registers and patches of prepared images [b, H, W, 3].

        Float32 [b, 1 + registers + n, width]; all but the registers have a position.
        """
        b, height, width, _ = images.shape
        patch = self.sizes.patch
        patches = patchify(images.astype(self.precision.dtype), patch)
        tokens = _linear(params["patch_embed"], patches.reshape(*patches.shape[:2], -1))
        positions = self.positions(params, height // patch, width // patch)
        tokens = tokens.astype(jnp.float32) + positions[1:]
        front = [params["cls"] + positions[:1]]
        if self.registers:
            front.append(params["registers"])
        front = jnp.concatenate(front)
        front = jnp.broadcast_to(front, (b, *front.shape))
        return jnp.concatenate([front, tokens], 1)

    def positions(self, params: dict, rows: int, columns: int) -> Array:
        """Position embeddings of class token and grid, [1 + rows * columns, width]."""
        trained, grid = params["positions"], self.sizes.grid
        if rows == columns == grid:
            return trained
        offset, antialias = self.interpolation

        def matrix(size: int) -> np.ndarray:
            scale = (size + offset) / grid if offset else None
            return bicubic(grid, size, scale, antialias)

        square = trained[1:].reshape(grid, grid, -1)
        resized = resample(square, matrix(rows), matrix(columns))
        return jnp.concatenate([trained[:1], resized.reshape(rows * columns, -1)])

    @property
    def smallest(self) -> int:
        """The pixels a side of two patches, to which smaller images are enlarged.

        Images of whole patches are taken as they are, be it a single one.
        """
        return 2 * self.base_patch

    @property
    def interpolation(self) -> Interpolation:
        """How position embeddings are resized."""
        antialias = self.registers > 0
        exact = antialias or self.position == "transformers"
        return Interpolation(0.0 if exact else 0.1, antialias)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of that size."""
        if self.geometry is None and self.variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            return [f"variant={self.variant!r} is not one of {known}: set geometry"]
        problems = self.sizes.problems()
        if self.registers < 0:
            problems.append(f"registers={self.registers} must not be negative")
        for name, kinds in (("position", Position), ("attention", Attention)):
            value, known = getattr(self, name), typing.get_args(kinds)
            if value not in known:
                problems.append(f"{name}={value!r} is not one of {', '.join(known)}")
        try:
            self.precision.check()
        except ValueError as error:
            problems.append(str(error))
        return problems or self._size_problems(height, width)

    def _size_problems(self, height: int, width: int) -> list[str]:
        if self.base_patch < 1:
            return [f"base_patch={self.base_patch} must be at least 1"]
        accepted = self._accepted((height, width))
        if self._is_whole(accepted):
            return []
        size = self._resized(*accepted)
        return [
            f"images of {height} x {width} become {size[0]} x {size[1]}, which patches "
            f"of {self.sizes.patch} do not divide: base_patch={self.base_patch} must "
            "divide the image size"
        ]

    def _accepted(self, size: tuple[int, int]) -> tuple[int, int]:
        """The height and width that images of a size have before they are resized."""
        return size if self._is_whole(size) else size_at_least(size, self.smallest)

    def _is_whole(self, size: tuple[int, int]) -> bool:
        """Whether images of a height and width, resized, are whole patches."""
        return all(n and n % self.sizes.patch == 0 for n in self._resized(*size))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        patch = self.sizes.patch
        return patch * height // self.base_patch, patch * width // self.base_patch

    def _block_number(self, layer: int) -> int:
        depth = self.sizes.depth
        if not -depth <= layer < depth:
            raise ValueError(
                f"DINOv2 has no block {layer}: its blocks are 0 to {depth - 1}, or "
                f"{-depth} to -1 from the end."
            )
        return layer % depth

    def _padded(self, x: Array) -> Array:
        """Tokens [b, n, width] with some behind them, where cuDNN wants an even number.

        Once for all blocks: queries, keys and values would be copied in each.
        """
        head = jax.ShapeDtypeStruct((x.shape[-1] // self.sizes.heads,), x.dtype)
        by_cudnn = {"auto": cudnn_fits(head), "cudnn": True}
        if x.shape[1] % 2 == 0 or not by_cudnn.get(self.attention):
            return x
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % WHOLE_TOKENS), (0, 0)))

    def _block(self, length: int, params: dict, x: Array) -> Array:
        """Attention and MLP before which x is normalised, [b, n, width].

        Tokens from `length` on are padding.
        """
        z = _norm(params["norm1"], x)
        qkv = checkpoint_name(_linear(params["attention"]["qkv"], z), "qkv")
        heads = self.sizes.heads
        q, k, v = (split_heads(part, heads) for part in jnp.split(qkv, 3, -1))
        padded = length if length < x.shape[1] else None
        mixed = attend(q, k, v, implementation=self.attention, length=padded)
        mixed = mixed.reshape(x.shape)
        x = gated(x, params["scale1"], _linear(params["attention"]["out"], mixed))
        x = checkpoint_name(x, "residual")
        hidden = _linear(params["mlp"]["up"], _norm(params["norm2"], x))
        hidden = checkpoint_name(hidden, "mlp_hidden")
        hidden = self._activated(hidden)
        return gated(x, params["scale2"], _linear(params["mlp"]["down"], hidden))

    def _activated(self, hidden: Array) -> Array:
        wide = hidden.astype(jnp.float32)
        if self.sizes.gated:
            gate, up = jnp.split(wide, 2, -1)
            return (jax.nn.silu(gate) * up).astype(hidden.dtype)
        if is_half_on_gpu(hidden.dtype):
            return gelu(wide).astype(hidden.dtype)
        return jax.nn.gelu(wide, approximate=False).astype(hidden.dtype)

    def _finished(self, params: dict, x: Array) -> Tokens:
        x = _norm(params["norm"], x.astype(jnp.float32))
        return Tokens(x[:, 1 + self.registers :], x[:, 0])

    def _origin(self, field: str) -> Origin:
        if self.geometry is not None:
            source = "in a file of torch.hub's or transformers' names"
            return Origin("a DINOv2 of the given geometry", source, field)
        name = f"dinov2_{self.variant}"
        suffix = f"_reg{self.registers}" if self.registers else ""
        kind = "-with-registers" if self.registers else ""
        hub = (
            f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}{suffix}_pretrain.pth"
        )
        source = f"{hub} or hf://facebook/dinov2{kind}-{SIZES[self.variant]}"
        return Origin(f"DINOv2 {self.variant}", source, field)


def _between(blocks: dict, start: int, end: int) -> dict:
    """The stacked blocks from `start` until before `end`."""
    return jax.tree.map(lambda a: a[start:end], blocks)


def _linear(params: dict, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"].astype(x.dtype)


def _norm(params: dict, x: Array) -> Array:
    """Layer norm, eps 1e-6, float32 inside, x's type outside."""
    x32 = layer_normalise(x) * params["weight"] + params["bias"]
    return x32.astype(x.dtype)
