"""Linear layers, norms and AdaLN modulation."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from pixelflow_jax.nn.precision import Precision

# PyTorch's default for linear layers: weights and biases uniform in +-1/sqrt(fan_in).
torch_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
xavier = nnx.initializers.xavier_uniform()


def torch_default_bias(fan_in: int) -> Callable:
    """PyTorch's default bias initialiser for a layer with `fan_in` inputs."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple, dtype: jnp.dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def fused_xavier(parts: float) -> Callable:
    """Xavier's uniform initialiser for `parts` equal layers side by side in one matrix.

    Each part is drawn as if it stood alone. Below 1 it is the other way round: 1/2 is
    for one of two matrices that are drawn as if they were one.
    """

    def init(key: Array, shape: tuple, dtype: jnp.dtype = jnp.float32) -> Array:
        inputs, outputs = shape
        bound = (6 / (inputs + outputs / parts)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Initial(NamedTuple):
    """How the linear layers of a block begin.

    `gate_up` initialises the MLP's matrices before the activation; `bias` None is
    PyTorch's default. With `zero_modulation` a block begins as the identity.
    """

    kernel: Callable
    gate_up: Callable
    bias: Callable | None
    zero_modulation: bool


zeros = nnx.initializers.zeros
TORCH = Initial(torch_default, torch_default, None, zero_modulation=False)
# The official JiT draws gate and up as one matrix, which narrows the bound.
XAVIER = Initial(xavier, fused_xavier(1 / 2), zeros, zero_modulation=True)


def linear(
    inputs: int,
    outputs: int,
    precision: Precision,
    rngs: nnx.Rngs,
    *,
    bias: bool = True,
    init: Callable = torch_default,
    bias_init: Callable | None = None,
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
        rngs=rngs,
    )


def matmul_no_bias(layer: nnx.Linear, x: Array) -> Array:
    """[..., inputs] to [..., outputs] without the layer's bias, which others add."""
    return x.astype(layer.dtype) @ layer.kernel[...].astype(layer.dtype)


def bias_of(layer: nnx.Linear) -> Array | None:
    """The layer's bias, or None where it has none."""
    return None if layer.bias is None else layer.bias[...]


def split_heads(x: Array, heads: int) -> Array:
    """[..., width] to [..., heads, width / heads]."""
    return x.reshape(*x.shape[:-1], heads, -1)


class RMSNorm(nnx.Module):
    """x / rms(x) * weight over the last axis; float32 inside, x's type outside.

    Source: Zhang & Sennrich 2019; eps 1e-6.
    """

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.ones(width, jnp.float32))

    def __call__(self, x: Array) -> Array:
        """Normalise [..., width]."""
        return rms_norm(x, self.weight[...])


def rms_norm(x: Array, weight: Array) -> Array:
    """x / rms(x) * weight over the last axis, float32 inside, x's type outside."""
    return (rms_normalise(x) * weight).astype(x.dtype)


def rms_normalise(x: Array, eps: float = 1e-6) -> Array:
    """x / rms(x) over the last axis, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


def layer_normalise(x: Array, eps: float = 1e-6) -> Array:
    """(x - mean) / std over the last axis, float32, without weights."""
    x = x.astype(jnp.float32)
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """AdaLN: x * (1 + scale) + shift, in float32, returned in x's type."""
    x32, shift, scale = (a.astype(jnp.float32) for a in (x, shift, scale))
    return (x32 * (1 + scale) + shift).astype(x.dtype)


def gated(x: Array, gate: Array, branch: Array) -> Array:
    """Residual x + gate * branch, in float32, returned in x's type."""
    x32, gate, branch32 = (a.astype(jnp.float32) for a in (x, gate, branch))
    return (x32 + gate * branch32).astype(x.dtype)
