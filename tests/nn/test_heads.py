"""Queries, keys and values: the formula, and the kernel in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.nn.heads import queries_keys_values
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.sharding import MeshShape

HEAD = 24


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def given(n: int, heads: int, whole: bool, bias: bool = True, b: int = 2) -> dict:
    width = heads * HEAD
    gains = (normal(i, width if whole else HEAD) for i in (4, 5))
    angles = normal(7, n, HEAD // 2)
    return {
        "qkv": normal(0, b, n, 3 * width),
        "gains": tuple(1 + 0.3 * gain for gain in gains),
        "rope": (jnp.cos(angles), jnp.sin(angles)),
        "bias": normal(3, 3 * width) if bias else None,
    }


@functools.partial(jax.jit, static_argnames=("packing", "heads", "kernels"))
def gradients(arrays: dict, packing: Packing, heads: int, kernels: str):
    """The three results, and the gradients of projection, gains and bias."""
    rope = arrays.pop("rope")
    n = sum(packing.lengths)
    weights = [normal(8 + i, packing.batches[0], n, heads, HEAD) for i in range(3)]

    def total(arrays: dict):
        out = queries_keys_values(
            packing=packing, heads=heads, rope=rope, kernels=kernels, **arrays
        )
        return sum(jnp.sum(a * w) for a, w in zip(out, weights, strict=True)), out

    return jax.value_and_grad(total, has_aux=True)(arrays)


@pytest.mark.parametrize("lengths", [(16,), (8, 24)], ids=["one", "two groups"])
@pytest.mark.parametrize("whole", [False, True], ids=["each head", "all heads"])
@pytest.mark.parametrize("bare", [False, True], ids=["rope, bias", "neither"])
def test_the_kernel_computes_the_formula_and_its_gradients(lengths, whole, bare):
    heads = 3  # two powers of two
    arrays = given(sum(lengths), heads, whole, bias=not bare)
    if bare:
        arrays["rope"] = None
    packing = Packing((2,) * len(lengths), lengths)
    plain, fused = (
        gradients(dict(arrays), packing, heads, kernels)
        for kernels in ("xla", "pallas")
    )

    def close(ours, theirs):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * scale)

    jax.tree.map(close, fused[0][1], plain[0][1])
    jax.tree.map(close, fused[1], plain[1])


def test_the_kernel_runs_on_each_device_s_part_of_a_batch():
    arrays, packing = given(8, 2, False, b=4), Packing((4,), (8,))
    alone = gradients(dict(arrays), packing, 2, "pallas")
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        apart = gradients(dict(arrays), packing, 2, "pallas")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), alone, apart)


def test_matrices_that_are_split_over_devices_are_left_to_the_compiler():
    arrays, packing = given(8, 2, False), Packing((2,), (8,))
    run = lambda arrays: queries_keys_values(
        packing=packing, heads=2, kernels="pallas", **arrays
    )
    assert "pallas_call" in str(jax.make_jaxpr(run)(arrays))
    with jax.set_mesh(MeshShape(data=1, tensor=2).build(jax.devices()[:2])):
        assert "pallas_call" not in str(jax.make_jaxpr(run)(arrays))


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="multiples of 8 tokens"):
        queries_keys_values(
            packing=Packing((2,), (5,)), heads=2, kernels="pallas", **given(5, 2, False)
        )
