"""Official tensors by formula, and DINOv2 once more: plain numpy, official names."""

import math
from collections.abc import Mapping

import numpy as np

from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers.dinov2_table import Geometry, table
from pixelflow_jax.tensors.mapping import Row

EXACT = Precision(compute="float32", matmul="highest")
TINY = Geometry(width=24, heads=3, depth=3, grid=3)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def tensors(rows: list[Row], seed: int = 0) -> dict[str, np.ndarray]:
    """Random official tensors of a table."""
    draw = np.random.default_rng(seed).standard_normal
    found = {}
    for row in rows:
        for key in row.keys():
            scale = row.shape[1:] and 1.5 * math.prod(row.shape[1:]) ** -0.5 or 0.3
            value = draw(row.shape) * scale
            scaling = "norm" in key.lower() and key.endswith("weight")
            if scaling or "gamma" in key:
                value += 1
            found[key] = value.astype(np.float32)
    return found


def dinov2_tensors(geometry: Geometry) -> dict[str, np.ndarray]:
    """Random official tensors of a DINOv2, by torch.hub's names."""
    return tensors(table(geometry, registers=0))


def dinov2(
    hub: Mapping[str, np.ndarray],
    geometry: Geometry,
    images: np.ndarray,
    positions: np.ndarray,
) -> list[np.ndarray]:
    """Tokens [b, n, width] behind each block, float64, the final norm applied.

    `images` [b, 3, h, w] are normalised and sized; `positions` [1 + n, width] fit.
    """
    p = {key: value.astype(np.float64) for key, value in hub.items()}
    x = np.concatenate([embedded(p, geometry, images, positions)])
    found = []
    for i in range(geometry.depth):
        block = {k[len(f"blocks.{i}.") :]: v for k, v in p.items() if f"s.{i}." in k}
        x = x + block["ls1.gamma"] * attention(block, norm(block, "norm1", x), geometry)
        x = x + block["ls2.gamma"] * mlp(block, norm(block, "norm2", x))
        found.append(norm(p, "norm", x))
    return found


def embedded(p, geometry: Geometry, images, positions) -> np.ndarray:
    """[class, registers, patches], [b, n, width]."""
    b, _, height, width = images.shape
    size = geometry.patch
    patches = [
        images[:, :, y : y + size, x : x + size]
        for y in range(0, height, size)
        for x in range(0, width, size)
    ]
    kernel = p["patch_embed.proj.weight"]
    tokens = np.stack([np.einsum("bcij,ocij->bo", a, kernel) for a in patches], 1)
    tokens = tokens + p["patch_embed.proj.bias"]
    cls = np.tile(p["cls_token"], (b, 1, 1))
    tokens = np.concatenate([cls, tokens], 1) + positions
    if "register_tokens" not in p:
        return tokens
    registers = np.tile(p["register_tokens"], (b, 1, 1))
    return np.concatenate([tokens[:, :1], registers, tokens[:, 1:]], 1)


def linear(p, name: str, x: np.ndarray) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p, name: str, x: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return centered / deviation * p[f"{name}.weight"] + p[f"{name}.bias"]


def attention(p, x: np.ndarray, geometry: Geometry) -> np.ndarray:
    b, n, d = x.shape
    qkv = linear(p, "attn.qkv", x).reshape(b, n, 3, geometry.heads, -1)
    q, k, v = (qkv[:, :, part] for part in range(3))
    logits = np.einsum("bnhc,bmhc->bhnm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("bhnm,bmhc->bnhc", weights, v).reshape(b, n, d)
    return linear(p, "attn.proj", mixed)


def mlp(p, x: np.ndarray) -> np.ndarray:
    if "mlp.w12.weight" in p:
        gate, up = np.split(linear(p, "mlp.w12", x), 2, -1)
        return linear(p, "mlp.w3", gate / (1 + np.exp(-gate)) * up)
    hidden = linear(p, "mlp.fc1", x)
    erf = np.vectorize(math.erf)
    return linear(p, "mlp.fc2", hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
