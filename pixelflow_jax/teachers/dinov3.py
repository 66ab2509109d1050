"""DINOv3 (Simeoni et al. 2025), frozen: what PixelDiT2 looks at its images through.

A vision transformer like DINOv2's, with four registers and rotary positions in the
place of learnt ones. Its weights have a licence of their own, which the user accepts.
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.nn.attention import attend
from pixelflow_jax.nn.embed import rotate_halves
from pixelflow_jax.nn.kernels.choice import Attention
from pixelflow_jax.nn.layers import gated, layer_normalise, split_heads
from pixelflow_jax.nn.patch import patchify
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig, layers_of, run_layers
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import CHANNELS, Geometry
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.layouts import leading, patch_convolution
from pixelflow_jax.tensors.locate import Origin, load
from pixelflow_jax.tensors.mapping import Row, linear_rows, norm_rows, stacked_rows
from pixelflow_jax.values import Natural, Pixels, Place

EPS = 1e-5  # of its layer norms
THETA = 100.0  # the rotary embedding's longest wave, in half images
IGNORED = r"embeddings\.mask_token"  # it stood for patches hidden in training
VARIANTS = {
    "vits16": Geometry(width=384, heads=6, depth=12, patch=16),
    "vitb16": Geometry(width=768, heads=12, depth=12, patch=16),
    "vitl16": Geometry(width=1024, heads=16, depth=24, patch=16),
}


@dataclasses.dataclass(kw_only=True)
class DinoV3:
    """A frozen DINOv3 without gates; `weights` names its file (see `tensors.locate`).

    `variant` is one of the published sizes, `geometry` any other in its place, whose
    `grid` means nothing here. Images are prepared as `DinoV2` prepares them: each of
    their squares of `base_patch` pixels becomes one of the network's patches.
    """

    variant: Place = "vits16"
    geometry: Geometry | None = None
    registers: Natural = 4
    weights: Place = ""
    base_patch: Pixels = 16
    attention: Attention = "auto"
    precision: Precision = dataclasses.field(default_factory=Precision)
    stack: StackConfig = dataclasses.field(default_factory=StackConfig)

    @property
    def sizes(self) -> Geometry:
        """The network's sizes."""
        return self.geometry or VARIANTS[self.variant]

    @property
    def width(self) -> int:
        """The width of its features."""
        return self.sizes.width

    @property
    def _plain(self) -> DinoV2:
        """What prepares images of the same patches."""
        return DinoV2(geometry=self.sizes, base_patch=self.base_patch)

    def problems(self, height: int, width: int) -> list[str]:
        """What is wrong with this config for images of that size."""
        if self.geometry is None and self.variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            return [f"variant={self.variant!r} is not one of {known}: set geometry"]
        if self.sizes.gated or self.sizes.width % (4 * self.sizes.heads):
            return [
                "geometry of DINOv3 must be without gates (gated=False), its heads of "
                "a multiple of 4 channels"
            ]
        return self._plain.problems(height, width)

    def load(self, field: str = "model.encoder.weights") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Understands the names of transformers' DINOv3ViTModel, in which the weights are
        published. Raises WeightsError, which names the config `field`, for absent,
        unreadable or other weights.
        """
        size = self.variant if self.geometry is None else "of the given geometry"
        source = (
            f"hf://facebook/dinov3-{self.variant}-pretrain-lvd1689m, whose licence is "
            "to be accepted there"
        )
        return load(
            self.weights,
            Origin(f"DINOv3 {size}", source, field),
            lambda names: table(self.sizes, self.registers, names),
            precision=self.precision,
            ignored=IGNORED,
        )

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        return mapping.shapes(table(self.sizes, self.registers), self.precision)

    def prepared(self, images: Array) -> Array:
        """Images [b, h, w, 3] in [-1, 1] as the network sees them: [b, H, W, 3]."""
        return self._plain.prepared(images)

    def features(
        self, params: dict, images: Array, layers: tuple[int, ...] = (-1,)
    ) -> dict[int, Array]:
        """Patch tokens behind the last block, float32 [b, n, width], by its number -1.

        `images` [b, h, w, 3] in [-1, 1]. Gradients reach the images, never the
        parameters. Raises ValueError for other blocks.
        """
        if set(layers) != {-1}:
            raise ValueError(f"DINOv3 gives its last block alone, -1, not {layers}.")
        params = self.precision.cast(jax.lax.stop_gradient(params))
        with jax.default_matmul_precision(self.precision.matmul):
            images = self.prepared(images)
            x, rope = self._embedded(params, images)
            blocks = params["blocks"]
            run = blocks if self.stack.scan else layers_of(blocks)
            block = lambda layer, x: self._block(layer, x, rope)
            x = run_layers(block, run, x, self.stack)
            x = _norm(params["norm"], x.astype(jnp.float32))
        return {-1: x[:, 1 + self.registers :]}

    def _embedded(self, params: dict, images: Array) -> tuple[Array, tuple]:
        """Class token, registers and patches of prepared images, and their rotations.

        All but the patches stay where they are.
        """
        b, height, width, _ = images.shape
        patch, dtype = self.sizes.patch, self.precision.dtype
        patches = patchify(images.astype(dtype), patch)
        tokens = _linear(params["patch_embed"], patches.reshape(*patches.shape[:2], -1))
        front = [params["cls"], params["registers"]] if self.registers else []
        front = jnp.concatenate(front or [params["cls"]]).astype(dtype)
        front = jnp.broadcast_to(front, (b, *front.shape))
        head = self.sizes.width // self.sizes.heads
        cos, sin = rotary_angles(height // patch, width // patch, head)
        still = ((1 + self.registers, 0), (0, 0))
        rope = np.pad(cos, still, constant_values=1), np.pad(sin, still)
        return jnp.concatenate([front, tokens], 1), rope

    def _block(self, params: dict, x: Array, rope: tuple) -> Array:
        """Attention and MLP before which x is normalised, [b, n, width]."""
        own, heads = params["attention"], self.sizes.heads
        z = _norm(params["norm1"], x)
        q, k, v = jnp.split(z @ own["qkv"]["kernel"], 3, -1)  # keys have no bias
        q, v = (a + own[n]["bias"].astype(a.dtype) for a, n in ((q, "q"), (v, "v")))
        q, k, v = (split_heads(part, heads) for part in (q, k, v))
        q, k = (rotate_halves(part, *rope) for part in (q, k))
        mixed = attend(q, k, v, implementation=self.attention).reshape(x.shape)
        x = gated(x, params["scale1"], _linear(own["out"], mixed))
        hidden = _linear(params["mlp"]["up"], _norm(params["norm2"], x))
        active = jax.nn.gelu(hidden.astype(jnp.float32), approximate=False)
        out = _linear(params["mlp"]["down"], active.astype(hidden.dtype))
        return gated(x, params["scale2"], out)


def rotary_angles(rows: int, columns: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [rows * columns, head / 2] for patches' centres in (-1, 1).

    Of a head's pairs the first half turns by the row and the second by the column,
    each by 2 pi times the place times 100^(-4 k / head).
    """
    y, x = (
        2 * np.arange(0.5, n, dtype=np.float32) / np.float32(n) - 1
        for n in (rows, columns)
    )
    w = THETA ** -np.arange(0, 1, 4 / head, dtype=np.float32)
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = (np.float32(2 * np.pi) * grid * w).reshape(rows * columns, head // 2)
    return np.cos(angles), np.sin(angles)


def table(geometry: Geometry, registers: int, names: Iterable[str] = ()) -> list[Row]:
    """How our parameters are made of transformers' weights, of either of its layouts.

    `names` are those of the file, which tell the layout.
    """
    d, patch, hidden = geometry.width, geometry.patch, geometry.hidden
    block = [
        *norm_rows("norm1", "norm1", d),
        Row("scale1", "layer_scale1.lambda1", shape=(d,)),
        *norm_rows("norm2", "norm2", d),
        Row("scale2", "layer_scale2.lambda1", shape=(d,)),
        *linear_rows(
            "attention/qkv",
            tuple(f"attention.{part}_proj" for part in "qkv"),
            bias=False,
            shape=(d, d),
        ),
        *(
            Row(f"attention/{part}/bias", f"attention.{part}_proj.bias", shape=(d,))
            for part in "qv"
        ),
        *linear_rows("attention/out", "attention.o_proj", shape=(d, d)),
        *linear_rows("mlp/up", "mlp.up_proj", shape=(hidden, d)),
        *linear_rows("mlp/down", "mlp.down_proj", shape=(d, hidden)),
    ]
    newer = any(name.startswith("model.") for name in names)
    layer = "model.layer.{i}." if newer else "layer.{i}."
    embeddings = "embeddings."
    rows = [
        Row("cls", f"{embeddings}cls_token", leading, shape=(1, 1, d)),
        *linear_rows(
            "patch_embed",
            f"{embeddings}patch_embeddings",
            layout=patch_convolution(CHANNELS, patch),
            shape=(d, CHANNELS, patch, patch),
        ),
        *norm_rows("norm", "norm", d),
        *stacked_rows(block, "blocks/", layer, geometry.depth),
    ]
    if registers:
        shape = (1, registers, d)
        name = f"{embeddings}register_tokens"
        rows.append(Row("registers", name, leading, shape=shape))
    return rows


def _linear(params: dict, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"].astype(x.dtype)


def _norm(params: dict, x: Array) -> Array:
    """Layer norm, float32 inside, x's type outside."""
    x32 = layer_normalise(x, EPS) * params["weight"] + params["bias"]
    return x32.astype(x.dtype)
