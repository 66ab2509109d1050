"""Queries, keys and values: the formula, and the kernel in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.kernels.qkv_norm_rope import (
    KERNELS,
    fused,
    qkv_norm_rope,
    reference,
)
from pixelflow_jax.nn.packing import Packing

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


@functools.partial(jax.jit, static_argnames=("function", "heads"))
def gradients(function, arrays: dict, heads: int):
    """The three results, and the gradients of projection, gains and bias."""
    rope = arrays.pop("rope")
    b, n, _ = arrays["qkv"].shape
    weights = [normal(8 + i, b, n, heads, HEAD) for i in range(3)]

    def total(arrays: dict):
        out = function(heads=heads, rope=rope, **arrays)
        return sum(jnp.sum(a * w) for a, w in zip(out, weights, strict=True)), out

    return jax.value_and_grad(total, has_aux=True)(arrays)


FUSED = {name: functools.partial(fused, backend=name) for name in KERNELS}
HEADS = {"triton": 3, "mosaic_tpu": 5}  # two powers of two; more than a register


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("n", [16, 32])
@pytest.mark.parametrize("whole", [False, True], ids=["each head", "all heads"])
@pytest.mark.parametrize("bare", [False, True], ids=["rope, bias", "neither"])
def test_the_kernel_computes_the_formula_and_its_gradients(n, whole, bare, backend):
    heads = HEADS[backend]
    arrays = given(n, heads, whole, bias=not bare)
    if bare:
        arrays["rope"] = None
    plain, kernel = (
        gradients(function, dict(arrays), heads)
        for function in (reference, FUSED[backend])
    )

    def close(ours, theirs):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * scale)

    jax.tree.map(close, kernel[0][1], plain[0][1])
    jax.tree.map(close, kernel[1], plain[1])


@pytest.mark.parametrize("backend", FUSED)
def test_the_kernel_runs_on_each_device_s_part_of_a_batch(backend):
    heads, run = HEADS[backend], FUSED[backend]
    arrays = given(16, heads, False, b=4)
    alone = gradients(run, dict(arrays), heads)
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        apart = gradients(run, dict(arrays), heads)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-4)
    jax.tree.map(close, alone, apart)


def test_matrices_that_are_split_over_devices_are_left_to_the_compiler():
    arrays, packing = given(8, 2, False), Packing((2,), (8,))

    def run(arrays: dict):
        with choose(Kernels(blocks="pallas")):
            return qkv_norm_rope(packing=packing, heads=2, **arrays)

    assert "pallas_call" in str(jax.make_jaxpr(run)(arrays))
    with jax.set_mesh(MeshShape(data=1, tensor=2).build(jax.devices()[:2])):
        assert "pallas_call" not in str(jax.make_jaxpr(run)(arrays))


def test_other_sizes_are_refused():
    with (
        choose(Kernels(blocks="pallas")),
        pytest.raises(ValueError, match="multiples of 8 tokens"),
    ):
        qkv_norm_rope(packing=Packing((2,), (5,)), heads=2, **given(5, 2, False))
