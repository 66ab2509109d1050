"""GELU by a formula against the error function's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.nn.activations import gelu


def test_gelu_and_its_slope_are_right_to_float32_s_last_digits():
    x = jnp.concatenate([jnp.linspace(-8, 8, 4001), jnp.array([0.0, -40.0, 40.0])])
    exact = functools.partial(jax.nn.gelu, approximate=False)
    np.testing.assert_allclose(gelu(x), exact(x), atol=6e-7, rtol=3e-7)
    slope = lambda function: jax.vmap(jax.grad(function))(x)
    np.testing.assert_allclose(slope(gelu), slope(exact), atol=6e-7)
