"""Gated sum, norm and modulation: the formula, and the kernel in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.residual import between
from pixelflow_jax.sharding import MeshShape

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


MODULATED = {"shift": SHIFT, "scale": SCALE}
CASES = {
    "all": ({"gate": GATE, **MODULATED}, ()),
    "layer norm, no bias": (
        {"gate": GATE, "norm": "layer", **MODULATED},
        ("bias", "gain"),
    ),
    "norm alone": (MODULATED, ("branch", "bias")),
    "sum alone": ({"gate": GATE}, ("gain",)),
    "sum without bias": ({"gate": GATE}, ("gain", "bias")),
}


@functools.partial(jax.jit, static_argnames=("packing", "kernels", "how"))
def gradients(arrays: dict, packing: Packing, kernels: str, how: tuple):
    """Both results, and the gradient of everything through both."""
    n = sum(packing.lengths)
    weights = normal(8, 2, n, WIDTH), normal(9, 2, n, WIDTH)

    def total(arrays: dict):
        out = between(packing=packing, kernels=kernels, **dict(how), **arrays)
        pairs = zip(out, weights, strict=True)
        return sum(jnp.sum(a * w) for a, w in pairs if a is not None), out

    return jax.value_and_grad(total, has_aux=True)(arrays)


@pytest.mark.parametrize("lengths", [(32,), (16, 48)], ids=["one", "two groups"])
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_computes_the_formula_and_its_gradients(case, lengths):
    how, absent = CASES[case]
    arrays = {k: a for k, a in given(lengths).items() if k not in absent}
    packing = Packing((2,) * len(lengths), lengths)
    plain, fused = (
        gradients(arrays, packing, kernels, tuple(how.items()))
        for kernels in ("xla", "pallas")
    )

    def close(ours, theirs):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=3e-6 * scale)

    jax.tree.map(close, fused[0][1], plain[0][1])
    jax.tree.map(close, fused[1], plain[1])


def test_the_formula():
    arrays = given((3,))
    x, z = between(
        packing=Packing((2,), (3,)), gate=GATE, **MODULATED, kernels="xla", **arrays
    )
    shift, scale, gate = np.split(np.asarray(arrays["modulation"][0])[:, None], 3, -1)
    added = np.asarray(arrays["x"]) + gate * (arrays["branch"] + arrays["bias"])
    np.testing.assert_allclose(x, added, atol=1e-5)
    size = np.sqrt(np.mean(added**2, -1, keepdims=True) + 1e-6)
    expected = added / size * arrays["gain"] * (1 + scale) + shift
    np.testing.assert_allclose(z, expected, atol=1e-4)


def test_the_kernel_runs_on_each_device_s_part_of_a_batch():
    arrays, packing = given((16,), b=4), Packing((4,), (16,))

    def total(arrays: dict):
        out = between(
            packing=packing, gate=GATE, **MODULATED, kernels="pallas", **arrays
        )
        return sum(jnp.sum(a**3) for a in out)

    alone = jax.jit(jax.grad(total))(arrays)
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        apart = jax.jit(jax.grad(total))(arrays)
        assert "shard_map" in str(jax.make_jaxpr(total)(arrays))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2),
        alone,
        apart,
    )


def test_unknown_kernels_and_sizes_are_refused():
    with pytest.raises(ValueError, match="must be one of.*'triton'"):
        between(packing=Packing((2,), (3,)), kernels="triton", **given((3,)))
    with pytest.raises(ValueError, match="multiples of 16 tokens.*alike batches"):
        between(packing=Packing((2,), (3,)), kernels="pallas", **given((3,)))
