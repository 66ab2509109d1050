"""The encoder of T5 v1.1 and Flan-T5, frozen: the text condition of PixelFlow."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.encoders import config as common
from pixelflow_jax.encoders import layers
from pixelflow_jax.encoders.interface import Attention, TextEncoder
from pixelflow_jax.encoders.layers import Logits
from pixelflow_jax.encoders.tokenizers import Frame, Special, TextReader
from pixelflow_jax.errors import WeightsError
from pixelflow_jax.nn.layers import rms_normalise, split_heads
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.layouts import transpose
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.locate import Origin, load
from pixelflow_jax.tensors.mapping import Row, linear_rows, stacked_rows
from pixelflow_jax.values import Count, Depth, Place, Range, Width


@dataclasses.dataclass(kw_only=True)
class T5Geometry:
    """The sizes of an encoder of T5 v1.1's kind.

    `hidden`: the gated MLP's width; `buckets`, `max_distance`: how many learned values
    a head has for the distances between tokens, and where the last bucket ends at the
    latest. `heads` times `head_width` need not be `width`.
    """

    width: Width
    hidden: Width
    depth: Depth
    heads: Width
    head_width: Width = 64
    vocabulary: Width = 32128
    buckets: Annotated[int, Range(low=4, high=2**20, multiple_of=2)] = 32
    max_distance: Count = 128

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        if problems := common.sizes_problems(self):
            return problems
        if self.buckets < 4 or self.buckets % 2:
            return [f"geometry.buckets={self.buckets} must be even and at least 4"]
        if self.max_distance <= self.buckets // 4:
            return [
                f"geometry.max_distance={self.max_distance} must be larger than a "
                f"quarter of geometry.buckets={self.buckets}"
            ]
        return []


VARIANTS = {
    "flan-t5-small": T5Geometry(width=512, hidden=1024, depth=8, heads=6),
    "flan-t5-base": T5Geometry(width=768, hidden=2048, depth=12, heads=12),
    "flan-t5-large": T5Geometry(width=1024, hidden=2816, depth=24, heads=16),
    "flan-t5-xl": T5Geometry(width=2048, hidden=5120, depth=24, heads=32),
    "flan-t5-xxl": T5Geometry(width=4096, hidden=10240, depth=24, heads=64),
}

# Two names of one matrix: the first is shared with the decoder.
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
IGNORED = r"decoder\..*|lm_head\.weight"  # encoders and decoders come in one file
FRAME = Frame("T5Tokenizer", Special("<pad>", 0), after=(Special("</s>", 1),))


@dataclasses.dataclass(kw_only=True)
class T5(TextEncoder):
    """A frozen T5 encoder; `weights` names its file (see `tensors.locate`).

    `variant` is one of the published sizes (T5 v1.1's are the same), `geometry` any
    other size in its place. `tokenizer` is a folder, that of the weights if "". No
    gradient passes, so `stack.remat` has nothing to keep; `stack.unroll` counts as for
    other stacks, `attention` is "auto", "xla" or "cudnn". Source: Raffel et al. 2020;
    Chung et al. 2022; Shazeer 2020 for the gated MLP.
    """

    variant: Place = "flan-t5-xl"
    geometry: T5Geometry | None = None
    weights: Place = ""
    tokenizer: Place = ""
    attention: Attention = "auto"
    precision: Precision = dataclasses.field(default_factory=Precision)
    stack: StackConfig = dataclasses.field(default_factory=common.forward_only)

    @property
    def sizes(self) -> T5Geometry:
        """The network's sizes."""
        return self.geometry or VARIANTS[self.variant]

    @property
    def width(self) -> int:
        """The width of its states."""
        return self.sizes.width

    def load(self, field: str = "conditioner.encoder.weights") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Understands transformers' names, with or without a decoder. Raises WeightsError,
        which names the config `field`, for absent, unreadable or other weights.
        """
        return load(
            self.weights,
            self._origin(field),
            lambda tensors: table(self.sizes, _agreed_embedding(tensors, self.weights)),
            precision=self.precision,
            ignored=IGNORED,
        )

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        return mapping.shapes(table(self.sizes), self.precision)

    def states(self, params: dict, tokens: Array, mask: Array | None = None) -> Array:
        """The last hidden states after the final norm, float32 [b, n, width].

        `tokens` [b, n] are integers below the vocabulary's size (beyond, a
        state is not a number), `mask` [b, n] is True where a token counts; None:
        everywhere. States of tokens that count do not depend on the others; these have
        states, too. Gradients never reach the parameters.
        """
        layers.check_tokens("T5", tokens, mask)
        params = self.precision.cast(jax.lax.stop_gradient(params))
        with jax.default_matmul_precision(self.precision.matmul):
            x = self.embedded(params, tokens)
            bias = self.bias(params, tokens.shape[1])

            def block(params: dict, x: Array) -> Array:
                return self.block(params, x, bias, mask)

            x = layers.run_blocks(block, params["blocks"], x, self.stack)
        return _norm(params["norm"], x)

    def embedded(self, params: dict, tokens: Array) -> Array:
        """The tokens' embeddings, unscaled, float32 [b, n, width]."""
        return layers.look_up(params["embedding"], tokens)

    def bias(self, params: dict, length: int) -> Array:
        """What all blocks add to their attention logits, float32 [1, heads, n, n].

        Rows are queries, columns keys.
        """
        sizes = self.sizes
        offsets = np.arange(1 - length, length)
        numbers = buckets(offsets, sizes.buckets, sizes.max_distance)
        by_offset = params["relative_bias"].astype(jnp.float32)[numbers]
        places = jnp.arange(length)
        offset = places[None, :] - places[:, None]  # key minus query
        return jnp.moveaxis(by_offset[offset + length - 1], -1, 0)[None]

    def block(
        self, params: dict, x: Array, bias: Array, mask: Array | None = None
    ) -> Array:
        """Attention and gated MLP before which x is normalised, [b, n, width].

        The logits are not scaled: the trained queries are small enough. x stays
        float32: unnormalised residuals grow so large that half precision would lose
        what later blocks add.
        """
        dtype, heads = self.precision.dtype, self.sizes.heads
        own = params["attention"]
        qkv = _norm(params["norm1"], x).astype(dtype) @ own["qkv"]["kernel"]
        q, k, v = (split_heads(part, heads) for part in jnp.split(qkv, 3, -1))
        logits = Logits(mask, bias, scale=1.0)
        mixed = layers.attend(q, k, v, logits, self.attention)
        x = x + (mixed @ own["out"]["kernel"]).astype(x.dtype)
        z = _norm(params["norm2"], x).astype(dtype)
        return x + layers.gated_mlp(params["mlp"], z, jax.nn.gelu).astype(x.dtype)

    def problems(self) -> list[str]:
        """What is wrong with this config."""
        return common.problems(self, VARIANTS)

    def empty(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [length] and mask bool [length] of "": the end alone."""
        return FRAME.around([], length)

    def reader(self, length: int) -> TextReader:
        """What turns texts into its tokens [n, length]."""
        origin = self._origin("conditioner.encoder.tokenizer", "tokenizer files")
        folder = self.tokenizer or self.weights
        return TextReader(folder, origin, FRAME, self.sizes.vocabulary, length)

    def identity(self) -> dict:
        """All that determines its states, as JSON-able values."""
        return common.identity(self)

    def _origin(self, field: str, what: str = "weights") -> Origin:
        kind, repository = "a T5 encoder", f"google/{self.variant}"
        return common.origin(self, kind, repository, field, what=what)


def buckets(offsets: np.ndarray, count: int, max_distance: int) -> np.ndarray:
    """The bucket of each offset (key's place minus query's), integers below `count`.

    The upper half is for positive offsets. In each half, the first half is for one
    distance each, the rest for ranges that grow geometrically up to `max_distance`, the
    last one without end.
    """
    half = count // 2
    single = half // 2
    distance = np.abs(offsets)
    # In float32, which decides where a range begins, as for the trained network.
    ratio = np.maximum(distance, single).astype(np.float32) / np.float32(single)
    steps = np.log(ratio) / np.float32(np.log(max_distance / single))
    ranged = single + (steps * np.float32(half - single)).astype(np.int64)
    number = np.where(distance < single, distance, np.minimum(ranged, half - 1))
    return number + half * (offsets > 0)


def table(geometry: T5Geometry, embedding: str = EMBEDDINGS[0]) -> list[Row]:
    """How our parameters are made of transformers' weights.

    `embedding` is the name by which the file knows the tokens' embeddings.
    """
    d, hidden = geometry.width, geometry.hidden
    inner = geometry.heads * geometry.head_width
    own, mlp = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    qkv = tuple(f"{own}.{name}.weight" for name in "qkv")
    bias = f"encoder.block.0.{own}.relative_attention_bias.weight"
    blocks = [
        Row("norm1/weight", "layer.0.layer_norm.weight", shape=(d,)),
        Row("norm2/weight", "layer.1.layer_norm.weight", shape=(d,)),
        Row("attention/qkv/kernel", qkv, transpose, shape=(inner, d)),
    ]
    for ours, theirs, shape in (
        ("attention/out", f"{own}.o", (d, inner)),
        ("mlp/gate", f"{mlp}.wi_0", (hidden, d)),
        ("mlp/up", f"{mlp}.wi_1", (hidden, d)),
        ("mlp/down", f"{mlp}.wo", (d, hidden)),
    ):
        blocks += linear_rows(ours, theirs, bias=False, shape=shape)
    return [
        Row("embedding", embedding, shape=(geometry.vocabulary, d)),
        Row("relative_bias", bias, shape=(geometry.buckets, geometry.heads)),
        Row("norm/weight", "encoder.final_layer_norm.weight", shape=(d,)),
        *stacked_rows(blocks, "blocks/", "encoder.block.{i}.", geometry.depth),
    ]


def _agreed_embedding(tensors: dict[str, LazyTensor], file: str) -> str:
    """The name of the tokens' embeddings; of two that agree, one is taken out."""
    names = [key for key in EMBEDDINGS if key in tensors]
    if len(names) < 2:
        return (names or EMBEDDINGS)[0]
    shared, own = (tensors[key].read() for key in names)
    if not np.array_equal(shared, own):
        raise WeightsError(
            f"{file} holds two different matrices {' and '.join(names)}: they are one "
            "in T5. Take them from one checkpoint, or leave one out."
        )
    del tensors[names[1]]
    return names[0]


def _norm(params: dict, x: Array) -> Array:
    """x / rms(x) * weight, eps 1e-6, float32."""
    return rms_normalise(x) * params["weight"]
