"""The neural field's block: unit columns, the formula, and the kernel interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.kernels.neural_field import (
    KERNELS,
    GeneratedMLP,
    fused,
    neural_field,
    reference,
    unit_columns,
)


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def given(b: int, n: int, pixels: int, width: int, hidden: int) -> tuple:
    """Pixels, the norm's gain, and both matrices, each with a column of zeros."""
    first, second = normal(2, b, n, width, hidden), normal(3, b, n, hidden, width)
    both = (first.at[..., 5].set(0), second.at[..., 5].set(0))
    return (
        normal(1, b, n, pixels, width),
        1 + 0.1 * normal(5, width),
        jnp.concatenate([matrix.reshape(b, n, -1) for matrix in both], -1),
    )


def test_both_matrices_lie_in_one_array():
    first, second = normal(2, 1, 3, 4, 6), normal(3, 1, 3, 6, 4)
    weights = jnp.concatenate([a.reshape(1, 3, -1) for a in (first, second)], -1)
    mlp = GeneratedMLP(weights, width=4)
    assert mlp.hidden == 6
    for ours, given in zip(mlp.matrices, (first, second), strict=True):
        np.testing.assert_array_equal(ours, given)


def test_columns_have_length_one():
    weight = normal(0, 3, 5, 4)
    unit = unit_columns(weight)
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=-2), 1, atol=1e-6)
    np.testing.assert_allclose(unit_columns(7 * weight), unit, atol=1e-6)
    np.testing.assert_allclose(
        unit, weight / np.linalg.norm(weight, axis=-2, keepdims=True), atol=1e-6
    )
    assert unit_columns(weight.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_zero_columns_have_finite_values_and_gradients():
    weight = jnp.ones((4, 3)).at[:, 1].set(0)
    total = lambda w: jnp.sum(unit_columns(w) ** 2 * jnp.arange(4)[:, None])
    value, gradient = jax.value_and_grad(total)(weight)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
    assert not unit_columns(weight)[:, 1].any()


UNIT = {"both": (True, True), "first": (True, False), "none": (False, False)}


@functools.partial(jax.jit, static_argnames=("function", "unit"))
def gradients(function, unit: tuple[bool, bool], arrays: tuple, out: jax.Array):
    """The result, and the gradient of everything."""
    with jax.default_matmul_precision("highest"):
        mlp = lambda z, weights: GeneratedMLP(weights, z.shape[-1], unit)
        run = lambda z, gain, weights: function(z, gain, mlp(z, weights))
        value, pull = jax.vjp(run, *arrays)
        return value, pull(out)


FUSED = {name: functools.partial(fused, backend=name) for name in KERNELS}


@pytest.mark.parametrize("unit", UNIT.values(), ids=UNIT)
@pytest.mark.parametrize("backend", FUSED)
def test_the_kernel_computes_the_products_and_their_gradients(backend, unit):
    arrays, out = given(2, 3, 128, 16, 32), normal(4, 2, 3, 128, 16)
    plain, kernel = (
        gradients(function, unit, arrays, out)
        for function in (reference, FUSED[backend])
    )

    def close(ours, theirs):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * scale)

    jax.tree.map(close, kernel, plain)


def test_the_kernel_refuses_sizes_it_does_not_know():
    z, gain, weights = given(1, 1, 64, 16, 24)
    with (
        choose(Kernels(field="pallas")),
        pytest.raises(ValueError, match="powers of two.*hidden width 24"),
    ):
        neural_field(z, gain, GeneratedMLP(weights, 16))


@pytest.mark.slow
def test_the_kernel_runs_on_each_device_s_part_of_a_batch():
    arrays = given(4, 1, 64, 16, 16)
    total = lambda z, gain, weights: jnp.sum(
        fused(z, gain, GeneratedMLP(weights, 16, (True, False))) ** 3
    )
    program = jax.grad(total, argnums=(0, 1, 2))
    alone = jax.jit(program)(*arrays)
    mesh = MeshShape(data=2, fsdp=2).build(jax.devices()[:4])
    with jax.set_mesh(mesh):
        apart = jax.jit(program)(*arrays)
        assert "shard_map" in str(jax.make_jaxpr(program)(*arrays))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        alone,
        apart,
    )
