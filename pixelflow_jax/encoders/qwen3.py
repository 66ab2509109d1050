"""Qwen3, frozen, as an encoder of texts: the condition of PixNerd and PixelGen."""

import dataclasses
import typing
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.encoders import config as common
from pixelflow_jax.encoders import layers
from pixelflow_jax.encoders.interface import Attention, TextEncoder
from pixelflow_jax.encoders.layers import Logits
from pixelflow_jax.encoders.tokenizers import Frame, Special, TextReader
from pixelflow_jax.nn.embed import rotate_halves
from pixelflow_jax.nn.layers import rms_normalise, split_heads
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.tensors import mapping
from pixelflow_jax.tensors.locate import Origin, load
from pixelflow_jax.tensors.mapping import Row, linear_rows, stacked_rows
from pixelflow_jax.values import Depth, Natural, OptionalWidth, Place, Positive, Width


@dataclasses.dataclass(kw_only=True)
class Qwen3Geometry:
    """The sizes of a network of Qwen3's kind.

    `hidden`: the gated MLP's width; each of `kv_heads` heads of keys and values serves
    heads / kv_heads heads of queries; `heads` times `head_width` need not be `width`.
    `period` is the rotary embedding's longest (its base), `padding` the number of the
    token <|endoftext|>.
    """

    width: Width
    hidden: Width
    depth: Depth
    heads: Width
    kv_heads: Width = 8
    head_width: Width = 128
    vocabulary: Width = 151_936
    period: Positive = 1_000_000.0
    padding: Natural = 151_643

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        if problems := common.sizes_problems(self, tokens=("padding",)):
            return problems
        if self.heads % self.kv_heads:
            problems.append(
                f"geometry.heads={self.heads} must be a multiple of "
                f"geometry.kv_heads={self.kv_heads}"
            )
        if self.head_width % 2:
            problems.append(f"geometry.head_width={self.head_width} must be even")
        return problems


VARIANTS = {
    "qwen3-0.6b": Qwen3Geometry(width=1024, hidden=3072, depth=28, heads=16),
    "qwen3-1.7b": Qwen3Geometry(width=2048, hidden=6144, depth=28, heads=16),
    "qwen3-4b": Qwen3Geometry(width=2560, hidden=9728, depth=36, heads=32),
    "qwen3-8b": Qwen3Geometry(width=4096, hidden=12_288, depth=36, heads=32),
}
PREFIX = "model."  # of a language model's file; the network's own file has none
IGNORED = r"lm_head\.weight"
EmptyText = Literal["attend", "zero"]
EMPTY = typing.get_args(EmptyText)


@dataclasses.dataclass(kw_only=True)
class Qwen3(TextEncoder):
    """A frozen Qwen3; `weights` names its file (see `tensors.locate`).

    `variant` is one of the published sizes, `geometry` any other in its place. States
    are those of PixNerd and PixelGen: behind the final norm, of every position, padding
    included, without a chat template. Padding is on the right; it sees the text before
    it, and no text sees it. `embed_width` cuts the states' features off, or fills them
    up with zeros, to another width than the network's own (0).

    The empty text is nothing but padding, and what a token sees that may see nothing
    was decided by the attention's backend. `empty_text` names both answers: with
    "attend" it sees what is there, tokens that are all alike; with "zero" attention
    gives nothing. transformers 4.51 and 4.52, the first that know Qwen3, do the former
    on a GPU; so do all with eager attention. From 4.53 on, with PyTorch 2.5 or later,
    SDPA does the latter. PixNerd pins PyTorch 2.5.0 and no transformers; its models
    were trained when 4.51 and 4.52 were current, so "attend" is the default. PixelGen
    names no versions, and came when newer ones were current: "zero" is worth a try
    there. The two conditions differ much: sample a model with the one it was trained
    with.

    In bfloat16 the rotary embedding's frequencies are rounded like the weights, as the
    official code rounds them by casting the whole network. At the 128th token that
    moves states by about as much as the rest of half precision.

    `attention` is "auto", "xla" or "cudnn", and `stack.unroll` counts as for other
    stacks; both change speed alone. Source: Yang et al. 2025, "Qwen3 Technical Report".
    """

    variant: Place = "qwen3-1.7b"
    geometry: Qwen3Geometry | None = None
    weights: Place = ""
    tokenizer: Place = ""
    empty_text: EmptyText = "attend"
    embed_width: OptionalWidth = 0
    attention: Attention = "auto"
    precision: Precision = dataclasses.field(default_factory=Precision)
    stack: StackConfig = dataclasses.field(default_factory=common.forward_only)

    @property
    def sizes(self) -> Qwen3Geometry:
        """The network's sizes."""
        return self.geometry or VARIANTS[self.variant]

    @property
    def width(self) -> int:
        """The width of its states."""
        return self.embed_width or self.sizes.width

    def load(self, field: str = "conditioner.encoder.weights") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Understands transformers' names, of a language model or of the network alone.
        Raises WeightsError, which names the config `field`, for absent, unreadable or
        other weights.
        """
        return load(
            self.weights,
            self._origin(field),
            lambda tensors: table(self.sizes),
            precision=self.precision,
            prefix=PREFIX,
            ignored=IGNORED,
        )

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        return mapping.shapes(table(self.sizes), self.precision)

    def states(self, params: dict, tokens: Array, mask: Array | None = None) -> Array:
        """The last hidden states after the final norm, float32 [b, n, width].

        `tokens` [b, n] are integers below the vocabulary's size (beyond, a state is not
        a number), `mask` [b, n] is True where a token counts, from the first on; None:
        everywhere. States of tokens that count do not depend on padding; padding has
        states, too. Gradients never reach the parameters.
        """
        layers.check_tokens("Qwen3", tokens, mask)
        params = self.precision.cast(jax.lax.stop_gradient(params))
        with jax.default_matmul_precision(self.precision.matmul):
            x = self.embedded(params, tokens)
            turns = self.turns(tokens.shape[1])

            def block(params: dict, x: Array) -> Array:
                return self.block(params, x, turns, mask)

            x = layers.run_blocks(block, params["blocks"], x, self.stack)
        return self._fitted(_norm(params["norm"], x))

    def embedded(self, params: dict, tokens: Array) -> Array:
        """The tokens' embeddings, float32 [b, n, width]."""
        return layers.look_up(params["embedding"]["kernel"], tokens)

    def turns(self, length: int) -> tuple[Array, Array]:
        """Cosines and sines of the rotary embedding, float32 [n, head_width / 2]."""
        half = self.sizes.head_width // 2
        frequencies = self.sizes.period ** (-np.arange(half) / half)
        frequencies = frequencies.astype(self.precision.dtype).astype(np.float64)
        angles = np.arange(length)[:, None] * frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        return jnp.asarray(cos, jnp.float32), jnp.asarray(sin, jnp.float32)

    def block(
        self,
        params: dict,
        x: Array,
        turns: tuple[Array, Array],
        mask: Array | None = None,
    ) -> Array:
        """Attention and gated MLP before which x is normalised, float32 [b, n, width].

        x stays float32: residuals grow so large that half precision would lose what
        later blocks add.
        """
        dtype, sizes = self.precision.dtype, self.sizes
        own = params["attention"]
        z = _norm(params["norm1"], x).astype(dtype)
        q = split_heads(z @ own["q"]["kernel"], sizes.heads)
        k, v = jnp.split(z @ own["kv"]["kernel"], 2, -1)
        k, v = (split_heads(part, sizes.kv_heads) for part in (k, v))
        q = rotate_halves(_norm(own["q_norm"], q).astype(dtype), *turns)
        k = rotate_halves(_norm(own["k_norm"], k).astype(dtype), *turns)
        mixed = self._attend(q, k, v, mask)
        x = x + (mixed @ own["out"]["kernel"]).astype(x.dtype)
        z = _norm(params["norm2"], x).astype(dtype)
        return x + layers.gated_mlp(params["mlp"], z, jax.nn.silu).astype(x.dtype)

    def _attend(self, q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        """Causal attention; where a row has no tokens at all, as `empty_text` says."""
        if mask is None:
            return layers.attend(q, k, v, Logits(causal=True), self.attention)
        some = mask.astype(bool).any(-1, keepdims=True)  # [b, 1]
        seen = mask.astype(bool) | ~some
        mixed = layers.attend(q, k, v, Logits(seen, causal=True), self.attention)
        if self.empty_text == "attend":
            return mixed
        return jnp.where(some[..., None], mixed, 0)

    def problems(self) -> list[str]:
        """What is wrong with this config."""
        problems = common.problems(self, VARIANTS)
        if self.empty_text not in EMPTY:
            problems.append(f"empty_text={self.empty_text!r} is neither of {EMPTY}")
        if self.embed_width < 0:
            problems.append(f"embed_width={self.embed_width} must be at least 0")
        return problems

    def empty(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [length] and mask bool [length] of "": nothing but padding."""
        return self._frame.around([], length)

    def reader(self, length: int) -> TextReader:
        """What turns texts into its tokens [n, length]."""
        origin = self._origin("conditioner.encoder.tokenizer", "tokenizer files")
        folder = self.tokenizer or self.weights
        return TextReader(folder, origin, self._frame, self.sizes.vocabulary, length)

    def identity(self) -> dict:
        """All that determines its states, as JSON-able values."""
        return common.identity(self, empty_text=self.empty_text, width=self.width)

    @property
    def _frame(self) -> Frame:
        return Frame("Qwen2Tokenizer", Special("<|endoftext|>", self.sizes.padding))

    def _origin(self, field: str, what: str = "weights") -> Origin:
        repository = f"Qwen/{self.variant.replace('qwen', 'Qwen').replace('b', 'B')}"
        return common.origin(self, "a Qwen3", repository, field, what)

    def _fitted(self, states: Array) -> Array:
        """Features cut off or filled up with zeros to `width`."""
        missing = max(0, self.width - states.shape[-1])
        return jnp.pad(states, ((0, 0), (0, 0), (0, missing)))[..., : self.width]


def table(geometry: Qwen3Geometry) -> list[Row]:
    """How our parameters are made of transformers' weights."""
    d, hidden, head = geometry.width, geometry.hidden, geometry.head_width
    inner, kv = geometry.heads * head, geometry.kv_heads * head
    own = "self_attn"
    blocks = [
        Row("norm1/weight", "input_layernorm.weight", shape=(d,)),
        Row("norm2/weight", "post_attention_layernorm.weight", shape=(d,)),
        Row("attention/q_norm/weight", f"{own}.q_norm.weight", shape=(head,)),
        Row("attention/k_norm/weight", f"{own}.k_norm.weight", shape=(head,)),
    ]
    for ours, theirs, shape in (
        ("attention/q", f"{own}.q_proj", (inner, d)),
        ("attention/kv", (f"{own}.k_proj", f"{own}.v_proj"), (kv, d)),
        ("attention/out", f"{own}.o_proj", (d, inner)),
        ("mlp/gate", "mlp.gate_proj", (hidden, d)),
        ("mlp/up", "mlp.up_proj", (hidden, d)),
        ("mlp/down", "mlp.down_proj", (d, hidden)),
    ):
        blocks += linear_rows(ours, theirs, bias=False, shape=shape)
    return [
        # By this name it is cast like the matrices: half the memory of a large table.
        Row("embedding/kernel", "embed_tokens.weight", shape=(geometry.vocabulary, d)),
        Row("norm/weight", "norm.weight", shape=(d,)),
        *stacked_rows(blocks, "blocks/", "layers.{i}.", geometry.depth),
    ]


def _norm(params: dict, x: Array) -> Array:
    """x / rms(x) * weight over the last axis, eps 1e-6, float32."""
    return rms_normalise(x) * params["weight"]
