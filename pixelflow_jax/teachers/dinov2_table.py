"""DINOv2's sizes, and the official names and layouts of its weights."""

import dataclasses
from collections.abc import Iterable

from pixelflow_jax.tensors.layouts import leading, patch_convolution
from pixelflow_jax.tensors.mapping import Row, linear_rows, norm_rows, stacked_rows
from pixelflow_jax.values import Depth, Pixels, Positive, Width


@dataclasses.dataclass(kw_only=True)
class Geometry:
    """The sizes of a vision transformer of DINOv2's kind.

    `grid`: positions a side that it was trained with; `gated`: SwiGLU instead of GELU.
    """

    width: Width
    heads: Width
    depth: Depth
    mlp_ratio: Positive = 4.0
    gated: bool = False
    patch: Pixels = 14
    grid: Pixels = 37

    @property
    def hidden(self) -> int:
        """The MLP's width; gated, two thirds of it, rounded up to a multiple of 8."""
        hidden = int(self.width * self.mlp_ratio)
        return (int(hidden * 2 / 3) + 7) // 8 * 8 if self.gated else hidden

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        names = ("width", "heads", "depth", "patch", "grid")
        small = [f"{n}={getattr(self, n)}" for n in names if getattr(self, n) < 1]
        if small:
            return [f"geometry.{', '.join(small)} must be at least 1"]
        if self.width % self.heads:
            return [
                f"geometry.heads={self.heads} must divide geometry.width={self.width}"
            ]
        if self.hidden < 1:
            return [f"geometry.mlp_ratio={self.mlp_ratio} leaves no MLP"]
        return []


VARIANTS = {
    "vits14": Geometry(width=384, heads=6, depth=12),
    "vitb14": Geometry(width=768, heads=12, depth=12),
    "vitl14": Geometry(width=1024, heads=16, depth=24),
    "vitg14": Geometry(width=1536, heads=24, depth=40, gated=True),
}
# What a repository of transformers' weights is called.
SIZES = {"vits14": "small", "vitb14": "base", "vitl14": "large", "vitg14": "giant"}

CHANNELS = 3  # of the images
# Transformers' names for torch.hub's; it keeps queries, keys and values apart.
TRANSFORMERS = {
    "cls_token": "embeddings.cls_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "blocks.{i}.norm1": "encoder.layer.{i}.norm1",
    "blocks.{i}.attn.qkv": "encoder.layer.{i}.attention.attention.{part}",
    "blocks.{i}.attn.proj": "encoder.layer.{i}.attention.output.dense",
    "blocks.{i}.ls1.gamma": "encoder.layer.{i}.layer_scale1.lambda1",
    "blocks.{i}.norm2": "encoder.layer.{i}.norm2",
    "blocks.{i}.mlp.fc1": "encoder.layer.{i}.mlp.fc1",
    "blocks.{i}.mlp.fc2": "encoder.layer.{i}.mlp.fc2",
    "blocks.{i}.mlp.w12": "encoder.layer.{i}.mlp.weights_in",
    "blocks.{i}.mlp.w3": "encoder.layer.{i}.mlp.weights_out",
    "blocks.{i}.ls2.gamma": "encoder.layer.{i}.layer_scale2.lambda1",
}
PARTS = ("query", "key", "value")
IGNORED = r"(embeddings\.)?mask_token"  # it stood for patches hidden in training


def of_transformers(names: Iterable[str]) -> bool:
    """Whether weights of these names were saved by transformers, not by torch.hub."""
    return any(name.startswith(("embeddings.", "encoder.")) for name in names)


def table(geometry: Geometry, registers: int, transformers: bool = False) -> list[Row]:
    """How our parameters are made of torch.hub's or of transformers' weights."""
    d, patch, grid = geometry.width, geometry.patch, geometry.grid
    rows = [
        Row("cls", "cls_token", leading, shape=(1, 1, d)),
        Row("positions", "pos_embed", leading, shape=(1, 1 + grid**2, d)),
        *linear_rows(
            "patch_embed",
            "patch_embed.proj",
            layout=patch_convolution(CHANNELS, patch),
            shape=(d, CHANNELS, patch, patch),
        ),
        *norm_rows("norm", "norm", d),
        *stacked_rows(_block(geometry), "blocks/", "blocks.{i}.", geometry.depth),
    ]
    if registers:
        shape = (1, registers, d)
        rows.append(Row("registers", "register_tokens", leading, shape=shape))
    return [_renamed(row) for row in rows] if transformers else rows


def _block(geometry: Geometry) -> list[Row]:
    d, hidden = geometry.width, geometry.hidden
    first, last = ("w12", "w3") if geometry.gated else ("fc1", "fc2")
    up = 2 * hidden if geometry.gated else hidden
    return [
        *norm_rows("norm1", "norm1", d),
        Row("scale1", "ls1.gamma", shape=(d,)),
        *norm_rows("norm2", "norm2", d),
        Row("scale2", "ls2.gamma", shape=(d,)),
        *linear_rows("attention/qkv", "attn.qkv", shape=(3 * d, d)),
        *linear_rows("attention/out", "attn.proj", shape=(d, d)),
        *linear_rows("mlp/up", f"mlp.{first}", shape=(up, d)),
        *linear_rows("mlp/down", f"mlp.{last}", shape=(d, hidden)),
    ]


def _renamed(row: Row) -> Row:
    """The row with transformers' name, or names."""
    (name,) = row.names()
    stem, _, last = name.rpartition(".")
    theirs = TRANSFORMERS.get(name) or f"{TRANSFORMERS[stem]}.{last}"
    if "{part}" not in theirs or row.shape is None:
        return dataclasses.replace(row, theirs=theirs)
    names = tuple(theirs.replace("{part}", part) for part in PARTS)
    shape = (row.shape[0] // len(PARTS), *row.shape[1:])
    return dataclasses.replace(row, theirs=names, shape=shape)
