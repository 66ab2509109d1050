"""A matrix's gradient is computed in the matrix's own type; all else is as ever."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.nn.layers import linear
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.products import matmul

draw = np.random.default_rng(0).standard_normal
X = jnp.asarray(draw((4, 50, 16)), jnp.bfloat16)
KERNEL = jnp.asarray(draw((16, 8)), jnp.float32)
COTANGENT = jnp.asarray(draw((4, 50, 8)), jnp.bfloat16)


def gradients(kernel):
    out, back = jax.vjp(matmul, X, kernel)
    return out, *back(COTANGENT)


def test_only_the_gradient_of_the_matrix_differs():
    half, dx_half, dkernel_half = gradients(KERNEL.astype(jnp.bfloat16))
    out, dx, dkernel = gradients(KERNEL)
    assert out.dtype == dx.dtype == dkernel_half.dtype == jnp.bfloat16
    assert dkernel.dtype == jnp.float32
    np.testing.assert_array_equal(out, half)
    np.testing.assert_array_equal(dx, dx_half)
    exact = np.einsum("bni,bno->io", np.float64(X), np.float64(COTANGENT))
    error = lambda a: np.linalg.norm(np.float64(a) - exact) / np.linalg.norm(exact)
    assert error(dkernel) < 1e-6 < 1e-4 < error(dkernel_half)


@pytest.mark.parametrize("bias", [True, False])
def test_layers_take_either_matrix(bias):
    layer = linear(16, 8, Precision(), nnx.Rngs(0), bias=bias)
    graph, params = nnx.split(layer)

    def call(dtype):
        cast = lambda a: a.astype(dtype) if a.ndim == 2 else a
        return nnx.merge(graph, jax.tree.map(cast, params))(X)

    whole, half = call(jnp.float32), call(jnp.bfloat16)
    assert whole.dtype == half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(whole, half)
