"""Attention over token sequences: of images to themselves, and to their texts."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float

from pixelflow_jax.nn import cudnn, hopper, splash
from pixelflow_jax.nn.cudnn import cudnn_fits
from pixelflow_jax.nn.embed import Rope
from pixelflow_jax.nn.kernels.choice import Attention, chosen
from pixelflow_jax.nn.kernels.qkv_norm_rope import backend_of as qkv_backend
from pixelflow_jax.nn.kernels.qkv_norm_rope import qkv_norm_rope
from pixelflow_jax.nn.layers import (
    BlockConfig,
    RMSNorm,
    bias_of,
    linear,
    matmul_no_bias,
    split_heads,
)
from pixelflow_jax.nn.packing import PackedText, Packing
from pixelflow_jax.nn.precision import Precision, check_word

Drop = Callable[[Array], Array]
Masks = tuple[Bool[Array, "_ _"] | None, ...]  # a group each; None: attend to all


def attend(
    q: Float[Array, "b n heads head_width"],
    k: Float[Array, "b m heads head_width"],
    v: Float[Array, "b m heads head_width"],
    mask: Bool[Array, "b m"] | None = None,
    implementation: Attention = "auto",
    drop: Drop | None = None,
    length: int | None = None,
) -> Float[Array, "b n heads head_width"]:
    """Softmax attention with scale head_width^-0.5, in q's type; softmax in float32.

    `mask` is True for what is attended to. `implementation` "auto" takes our kernels
    on Hopper GPUs where they gain, else cuDNN's flash attention on GPUs where it is
    available and right, Pallas' splash attention on TPUs where it gains, XLA elsewhere;
    "xla", "cudnn", "hopper" and "splash" insist.
    `drop` acts on the probabilities [b, heads, n, m], which only the plain formula
    writes out. Of queries and keys alike only the first `length` are looked at; what
    comes out behind them has no meaning. cuDNN needs no mask for that. Raises
    ValueError for a `length` that is not there, and where a kernel is asked for what it
    cannot do.

    For the backward pass stacks keep the result under the name "attention", or all that
    the kernels' own backward pass needs (`nn.stack`).
    """
    check_word("attention", implementation, Attention)
    if length is not None and not 1 <= length <= k.shape[1]:
        raise ValueError(f"There are {k.shape[1]} tokens, not {length} to look at.")
    if implementation == "cudnn":
        cudnn.check(mask, drop)
    if implementation == "hopper":
        hopper.check(q, k, mask, drop, length)
    if implementation == "splash":
        splash.check(q, drop is not None)
    if implementation == "auto":
        implementation = _best(q, k, mask, drop, length)
    if implementation == "cudnn":
        return cudnn.attend(q, k, v, length)
    if implementation == "hopper":
        return hopper.attend(q, k, v, length)
    if length is not None:
        inside = jnp.arange(k.shape[1]) < length
        mask = inside[None] if mask is None else mask & inside
    if implementation == "splash":
        return splash.attend(q, k, v, mask)
    if mask is not None:
        mask = mask[:, None, None, :]
    if drop is not None:
        return checkpoint_name(_attend_dropping(q, k, v, mask, drop), "attention")
    mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="xla")
    return checkpoint_name(mixed, "attention")


def _best(
    q: Array, k: Array, mask: Array | None, drop: Drop | None, length: int | None = None
) -> Attention:
    """Who attends where nobody insists."""
    if drop is not None:
        return "xla"
    if mask is None and hopper.gains(q, k, length):
        return "hopper"
    if mask is None and cudnn_fits(q):
        return "cudnn"
    return "splash" if splash.gains(q, k) else "xla"


def _attend_dropping(
    q: Array, k: Array, v: Array, mask: Array | None, drop: Drop
) -> Array:
    """softmax(q k^T / sqrt(head_width)) v, the probabilities thinned out by `drop`."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    probabilities = drop(jax.nn.softmax(logits)).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", probabilities, v)


def attend_packed(
    q: Float[Array, "rows n heads head_width"],
    k: Float[Array, "sources m heads head_width"],
    v: Float[Array, "sources m heads head_width"],
    packing: Packing,
    sources: Packing | None = None,
    masks: Masks | None = None,
    dropouts: tuple[Drop, ...] | None = None,
) -> Float[Array, "rows n width"]:
    """`attend` for packed tokens: each image looks at its own source alone.

    The `Kernels.attention` in force says who computes it.
    `q` is packed by `packing`, `k` and `v` by `sources` (the same packing if None);
    `masks` holds one of `attend`'s masks, or None, a group, `dropouts` one of its
    functions. The heads of the result lie side by side.
    """
    sources = sources or packing
    nothing = (None,) * len(packing.batches)
    groups = zip(
        *(packing.split(q), sources.split(k), sources.split(v)),
        *(masks or nothing, dropouts or nothing),
        strict=True,
    )
    mixed = [
        attend(q, k, v, mask, chosen().attention, drop)
        for q, k, v, mask, drop in groups
    ]
    return packing.join([a.reshape(*a.shape[:2], -1) for a in mixed])


class QKV(Protocol):
    """What a module holds that projects tokens to queries, keys and values."""

    heads: int
    qkv: nnx.Linear
    q_norm: RMSNorm
    k_norm: RMSNorm


def project_qkv(
    layers: QKV,
    tokens: Float[Array, "rows n width"],
    packing: Packing,
    rope: Rope | None,
) -> tuple[
    Float[Array, "rows n heads head_width"],
    Float[Array, "rows n heads head_width"],
    Float[Array, "rows n heads head_width"],
]:
    """The queries, keys and values of packed tokens.

    Queries and keys are RMS-normalised, then rotated; without `rope` nothing turns.
    """
    return qkv_norm_rope(_project(layers, tokens), packing, **_heads_of(layers, rope))


def project_and_attend(
    layers: QKV,
    tokens: Float[Array, "rows n width"],
    packing: Packing,
    rope: Rope | None,
    masks: Masks | None = None,
    dropouts: tuple[Drop, ...] | None = None,
) -> Float[Array, "rows n width"]:
    """`project_qkv`, then `attend_packed`: what each image's tokens find in it."""
    qkv = _project(layers, tokens)
    return attend_projection(qkv, packing, masks, dropouts, **_heads_of(layers, rope))


def attend_projection(
    qkv: Float[Array, "rows n width_of_three"],
    packing: Packing,
    masks: Masks | None = None,
    dropouts: tuple[Drop, ...] | None = None,
    **given: Any,
) -> Float[Array, "rows n width"]:
    """`qkv_norm_rope`, then `attend_packed`: what each image's tokens find in it.

    `given` are heads, gains, rope and bias, as of `qkv_norm_rope`. Where our kernels
    for Hopper GPUs attend, values are read from the projection, unless gradients want
    them with their bias.
    """
    plain = masks is None and dropouts is None
    if plain and _reads_values(qkv, packing, given["heads"]):
        mixed = hopper.attend_projected(qkv, **given)
        return mixed.reshape(*mixed.shape[:2], -1)

    def apart(heads: int, arrays: dict[str, Any]) -> Array:
        q, k, v = qkv_norm_rope(packing=packing, heads=heads, **arrays)
        return attend_packed(q, k, v, packing, masks=masks, dropouts=dropouts)

    heads, arrays = given.pop("heads"), {**given, "qkv": qkv}
    if plain and len(packing.batches) == 1 and hopper.gains_few(heads, arrays):
        return hopper.attend_few(apart, heads, arrays)
    return apart(heads, arrays)


def _reads_values(qkv: Array, packing: Packing, heads: int) -> bool:
    """Whether our kernels attend to images of one size, and know the projection."""
    if len(packing.batches) != 1 or chosen().attention not in ("auto", "hopper"):
        return False
    shape = *qkv.shape[:2], heads, qkv.shape[-1] // 3 // heads
    q = jax.ShapeDtypeStruct(shape, qkv.dtype)
    return qkv_backend(qkv, packing, heads) == "triton" and hopper.gains(q, q)


def _project(layers: QKV, tokens: Array) -> Array:
    return checkpoint_name(matmul_no_bias(layers.qkv, tokens), "qkv")


def _heads_of(layers: QKV, rope: Rope | None) -> dict[str, Any]:
    """What `qkv_norm_rope` is given beside the projection."""
    gains = layers.q_norm.weight[...], layers.k_norm.weight[...]
    bias = bias_of(layers.qkv)
    return {"heads": layers.heads, "gains": gains, "rope": rope, "bias": bias}


def _linear(
    config: BlockConfig, parts: int, precision: Precision, rngs: nnx.Rngs, bias: bool
) -> nnx.Linear:
    """A layer from tokens to `parts` of their width."""
    return linear(
        *(config.width, parts * config.width, precision, rngs),
        bias=bias,
        init=config.initial.kernel,
        bias_init=config.initial.bias,
    )


class SelfAttention(nnx.Module):
    """Multi-head self-attention with RMS-normalised, then rotated, queries and keys."""

    def __init__(self, config: BlockConfig, precision: Precision, rngs: nnx.Rngs):
        self.heads, head_width = config.heads, config.width // config.heads
        self.qkv = _linear(config, 3, precision, rngs, config.bias)
        self.q_norm, self.k_norm = RMSNorm(head_width), RMSNorm(head_width)
        self.out = _linear(config, 1, precision, rngs, bias=True)

    def __call__(
        self,
        tokens: Float[Array, "rows n width"],
        packing: Packing,
        rope: Rope | None,
        dropouts: tuple[Drop, ...] | None = None,
        context: Masks | None = None,
    ) -> Float[Array, "rows n width"]:
        """What each image's tokens find in the same image.

        The last bias is left to the block, which adds it as it adds the result. Without
        `rope` nothing turns. `dropouts`: dropout of the attention probabilities, one
        function a group; `context`: masks of the tokens to attend to.
        """
        mixed = project_and_attend(self, tokens, packing, rope, context, dropouts)
        return matmul_no_bias(self.out, mixed)


class JointAttention(nnx.Module):
    """Attention of images to themselves and their text, which is not changed by it.

    Queries and keys are RMS-normalised, the text's keys with the images' weights; only
    the images' turn.
    """

    def __init__(self, config: BlockConfig, precision: Precision, rngs: nnx.Rngs):
        self.heads, head_width = config.heads, config.width // config.heads
        self.qkv = _linear(config, 3, precision, rngs, config.bias)
        self.text_kv = _linear(config, 2, precision, rngs, config.bias)
        self.q_norm, self.k_norm = RMSNorm(head_width), RMSNorm(head_width)
        self.out = _linear(config, 1, precision, rngs, bias=True)

    def __call__(
        self,
        tokens: Float[Array, "rows n width"],
        packing: Packing,
        rope: Rope | None,
        dropouts: tuple[Drop, ...] | None,
        context: PackedText,
    ) -> Float[Array, "rows n width"]:
        """What each image's tokens find in it and its text, without the last bias."""
        q, k, v = project_qkv(self, tokens, packing, rope)
        text_kv = checkpoint_name(self.text_kv(context.tokens), "qkv")
        text_k, text_v = (split_heads(a, self.heads) for a in jnp.split(text_kv, 2, -1))
        keys = _append(packing, k, context.packing, self.k_norm(text_k))
        values = _append(packing, v, context.packing, text_v)
        sources = Packing.of(keys)
        k, v = sources.join(keys), sources.join(values)
        masks = _masks_of_both(context.masks, packing)
        mixed = attend_packed(q, k, v, packing, sources, masks, dropouts)
        return matmul_no_bias(self.out, mixed)


def _append(packing: Packing, a: Array, text: Packing, b: Array) -> list[Array]:
    """Each group's images with their texts behind them."""
    pairs = zip(packing.split(a), text.split(b), strict=True)
    return [jnp.concatenate(pair, 1) for pair in pairs]


def _masks_of_both(masks: Masks, packing: Packing) -> Masks:
    """Masks of texts as masks of images and texts; images are attended to in full."""
    return tuple(
        None if mask is None else jnp.pad(mask, ((0, 0), (n, 0)), constant_values=True)
        for mask, n in zip(masks, packing.lengths, strict=True)
    )
