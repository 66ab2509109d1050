"""Linear layers, norms and AdaLN modulation."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from pixelflow_jax.nn import products
from pixelflow_jax.nn.precision import Precision

Initializer = Callable[..., Array]  # of key, shape and type

# PyTorch's default for linear layers: weights and biases uniform in +-1/sqrt(fan_in).
torch_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier = nnx.initializers.xavier_uniform()
zeros = nnx.initializers.zeros


def torch_default_bias(fan_in: int) -> Initializer:
    """PyTorch's default bias initialiser for a layer with `fan_in` inputs."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple, dtype: DTypeLike = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def fused_xavier(parts: float) -> Initializer:
    """Xavier's uniform initialiser for `parts` equal layers side by side in one matrix.

    Each part is drawn as if it stood alone. Below 1 it is the other way round: 1/2 is
    for one of two matrices that are drawn as if they were one.
    """

    def init(key: Array, shape: tuple, dtype: DTypeLike = jnp.float32) -> Array:
        inputs, outputs = shape
        bound = (6 / (inputs + outputs / parts)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Initial(NamedTuple):
    """How the linear layers of a block begin.

    `gate_up` initialises the MLP's matrices before the activation; `bias` None is
    PyTorch's default. With `zero_modulation` a block begins as the identity.
    """

    kernel: Initializer
    gate_up: Initializer
    bias: Initializer | None
    zero_modulation: bool


TORCH = Initial(torch_default, torch_default, None, zero_modulation=False)
# The official JiT draws gate and up as one matrix, which narrows the bound.
XAVIER = Initial(xavier, fused_xavier(1 / 2), zeros, zero_modulation=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """The sizes of a block, its rates of dropout, and how it begins.

    `hidden` is the MLP's width, `bias` gives biases to the projection to queries, keys
    and values and to the MLP. `attention_dropout` is the rate of the attention
    probabilities, `dropout` that of the attention's output and of the MLP's hidden
    values.
    """

    width: int
    heads: int
    hidden: int
    bias: bool = False
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initial: Initial = TORCH


def linear(
    inputs: int,
    outputs: int,
    precision: Precision,
    rngs: nnx.Rngs,
    *,
    bias: bool = True,
    init: Initializer = torch_default,
    bias_init: Initializer | None = None,
) -> nnx.Linear:
    """A linear layer with float32 parameters, computed in the policy's type.

    Its initialisation is PyTorch's default unless `init` and `bias_init` say otherwise.
    """
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=precision.dtype,
        param_dtype=jnp.float32,
        kernel_init=init,
        bias_init=bias_init or torch_default_bias(inputs),
        dot_general=products.dot_general,
        promote_dtype=products.promote,
        rngs=rngs,
    )


def matmul_no_bias(
    layer: nnx.Linear, x: Float[Array, "*axes inputs"]
) -> Float[Array, "*axes outputs"]:
    """The layer's matrix product, without its bias, which others add."""
    return products.matmul(x.astype(layer.dtype), layer.kernel[...])


def bias_of(layer: nnx.Linear) -> Float[Array, " outputs"] | None:
    """The layer's bias, or None where it has none."""
    return None if layer.bias is None else layer.bias[...]


def matrix_and_bias(
    layer: nnx.Linear, dtype: DTypeLike
) -> tuple[Float[Array, "inputs outputs"], Float[Array, " outputs"]]:
    """The matrix as it is, for `products`, and the bias in another type.

    Of a layer that has a bias.
    """
    assert layer.bias is not None
    return layer.kernel[...], layer.bias[...].astype(dtype)


def split_heads(
    x: Float[Array, "*axes width"], heads: int
) -> Float[Array, "*axes {heads} head_width"]:
    """The last axis as heads of equal widths."""
    return x.reshape(*x.shape[:-1], heads, -1)


class RMSNorm(nnx.Module):
    """x / rms(x) * weight over the last axis; float32 inside, x's type outside.

    Source: Zhang & Sennrich 2019; eps 1e-6.
    """

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(self, x: Float[Array, "*axes width"]) -> Float[Array, "*axes width"]:
        """The same, normalised."""
        return rms_norm(x, self.weight[...])


def rms_norm(
    x: Float[Array, "*axes width"], weight: Float[Array, " width"]
) -> Float[Array, "*axes width"]:
    """x / rms(x) * weight over the last axis, float32 inside, x's type outside."""
    return (rms_normalise(x) * weight).astype(x.dtype)


def rms_normalise(
    x: Float[Array, "*axes width"], eps: float = 1e-6
) -> Float[Array, "*axes width"]:
    """x / rms(x) over the last axis, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


def layer_normalise(
    x: Float[Array, "*axes width"], eps: float = 1e-6
) -> Float[Array, "*axes width"]:
    """(x - mean) / std over the last axis, float32, without weights."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


def modulate(
    x: Float[Array, "*#axes width"],
    shift: Float[Array, "*#axes width"],
    scale: Float[Array, "*#axes width"],
) -> Float[Array, "*#axes width"]:
    """AdaLN: x * (1 + scale) + shift, in float32, returned in x's type."""
    x32, shift, scale = (a.astype(jnp.float32) for a in (x, shift, scale))
    return (x32 * (1 + scale) + shift).astype(x.dtype)


def gated(
    x: Float[Array, "*#axes width"],
    gate: Float[Array, "*#axes width"],
    branch: Float[Array, "*#axes width"],
) -> Float[Array, "*#axes width"]:
    """Residual x + gate * branch, in float32, returned in x's type."""
    x32, gate, branch32 = (a.astype(jnp.float32) for a in (x, gate, branch))
    return (x32 + gate * branch32).astype(x.dtype)
