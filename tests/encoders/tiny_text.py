"""Small text encoders of every kind with random parameters, and their prompts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.encoders import bert, qwen3, t5
from pixelflow_jax.encoders.bert import Bert, BertGeometry
from pixelflow_jax.encoders.interface import TextEncoder
from pixelflow_jax.encoders.qwen3 import Qwen3, Qwen3Geometry
from pixelflow_jax.encoders.t5 import T5, T5Geometry
from pixelflow_jax.tensors.mapping import load
from tests.teachers import official
from tests.teachers.official import EXACT

VOCABULARY = 32
# Every size is another; the heads together are wider or narrower than the states.
GEOMETRIES = {
    "t5": T5Geometry(
        width=24, hidden=40, depth=3, heads=4, head_width=8, vocabulary=VOCABULARY
    ),
    "qwen3": Qwen3Geometry(
        width=24,
        hidden=40,
        depth=3,
        heads=4,
        kv_heads=2,
        head_width=8,
        vocabulary=VOCABULARY,
        period=1000.0,
        padding=3,
    ),
    "bert": BertGeometry(
        width=24,
        hidden=40,
        depth=3,
        heads=4,
        vocabulary=VOCABULARY,
        positions=64,
        start=4,
        end=5,
    ),
}
CLASSES = {"t5": T5, "qwen3": Qwen3, "bert": Bert}
TABLES = {"t5": t5.table, "qwen3": qwen3.table, "bert": bert.table}
KINDS = list(CLASSES)


def encoder(kind: str, **fields) -> TextEncoder:
    """A float32 encoder, other `fields` as given."""
    return CLASSES[kind](**{"geometry": GEOMETRIES[kind], "precision": EXACT, **fields})


@functools.cache
def tensors(kind: str) -> dict[str, np.ndarray]:
    """Random official tensors; attention is neither even nor all on one token."""
    found = official.tensors(TABLES[kind](GEOMETRIES[kind]))
    factors = {"query": 2, "q_norm": 2, "relative": 2, "SelfAttention.q.": 0.6}
    for key in found:
        for part, factor in factors.items():
            if part in key:
                found[key] = found[key] * np.float32(factor)
    return found


@functools.cache
def parameters(kind: str) -> dict:
    """Those tensors as our parameters."""
    rows = TABLES[kind](GEOMETRIES[kind])
    return jax.tree.map(jnp.asarray, load(rows, tensors(kind)))


@functools.cache
def compiled(kind: str):
    """`states` of the float32 encoder."""
    return jax.jit(encoder(kind).states)


def prompts(batch: int = 3, length: int = 11, seed: int = 0) -> tuple:
    """Token numbers and a mask: rows of different lengths, the last one full."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(6, VOCABULARY, (batch, length)).astype(np.int32)
    lengths = np.linspace(1, length, batch).astype(int)
    mask = np.arange(length)[None] < lengths[:, None]
    return np.where(mask, tokens, 0), mask
