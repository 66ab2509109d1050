"""The encoder of T5 v1.1 and Flan-T5, frozen: the text condition of PixelFlow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.nn.attention import split_heads
from pixelflow_jax.nn.layers import rms_normalise
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Loop, layers_of, run_layers
from pixelflow_jax.teachers.weights import (
    Origin,
    Row,
    TeacherError,
    load,
    read,
    shapes,
)


@dataclasses.dataclass(kw_only=True)
class T5Geometry:
    """The sizes of an encoder of T5 v1.1's kind.

    `hidden`: the gated MLP's width; `buckets`, `max_distance`: how many learned values
    a head has for the distances between tokens, and where the last bucket ends at the
    latest. `heads` times `head_width` need not be `width`.
    """

    width: int
    hidden: int
    depth: int
    heads: int
    head_width: int = 64
    vocabulary: int = 32128
    buckets: int = 32
    max_distance: int = 128

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        names = [field.name for field in dataclasses.fields(self)]
        small = [f"{n}={getattr(self, n)}" for n in names if getattr(self, n) < 1]
        if small:
            return [f"geometry.{', '.join(small)} must be at least 1"]
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


@dataclasses.dataclass(kw_only=True)
class T5:
    """A frozen T5 encoder; `weights` names its file (see `teachers.weights.read`).

    `variant` is one of the published sizes (T5 v1.1's are the same), `geometry` any
    other size in its place. No gradient passes, so `loop.remat` has nothing to keep;
    `loop.unroll` counts as for other stacks. Source: Raffel et al. 2020; Chung et al.
    2022; Shazeer 2020 for the gated MLP.
    """

    variant: str = "flan-t5-xl"
    geometry: T5Geometry | None = None
    weights: str = ""
    precision: Precision = dataclasses.field(default_factory=Precision)
    loop: Loop = dataclasses.field(default_factory=lambda: Loop(remat="none"))

    @property
    def sizes(self) -> T5Geometry:
        """The network's sizes."""
        return self.geometry or VARIANTS[self.variant]

    @property
    def width(self) -> int:
        """The width of its states."""
        return self.sizes.width

    def identity(self) -> dict:
        """What its states depend on, JSON-able."""
        return {
            "encoder": type(self).__name__,
            "sizes": dataclasses.asdict(self.sizes),
            "weights": self.weights,
            "compute": self.precision.compute,
        }

    def load(self, field: str = "conditioner.encoder.weights") -> dict:
        """The parameters (numpy): matrices in the compute type, the rest float32.

        Understands transformers' names, with or without a decoder. Raises TeacherError,
        which names the config `field`, for absent, unreadable or other weights.
        """
        origin = self._origin(field)
        tensors = read(self.weights, origin)
        name = origin.described(self.weights)
        embedding = _agreed_embedding(tensors, name)
        found = load(table(self.sizes, embedding), tensors, name, IGNORED)
        return self.precision.cast(found)

    def shapes(self) -> dict:
        """What `load` returns, as shapes; reads nothing."""
        return jax.eval_shape(self.precision.cast, shapes(table(self.sizes)))

    def states(self, params: dict, tokens: Array, mask: Array | None = None) -> Array:
        """The last hidden states after the final norm, float32 [b, n, width].

        `tokens` [b, n] are integers below the vocabulary's size (beyond, a
        state is not a number), `mask` [b, n] is True where a token counts; None:
        everywhere. States of tokens that count do not depend on the others; these have
        states, too. Gradients never reach the parameters.
        """
        _check(tokens, mask)
        params = self.precision.cast(jax.lax.stop_gradient(params))
        with jax.default_matmul_precision(self.precision.matmul):
            x = self.embedded(params, tokens)
            bias = self.bias(params, tokens.shape[1])
            x = self._run(params["blocks"], x, bias, mask)
        return _norm(params["norm"], x)

    def embedded(self, params: dict, tokens: Array) -> Array:
        """The tokens' embeddings, unscaled, float32 [b, n, width]."""
        # Beyond the table: not a number, where plain indexing takes the last entry.
        found = jnp.take(params["embedding"], tokens, axis=0, mode="fill")
        return found.astype(jnp.float32)

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

        The logits are not scaled: the trained queries are small enough.
        """
        dtype, heads = self.precision.dtype, self.sizes.heads
        qkv = (
            _norm(params["norm1"], x).astype(dtype)
            @ params["attention"]["qkv"]["kernel"]
        )
        q, k, v = (split_heads(part, heads) for part in jnp.split(qkv, 3, -1))
        mixed = jax.nn.dot_product_attention(
            q,
            k,
            v,
            bias=bias,
            mask=None if mask is None else mask.astype(bool)[:, None, None, :],
            scale=1.0,
            implementation="xla",
        )
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        x = x + (mixed @ params["attention"]["out"]["kernel"]).astype(x.dtype)
        z = _norm(params["norm2"], x).astype(dtype)
        gate = (z @ params["mlp"]["gate"]["kernel"]).astype(jnp.float32)
        up = (z @ params["mlp"]["up"]["kernel"]).astype(jnp.float32)
        hidden = (jax.nn.gelu(gate, approximate=True) * up).astype(dtype)
        return x + (hidden @ params["mlp"]["down"]["kernel"]).astype(x.dtype)

    def problems(self) -> list[str]:
        """What is wrong with this config."""
        if self.geometry is None and self.variant not in VARIANTS:
            known = ", ".join(VARIANTS)
            return [f"variant={self.variant!r} is not one of {known}: set geometry"]
        found = self.sizes.problems()
        for part in (self.precision, self.loop):
            try:
                part.check()
            except ValueError as error:
                found.append(str(error))
        return found

    def _run(self, blocks: dict, x: Array, bias: Array, mask: Array | None) -> Array:
        """All blocks in sequence, by a scan over their leading axis or written out.

        x stays float32: unnormalised residuals grow so large that half precision would
        lose what later blocks add.
        """

        def block(params: dict, x: Array) -> Array:
            return self.block(params, x, bias, mask)

        layers = blocks if self.loop.unroll else layers_of(blocks)
        return run_layers(block, layers, x, self.loop)

    def _origin(self, field: str) -> Origin:
        if self.geometry is not None:
            source = "in a file of transformers' names"
            return Origin("a T5 encoder of the given geometry", source, field)
        source = f"hf://google/{self.variant}, or a folder that holds its files"
        return Origin(self.variant, source, field)


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
    first = "layer.0.SelfAttention"
    bias = f"encoder.block.0.{first}.relative_attention_bias.weight"
    linears = {
        "attention/out": (f"{first}.o", inner, d),
        "mlp/gate": ("layer.1.DenseReluDense.wi_0", d, hidden),
        "mlp/up": ("layer.1.DenseReluDense.wi_1", d, hidden),
        "mlp/down": ("layer.1.DenseReluDense.wo", hidden, d),
    }
    parts = {"layout": np.transpose, "parts": ("q", "k", "v")}
    blocks = [
        Row("norm1/weight", "layer.0.layer_norm.weight", (d,)),
        Row("norm2/weight", "layer.1.layer_norm.weight", (d,)),
        Row("attention/qkv/kernel", f"{first}.{{part}}.weight", (inner, d), **parts),
    ]
    for ours, (theirs, inputs, outputs) in linears.items():
        shape = (outputs, inputs)
        blocks.append(Row(f"{ours}/kernel", f"{theirs}.weight", shape, np.transpose))
    return [
        Row("embedding", embedding, (geometry.vocabulary, d)),
        Row("relative_bias", bias, (geometry.buckets, geometry.heads)),
        Row("norm/weight", "encoder.final_layer_norm.weight", (d,)),
        *(_stacked(row, geometry.depth) for row in blocks),
    ]


def _stacked(row: Row, depth: int) -> Row:
    return dataclasses.replace(
        row,
        ours=f"blocks/{row.ours}",
        theirs=f"encoder.block.{{i}}.{row.theirs}",
        layers=depth,
    )


def _agreed_embedding(tensors: dict[str, np.ndarray], name: str) -> str:
    """The name of the tokens' embeddings; of two that agree, one is taken out."""
    there = [key for key in EMBEDDINGS if key in tensors]
    if len(there) < 2:
        return (there or EMBEDDINGS)[0]
    if not np.array_equal(*(tensors[key] for key in there)):
        raise TeacherError(
            f"{name} holds two different matrices {' and '.join(there)}: they are one "
            "in T5. Take them from one checkpoint, or leave one out."
        )
    del tensors[there[1]]
    return there[0]


def _check(tokens: Array, mask: Array | None) -> None:
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            "T5 reads token numbers, integers [b, n], not "
            f"{tokens.dtype} {tokens.shape}."
        )
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(
            f"The mask {mask.shape} must have the shape of the tokens, {tokens.shape}."
        )


def _norm(params: dict, x: Array) -> Array:
    """x / rms(x) * weight, eps 1e-6, float32."""
    return rms_normalise(x) * params["weight"]
