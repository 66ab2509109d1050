"""Attention on TPUs by JAX's own Pallas kernel, "splash", which writes no logits out.

The plain formula has one number for each query, key and head of a device's images. As
long as these fit into the vector memory beside the cores, the compiler leaves them
there; beyond that it writes them to the chip's memory and reads them back several times
a pass, which takes longer than the arithmetic. The kernel holds a block of them at a
time, forward and backward.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from pixelflow_jax.nn.kernels import backends
from pixelflow_jax.sharding import by_device, shard_count, tensor_shards

MODULE = "jax.experimental.pallas.ops.tpu.splash_attention"
if TYPE_CHECKING:
    from jax.experimental.pallas.ops.tpu import splash_attention as library
else:
    library = backends.LazyModule(MODULE)

# Bytes of a device's float32 logits above which the kernel gains: half of the vector
# memory of a v5e. Compiled for v5e and v5p, the plain formula kept 32 MiB there, wrote
# a part of 64 MiB out, all of 128 MiB; `benchmarks/tpu_attention.py` has the bytes.
LARGE = 2**26
LANES = 128
WIDEST = (
    128  # heads for whose blocks the kernel's share of the vector memory was enough
)
# The longest blocks. Keys and values in one block are read once; the gradient of keys
# and values is held for a whole block in float32, so there it is half as long.
QUERIES, KEYS, KEYS_BACKWARD, AT_ONCE = 512, 4096, 2048, 512


def attend(
    q: Float[Array, "b n heads head_width"],
    k: Float[Array, "b m heads head_width"],
    v: Float[Array, "b m heads head_width"],
    mask: Bool[Array, "b m"] | Bool[Array, "1 m"] | None = None,
) -> Float[Array, "b n heads head_width"]:
    """`nn.attention.attend` by the kernel, on each device's part of images and heads.

    Queries are rounded once more, as they are scaled. The result and what the backward
    pass needs beside it are called "attention" for `nn.stack`.
    """
    if mask is not None:
        mask = jnp.broadcast_to(mask, k.shape[:2])
    return by_device(_attend, q, k, v, mask, tensor=2)


def _attend(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    """The same on one device. Odd lengths are padded; no query sees the padding."""
    n, m = q.shape[1], k.shape[1]
    q = q * q.shape[-1] ** -0.5
    q, k, v = (_padded(a).swapaxes(1, 2) for a in (q, k, v))
    sizes = q.shape[2], k.shape[2]
    heads = [library.FullMask(sizes)] * q.shape[1]
    kernel: Any = library.make_splash_mha_single_device(
        library.MultiHeadMask(heads),
        block_sizes=_blocks(*sizes),
        residual_checkpoint_name="attention",
        interpret=backends.is_interpreted(),
    )
    if mask is None and sizes[1] == m:
        return jax.vmap(kernel)(q, k, v).swapaxes(1, 2)[:, :n]
    if mask is None:
        mask = jnp.ones((len(k), m), bool)
    # Of nothing but hidden keys the plain formula takes the mean: alike logits for all.
    some = mask.any(-1, keepdims=True)
    q = jnp.where(some[:, :, None, None], q, 0)
    seen = jnp.pad(mask | ~some, ((0, 0), (0, sizes[1] - m)))
    queries = jnp.ones(sizes[0], jnp.int32)
    run = lambda q, k, v, keys: kernel(q, k, v, library.SegmentIds(queries, keys))
    return jax.vmap(run)(q, k, v, seen.astype(jnp.int32)).swapaxes(1, 2)[:, :n]


def _padded(a: Array) -> Array:
    """Tokens [b, n, ...] with zeros behind them, as many as whole blocks need."""
    whole = LANES if a.shape[1] <= KEYS_BACKWARD else AT_ONCE
    return jnp.pad(a, ((0, 0), (0, -a.shape[1] % whole), (0, 0), (0, 0)))


def _blocks(n: int, m: int) -> "library.BlockSizes":
    """The parts of `n` queries and `m` keys that are in vector memory at a time."""
    queries, keys, backward = _part(n, QUERIES), _part(m, KEYS), _part(m, KEYS_BACKWARD)
    layout = library.QKVLayout.SEQ_MINOR  # heads of 64 or 72 would be padded to 128
    return library.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=_part(keys, AT_ONCE),
        block_q_dkv=queries,
        block_kv_dkv=backward,
        block_kv_dkv_compute=_part(backward, AT_ONCE),
        use_fused_bwd_kernel=True,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
    )


def _part(length: int, most: int) -> int:
    """The largest divisor of a length that is whole lanes and at most `most`."""
    parts = range(LANES, min(length, most) + 1, LANES)
    return max(part for part in parts if length % part == 0)


def gains(q: Array, k: Array) -> bool:
    """Whether there is a TPU, the kernel takes these, and has fewer bytes to move.

    Where a batch does not divide over the devices, each would compute all of it.
    """
    fits = (
        backends.platform() == "tpu" and not _unknown(q) and not len(q) % shard_count()
    )
    return fits and _logits_bytes(q, k) > LARGE and not missing()


def _logits_bytes(q: Array, k: Array) -> float:
    """What all float32 logits of a device take."""
    b, n, heads, _ = q.shape
    return 4 * b * n * k.shape[1] * heads / (shard_count() * tensor_shards())


def _unknown(q: Array) -> str:
    """What the kernel does not know of these queries; empty where it knows them."""
    known = q.dtype == jnp.bfloat16 and q.shape[-1] <= WIDEST and not q.shape[-1] % 8
    return "" if known else f"{q.dtype} heads of width {q.shape[-1]}"


def missing() -> str:
    """Why this jax has no such kernel; empty where it has."""
    return backends.unimportable(MODULE, "Pallas' splash attention")


def check(q: Array, dropping: bool) -> None:
    """Raises ValueError for what the kernel cannot do, or where it cannot run."""
    asked = 'kernels.attention="splash"'
    if dropping:
        raise ValueError(
            f"{asked} cannot drop probabilities: set "
            'kernels.attention="auto" or model.attention_dropout=0.'
        )
    if backends.platform() != "tpu":
        raise ValueError(
            f'{asked} needs a TPU, and there is none: set kernels.attention="auto".'
        )
    if _unknown(q):
        raise ValueError(
            f"{asked} needs bfloat16 heads whose width is a multiple of 8 up to "
            f'{WIDEST}, not {_unknown(q)}: set kernels.attention="auto".'
        )
    if missing():
        raise ValueError(
            f'{asked} cannot be had: {missing()}; set kernels.attention="auto".'
        )
