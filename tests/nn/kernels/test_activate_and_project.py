"""From first products to the last: the formula, and the kernel in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.dropout import group_dropouts, layer_dropout_keys
from pixelflow_jax.nn.kernels.activate_and_project import (
    activate_and_project,
    fused,
    reference,
)
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.packing import Packing

HIDDEN, WIDTH = 192, 8
COUNT = {"swiglu": 2, "gelu": 1}


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def given(kind: str, n: int, bias: bool = True, b: int = 2) -> dict:
    count = COUNT[kind]
    return {
        "products": tuple(normal(i, b, n, HIDDEN) for i in range(count)),
        "biases": tuple(normal(3 + i, HIDDEN) for i in range(count)) if bias else (),
        "matrix": normal(7, HIDDEN, WIDTH),
    }


@functools.partial(jax.jit, static_argnames=("function", "kind", "packing", "rate"))
def gradients(function, arrays: dict, kind: str, packing: Packing, rate: float = 0):
    """The result and all gradients; every element of the image has a weight."""
    b, n = packing.batches[0], sum(packing.lengths)
    (drop,) = layer_dropout_keys(jax.random.key(1), packing.batches, 1, range(1))
    dropouts, weights = group_dropouts(drop, rate, 2), normal(9, b, n, WIDTH)

    def total(arrays: dict):
        out = function(kind, packing=packing, dropouts=dropouts, **arrays)
        return jnp.sum(out * weights), out

    with jax.default_matmul_precision("highest"):
        return jax.value_and_grad(total, has_aux=True)(arrays)


@pytest.mark.parametrize("kind", COUNT)
@pytest.mark.parametrize("lengths", [(32,), (16, 48)], ids=["one", "two groups"])
@pytest.mark.parametrize("bias", [True, False], ids=["biases", "none"])
@pytest.mark.parametrize("rate", [0, 0.3], ids=["", "dropout"])
def test_the_kernel_computes_the_formula_and_its_gradients(kind, lengths, bias, rate):
    packing = Packing((2,) * len(lengths), lengths)
    arrays = given(kind, sum(lengths), bias)
    plain, kernel = (
        gradients(function, arrays, kind, packing, rate)
        for function in (reference, fused)
    )

    def close(ours, theirs):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=5e-6 * scale)

    jax.tree.map(close, kernel[0][1], plain[0][1])
    jax.tree.map(close, kernel[1], plain[1])
    if rate:
        without = gradients(fused, arrays, kind, packing)
        assert np.abs(without[0][1] - kernel[0][1]).max() > 0.1


@pytest.mark.parametrize("function", [reference, fused], ids=["plain", "kernel"])
def test_gate_and_up_may_lie_side_by_side(function):
    packing, arrays = Packing((2,), (32,)), given("swiglu", 32)
    joined = arrays | {"products": (jnp.concatenate(arrays["products"], -1),)}
    (_, out), apart = gradients(reference, arrays, "swiglu", packing, 0.3)
    (_, same), found = gradients(function, joined, "swiglu", packing, 0.3)
    apart["products"] = (jnp.concatenate(apart["products"], -1),)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=5e-6 * np.abs(theirs).max())

    jax.tree.map(close, (same, found), (out, apart))


def test_the_kernel_runs_on_each_device_s_part_of_a_batch():
    arrays, packing = given("swiglu", 16, b=4), Packing((4,), (16,))
    alone = gradients(fused, arrays, "swiglu", packing, 0.3)
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        apart = gradients(fused, arrays, "swiglu", packing, 0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), alone, apart)


def test_other_sizes_are_refused():
    with (
        choose(Kernels(blocks="pallas")),
        pytest.raises(ValueError, match="multiples of 64"),
    ):
        activate_and_project("gelu", packing=Packing((2,), (5,)), **given("gelu", 5))
