"""Attention from the projection on: the formula, and the kernel in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.nn.attention import SelfAttention
from pixelflow_jax.nn.embed import rotary_table
from pixelflow_jax.nn.kernels.choice import Kernels, choose
from pixelflow_jax.nn.kernels.short_attention import fused, reference
from pixelflow_jax.nn.kernels.triton import short_attention as triton
from pixelflow_jax.nn.layers import BlockConfig
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision

HEADS = 2
EXACT = Precision(compute="float32", matmul="highest")


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def given(n: int, head: int, bare: bool = False, b: int = 2) -> dict:
    width, angles = HEADS * head, normal(7, n, head // 2)
    return {
        "qkv": normal(0, b, n, 3 * width),
        "gains": tuple(1 + 0.3 * normal(i, head) for i in (4, 5)),
        "rope": None if bare else (jnp.cos(angles), jnp.sin(angles)),
        "bias": None if bare else normal(3, 3 * width),
    }


@functools.partial(jax.jit, static_argnames="function")
def gradients(function, arrays: dict):
    """The result, and the gradients of projection, gains and bias."""
    rope = arrays.pop("rope")

    def total(arrays: dict):
        out = function(heads=HEADS, rope=rope, **arrays)
        return jnp.sum(out * normal(8, *out.shape)), out

    (_, out), grads = jax.value_and_grad(total, has_aux=True)(arrays)
    return out, grads


def close(ours, theirs, bound: float = 4e-6):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * np.abs(theirs).max())


# A head of two blocks of lanes, the second too narrow for a product; one block of
# tokens, several with a narrower one behind them, and a last tile that begins earlier.
@pytest.mark.parametrize(
    ("n", "head", "bare"), [(16, 8, False), (48, 40, True), (144, 24, False)]
)
def test_the_kernel_computes_the_formula_and_its_gradients(n, head, bare):
    arrays = given(n, head, bare)
    ours, theirs = (gradients(f, dict(arrays)) for f in (fused, reference))
    jax.tree.map(close, ours, theirs)
    close(jax.jit(lambda arrays: fused(heads=HEADS, **arrays))(arrays), theirs[0])


def test_large_logits_of_later_blocks_do_not_overflow():
    arrays = given(144, 24)
    arrays["gains"] = tuple(40 * gain for gain in arrays["gains"])
    ours, theirs = (gradients(f, dict(arrays)) for f in (fused, reference))
    jax.tree.map(functools.partial(close, bound=2e-3), ours, theirs)


def test_the_kernel_runs_on_each_device_s_part_of_a_batch():
    arrays = given(16, 24, b=4)
    alone = gradients(fused, dict(arrays))
    with jax.set_mesh(MeshShape(data=2, fsdp=2).build(jax.devices()[:4])):
        jax.tree.map(close, gradients(fused, dict(arrays)), alone)


@pytest.mark.parametrize("head", [24, 72])
@pytest.mark.parametrize("n", [16, 48, 257, 288])
def test_blocks_and_tiles_are_powers_of_two_and_cover_all(n, head):
    cut = triton.cut(n, head, triton.FORWARD)
    for pairs, size in ((cut.across, n), (cut.lanes, head)):
        assert [a + b for a, b in pairs] == [*(a for a, _ in pairs[1:]), size]
        assert not any(b & (b - 1) for _, b in pairs)
    assert cut.rows <= n and not cut.rows & (cut.rows - 1)


@pytest.fixture(scope="module")
def module() -> SelfAttention:
    config = BlockConfig(width=48, heads=HEADS, hidden=0)
    return SelfAttention(config, EXACT, nnx.Rngs(0))


def test_a_layer_that_insists_on_it_has_the_same_result(module):
    tokens, rope = normal(1, 2, 16, 48), rotary_table(4, 4, 24, 16.0)

    def run(tokens, attention: str):
        with choose(Kernels(attention=attention)):
            return module(tokens, Packing((2,), (16,)), rope)

    text = str(jax.make_jaxpr(functools.partial(run, attention="pallas"))(tokens))
    assert "short_attention_forward" in text
    close(*(jax.jit(run, static_argnums=1)(tokens, word) for word in ("pallas", "xla")))


@pytest.mark.parametrize(
    ("packing", "match"),
    [
        (Packing((2,), (15,)), "multiples of 16"),
        (Packing((2,), (2048,)), "at most 45,056 numbers of a head's keys"),
        (Packing((2, 2), (16, 16)), "each head normalised by itself"),
    ],
    ids=["odd", "long", "packed"],
)
def test_what_it_does_not_know_is_refused(module, packing, match):
    tokens = normal(1, 2, sum(packing.lengths), 48)
    with (
        choose(Kernels(attention="pallas")),
        pytest.raises(ValueError, match=match),
    ):
        module(tokens, packing, None)


def test_split_matrices_have_no_kernel(module):
    mesh = MeshShape(data=1, tensor=2).build(jax.devices()[:2])
    with (
        jax.set_mesh(mesh),
        choose(Kernels(attention="pallas")),
        pytest.raises(ValueError, match='set kernels.attention="auto"'),
    ):
        module(normal(1, 2, 16, 48), Packing((2,), (16,)), None)


@pytest.mark.parametrize("n", [256, 288])
def test_it_lowers_for_a_gpu_at_full_size(n):
    """Triton knows powers of two alone, which interpreting does not notice."""
    given = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
    arrays = {
        "qkv": given(jnp.bfloat16, 2, n, 3 * HEADS * 72),
        "gains": (given(jnp.float32, 72),) * 2,
        "rope": (given(jnp.float32, n, 36),) * 2,
        "bias": given(jnp.float32, 3 * HEADS * 72),
    }
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", 1, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = gradients.trace(fused, arrays)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    for kernel in ("forward", "of_queries", "of_keys"):
        assert f"short_attention_{kernel}" in text
