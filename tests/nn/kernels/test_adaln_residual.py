"""Gated sum, norm and modulation: the formula, and the kernel in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.kernels.adaln_residual import (
    KERNELS,
    AdaLN,
    Residual,
    adaln_residual,
    fused,
    reference,
)
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.packing import Packing

WIDTH, CHUNKS = 40, 3
GATE, SHIFT, SCALE = 2, 0, 1


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def given(lengths: tuple[int, ...], b: int = 2) -> dict:
    n = sum(lengths)
    return {
        "x": normal(0, b, n, WIDTH),
        "branch": normal(1, b, n, WIDTH),
        "modulation": tuple(
            normal(5 + i, b, CHUNKS * WIDTH) for i in range(len(lengths))
        ),
        "bias": normal(2, WIDTH),
        "gain": 1 + 0.3 * normal(3, WIDTH),
    }


# Which arrays are there, and the norm.
CASES = {
    "all": ({"branch", "bias", "gain"}, "rms"),
    "layer norm, no bias": ({"branch"}, "layer"),
    "norm alone": ({"gain"}, "rms"),
    "sum alone": ({"branch", "bias"}, None),
    "sum without bias": ({"branch"}, None),
}


def call(function, arrays: dict, packing: Packing, norm: str | None = "rms"):
    """A function of that signature on the arrays that are there; `norm` None: none."""
    residual = adaln = None
    if "branch" in arrays:
        residual = Residual(arrays["branch"], arrays.get("bias"), GATE)
    if norm is not None:
        adaln = AdaLN(arrays.get("gain"), SHIFT, SCALE, norm)
    return function(arrays["x"], arrays["modulation"], packing, residual, adaln)


@functools.partial(jax.jit, static_argnames=("function", "packing", "norm"))
def gradients(function, arrays: dict, packing: Packing, norm: str | None):
    """Both results, and the gradient of everything through both."""
    n = sum(packing.lengths)
    weights = normal(8, 2, n, WIDTH), normal(9, 2, n, WIDTH)

    def total(arrays: dict):
        out = call(function, arrays, packing, norm)
        pairs = zip(out, weights, strict=True)
        return sum(jnp.sum(a * w) for a, w in pairs), out

    return jax.value_and_grad(total, has_aux=True)(arrays)


# Mosaic's for GPUs are compared on one, by `python -m benchmarks.kernels`.
INTERPRETED = [name for name in KERNELS if name != "mosaic_gpu"]
FUSED = {name: functools.partial(fused, backend=name) for name in INTERPRETED}


@pytest.mark.parametrize("lengths", [(32,), (16, 48)], ids=["one", "two groups"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", FUSED)
def test_the_kernel_computes_the_formula_and_its_gradients(backend, case, lengths):
    there, norm = CASES[case]
    there = {"x", "modulation", *there}
    arrays = {name: a for name, a in given(lengths).items() if name in there}
    packing = Packing((2,) * len(lengths), lengths)
    plain, kernel = (
        gradients(function, arrays, packing, norm)
        for function in (reference, FUSED[backend])
    )

    def close(ours, theirs):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * scale)

    jax.tree.map(close, kernel[0][1], plain[0][1])
    jax.tree.map(close, kernel[1], plain[1])


def test_the_formula():
    arrays = given((3,))
    x, z = call(reference, arrays, Packing((2,), (3,)))
    shift, scale, gate = np.split(np.asarray(arrays["modulation"][0])[:, None], 3, -1)
    added = np.asarray(arrays["x"]) + gate * (arrays["branch"] + arrays["bias"])
    np.testing.assert_allclose(x, added, atol=1e-5)
    size = np.sqrt(np.mean(added**2, -1, keepdims=True) + 1e-6)
    expected = added / size * arrays["gain"] * (1 + scale) + shift
    np.testing.assert_allclose(z, expected, atol=1e-4)


@pytest.mark.parametrize("backend", FUSED)
def test_the_kernel_runs_on_each_device_s_part_of_a_batch(backend):
    arrays, packing = given((16,), b=4), Packing((4,), (16,))

    def total(arrays: dict):
        return sum(jnp.sum(a**3) for a in call(FUSED[backend], arrays, packing))

    alone = jax.jit(jax.grad(total))(arrays)
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        apart = jax.jit(jax.grad(total))(arrays)
        assert "shard_map" in str(jax.make_jaxpr(total)(arrays))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2),
        alone,
        apart,
    )


def test_other_sizes_are_refused():
    with (
        choose(Kernels(blocks="pallas")),
        pytest.raises(ValueError, match="multiples of 16 tokens.*alike batches"),
    ):
        call(adaln_residual, given((3,)), Packing((2,), (3,)))
