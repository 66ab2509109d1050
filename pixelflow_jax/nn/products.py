"""Products with a layer's matrix, and the type in which its gradient is summed.

A matrix that was cast before has a gradient of the type it was cast to, which is also
the type in which the compiler sums it over devices. One that comes in float32 is cast
here, and the gradient, summed over tokens and devices, is float32 throughout.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def matmul(
    x: Float[Array, "*axes inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "*axes outputs"]:
    """x @ kernel in x's type; the gradient of `kernel` is computed in its own type."""
    return x @ kernel if kernel.dtype == x.dtype else _mixed(x, kernel)


@jax.custom_vjp
def _mixed(x: Array, kernel: Array) -> Array:
    return x @ kernel.astype(x.dtype)


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _mixed(x, kernel), (x, kernel)


def _backward(kept: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = kept
    dx = cotangent @ kernel.astype(x.dtype).T
    return dx, kernel_gradient(x, cotangent, kernel.dtype)


_mixed.defvjp(_forward, _backward)


def kernel_gradient(
    x: Float[Array, "*axes inputs"],
    cotangent: Float[Array, "*axes outputs"],
    dtype: jnp.dtype,
) -> Float[Array, "inputs outputs"]:
    """The gradient of x @ kernel for a kernel of that type."""
    axes = tuple(range(x.ndim - 1))
    return jax.lax.dot_general(
        x, cotangent, ((axes, axes), ((), ())), preferred_element_type=dtype
    )


def promote(arrays: Any, dtype: Any = None, inexact: bool = True) -> Any:
    """What `nnx.Linear` does first; it leaves a matrix in float32 for `matmul`."""
    inputs, kernel, bias = arrays
    return inputs.astype(dtype), kernel, None if bias is None else bias.astype(dtype)


def dot_general(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """What `nnx.Linear` calls for its product."""
    return matmul(x, kernel)
