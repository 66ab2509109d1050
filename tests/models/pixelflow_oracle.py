"""PixelFlow's formulas in float64 numpy, and small configs with weights to try them."""

import dataclasses
import re

import jax
import numpy as np

from pixelflow_jax.convert import pixelflow
from pixelflow_jax.models.interface import Condition, network
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.tensors import mapping as tables

EXACT = Precision(compute="float32", matmul="highest")
CLASS = PixelFlow(
    num_classes=5,
    patch=2,
    width=24,
    heads=2,
    depth=2,
    feature_layer=1,
    stack=StackConfig(remat="none"),
)
TEXT = dataclasses.replace(CLASS, num_classes=0, text_width=10)
# One block, without biases in its attention.
BOTH = dataclasses.replace(CLASS, depth=1, text_width=10, attention_bias=False)
CONFIGS = {"class": CLASS, "text": TEXT, "both": BOTH}


def normal(seed: int, *shape: int) -> np.ndarray:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return draws.astype(np.float32)


def official(config: PixelFlow) -> dict[str, np.ndarray]:
    """Official weights that leave no layer without effect."""
    shapes = network(config, EXACT).shapes()
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), shapes)
    weights = {}
    for i, (key, value) in enumerate(
        tables.export(pixelflow.table(config), zeros).items()
    ):
        z = normal(i, *value.shape)
        if re.search(r"norm\d?\.weight$", key):
            weights[key] = 1 + np.float32(0.3) * z
        else:
            scale = 0.3 if z.ndim == 1 else z[0].size ** -0.5
            weights[key] = np.float32(scale) * z
    return weights


def condition(
    config: PixelFlow, batch: int, length: int = 4, seed: int = 9
) -> Condition:
    """Labels, the null class among them, and text with a hole in its mask."""
    fields = {}
    if config.num_classes:
        fields["labels"] = (seed + 2 * np.arange(batch)) % (config.num_classes + 1)
    if config.text_width:
        text = normal(seed, batch, length, config.text_width)
        mask = np.ones((batch, length), bool)
        mask[0, 1:3] = False
        fields |= {"text": text, "mask": mask}
    return Condition(**fields)


class Oracle:
    """The official model in float64 numpy, written from its formulas, for one group."""

    def __init__(self, config: PixelFlow, weights: dict[str, np.ndarray]):
        self.config = config
        self.w = {k: v.astype(np.float64) for k, v in weights.items()}

    def __call__(self, image, timestep, cond: Condition) -> np.ndarray:
        p, heads = self.config.patch, self.config.heads
        b, height, width, c = image.shape
        rows, columns = height // p, width // p
        self.angles = self.positions(rows, columns, self.config.width // heads)
        cut = image.astype(np.float64).reshape(b, rows, p, columns, p, c)
        x = np.einsum("brisjc,dcij->brsd", cut, self.w["patch_embed.proj.weight"])
        x = x.reshape(b, rows * columns, -1) + self.w["patch_embed.proj.bias"]
        vector = self.vector(np.asarray(timestep, np.float64), columns, cond)
        for i in range(self.config.depth):
            x = self.block(f"transformer_blocks.{i}", x, vector, cond)
        shift, scale = np.split(self.linear(vector, "proj_out_1"), 2, -1)
        x = self.linear(layer_norm(x) * (1 + scale) + shift, "proj_out_2")
        out = x.reshape(b, rows, columns, p, p, c)
        return out.transpose(0, 1, 3, 2, 4, 5).reshape(image.shape)

    def linear(self, x, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0)

    def vector(self, timestep, columns: int, cond: Condition) -> np.ndarray:
        """SiLU of the sum of time, size and class embeddings: [b, 1, d]."""
        total = self.number(timestep, "timestep_embedder")
        total = total + self.number(np.array([columns]), "latent_size_embedder")
        if cond.labels is not None:
            table = self.w["class_embedder.embedding_table.weight"]
            total = total + table[np.asarray(cond.labels)]
        return silu(total)[:, None]

    def number(self, v, name: str) -> np.ndarray:
        angles = v[:, None] * 10000 ** (-np.arange(128) / 127)
        waves = np.concatenate([np.cos(angles), np.sin(angles)], -1)
        hidden = silu(self.linear(waves, f"{name}.linear_1"))
        return self.linear(hidden, f"{name}.linear_2")

    def block(self, name: str, x, vector, cond: Condition) -> np.ndarray:
        modulation = self.linear(vector, f"{name}.norm1.linear")
        shift1, scale1, gate1, shift2, scale2, gate2 = np.split(modulation, 6, -1)
        z = layer_norm(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(f"{name}.attn1", z, z)
        if cond.text is not None:
            z = self.rms_norm(x, f"{name}.norm2")
            text, mask = np.asarray(cond.text, np.float64), np.asarray(cond.mask)
            x = x + self.attention(f"{name}.attn2", z, text, mask)
        z = self.rms_norm(x, f"{name}.norm3") * (1 + scale2) + shift2
        hidden = self.linear(z, f"{name}.mlp.fc1")
        inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
        hidden = 0.5 * hidden * (1 + np.tanh(inner))
        return x + gate2 * self.linear(hidden, f"{name}.mlp.fc2")

    def rms_norm(self, x, name: str) -> np.ndarray:
        rms = np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
        return x / rms * self.w[f"{name}.weight"]

    def attention(self, name: str, x, source, mask=None) -> np.ndarray:
        """Queries of x meet keys of `source`; only keys of x itself are rotated."""
        q = self.rms_norm(self.linear(x, f"{name}.q_proj"), f"{name}.q_norm")
        k = self.rms_norm(self.linear(source, f"{name}.k_proj"), f"{name}.k_norm")
        v = self.linear(source, f"{name}.v_proj")
        split = lambda a: a.reshape(*a.shape[:2], self.config.heads, -1)
        q, k, v = self.turn(split(q)), split(k), split(v)
        k = k if mask is not None else self.turn(k)
        logits = np.einsum("bnhd,bmhd->bhnm", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            logits += np.where(mask, 0, -10000)[:, None, None]
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = np.einsum("bhnm,bmhd->bnhd", weights, v)
        return self.linear(mixed.reshape(x.shape), f"{name}.o_proj")

    def positions(self, rows: int, columns: int, head_width: int) -> np.ndarray:
        """The angle of every pair: first half by column, second half by row."""
        w = 10000 ** (-2 * np.arange(head_width // 4) / (head_width / 2))
        r, s = np.divmod(np.arange(rows * columns), columns)
        return np.concatenate([s[:, None] * w, r[:, None] * w], -1)

    def turn(self, a) -> np.ndarray:
        z = (a[..., ::2] + 1j * a[..., 1::2]) * np.exp(1j * self.angles)[:, None]
        return np.stack([z.real, z.imag], -1).reshape(a.shape)


def silu(x) -> np.ndarray:
    return x / (1 + np.exp(-x))


def layer_norm(x) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
