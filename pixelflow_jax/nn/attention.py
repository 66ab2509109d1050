"""Attention over token sequences, one function for every backend."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from pixelflow_jax.nn.dropout import Dropout
from pixelflow_jax.nn.heads import queries_keys_values
from pixelflow_jax.nn.layers import RMSNorm, bias_of, linear, product, torch_default
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision

IMPLEMENTATIONS = ("auto", "xla", "cudnn")


def attend(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    implementation: str = "auto",
    drop: Dropout | None = None,
) -> Array:
    """Softmax attention with scale head_width^-0.5.

    `q` [b, n, heads, head_width], `k`, `v` [b, m, heads, head_width], `mask` boolean
    [b, m] (True = attend) or None; returns q's shape and type, softmax in float32.
    `implementation` "auto" takes cuDNN's flash attention where it is available and
    right, XLA elsewhere; "xla" and "cudnn" insist. `drop` acts on the probabilities
    [b, heads, n, m], which only the plain formula writes out.

    For the backward pass stacks keep the result under the name "attention", or all that
    cuDNN's own backward pass needs (`nn.stack`).
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'attention must be "auto", "xla" or "cudnn", not "{implementation}".'
        )
    if implementation == "auto":
        # cuDNN's masked backward pass has known faults.
        fits = cudnn_fits(q) and mask is None
        implementation = "cudnn" if fits else "xla"
    if mask is not None:
        mask = mask[:, None, None, :]
    if drop is not None:
        return checkpoint_name(_attend_plainly(q, k, v, mask, drop), "attention")
    odd = q.shape[1] % 2 or k.shape[1] % 2
    if implementation == "cudnn" and odd and mask is None:
        return _attend_padded(q, k, v)
    mixed = jax.nn.dot_product_attention(
        q, k, v, mask=mask, implementation=implementation
    )
    return mixed if implementation == "cudnn" else checkpoint_name(mixed, "attention")


def _attend_padded(q: Array, k: Array, v: Array) -> Array:
    """cuDNN's attention for odd lengths, which it refuses: padded, true ones given.

    To a multiple of 128: its backward pass has known faults for other padded lengths.
    """
    true = {"query_seq_lengths": q, "key_value_seq_lengths": k}
    true = {name: jnp.full(len(a), a.shape[1], jnp.int32) for name, a in true.items()}
    padded = (
        jnp.pad(a, ((0, 0), (0, -a.shape[1] % 128), (0, 0), (0, 0))) for a in (q, k, v)
    )
    mixed = jax.nn.dot_product_attention(*padded, **true, implementation="cudnn")
    return mixed[:, : q.shape[1]]


def _attend_plainly(
    q: Array, k: Array, v: Array, mask: Array | None, drop: Dropout
) -> Array:
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    logits = logits * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    probabilities = drop(jax.nn.softmax(logits)).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", probabilities, v)


def attend_packed(
    q: Array,
    k: Array,
    v: Array,
    packing: Packing,
    sources: Packing | None = None,
    masks: tuple[Array | None, ...] | None = None,
    implementation: str = "auto",
    dropouts: tuple[Dropout, ...] | None = None,
) -> Array:
    """`attend` for packed tokens: each image looks at its own source alone.

    `q` [rows, n, heads, head_width] is packed by `packing`, `k` and `v` by `sources`
    (the same packing if None); `masks` holds one of `attend`'s masks, or None, a group,
    `dropouts` one of its functions. Returns [rows, n, heads * head_width].
    """
    sources = sources or packing
    groups = packing.split(q), sources.split(k), sources.split(v)
    masks = masks or (None,) * len(groups[0])
    dropouts = dropouts or (None,) * len(groups[0])
    mixed = [
        attend(*group, mask, implementation, drop)
        for *group, mask, drop in zip(*groups, masks, dropouts, strict=True)
    ]
    return packing.join([a.reshape(*a.shape[:2], -1) for a in mixed])


def cudnn_fits(q: Array) -> bool:
    """Whether there is a GPU, half precision and a head width that cuDNN can take.

    `q` [..., head_width] is a query, or its shape and type.
    """
    head_width = q.shape[-1]
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = head_width % 8 == 0 and head_width <= 128
    return jax.default_backend() == "gpu" and half and fits


class SelfAttention(nnx.Module):
    """Multi-head self-attention with RMS-normalised, then rotated, queries and keys.

    `bias` gives one to the projection to queries, keys and values. `kernels`: see
    `nn.heads.queries_keys_values`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        precision: Precision,
        rngs: nnx.Rngs,
        implementation: str = "auto",
        *,
        bias: bool = False,
        init: Callable = torch_default,
        bias_init: Callable | None = None,
        kernels: str = "auto",
    ):
        self.kernels = kernels
        self.heads = heads
        self.implementation = implementation
        inits = {"init": init, "bias_init": bias_init}
        self.qkv = linear(width, 3 * width, precision, rngs, bias=bias, **inits)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.out = linear(width, width, precision, rngs, **inits)

    def __call__(
        self,
        tokens: Array,
        packing: Packing,
        rope: tuple[Array, Array] | None,
        dropouts: tuple[Dropout, ...] | None = None,
        masks: tuple[Array | None, ...] | None = None,
    ) -> Array:
        """Tokens [rows, n, width] to the same; each image attends to itself alone.

        The last bias is left to the block, which adds it as it adds the result. Without
        `rope` nothing turns. `dropouts`: dropout of the attention probabilities, one
        function a group; `masks`: the tokens to attend to, bool [b_i, n_i] a group.
        """
        q, k, v = queries_keys_values(
            checkpoint_name(product(self.qkv, tokens), "qkv"),
            packing,
            heads=self.heads,
            gains=(self.q_norm.weight[...], self.k_norm.weight[...]),
            rope=rope,
            bias=bias_of(self.qkv),
            kernels=self.kernels,
        )
        how = {"implementation": self.implementation, "dropouts": dropouts}
        mixed = attend_packed(q, k, v, packing, masks=masks, **how)
        return product(self.out, mixed)
