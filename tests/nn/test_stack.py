"""The stack of blocks: one scan, equal to a loop whatever is kept or unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.nn.layers import RMSNorm, SwiGLU
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import Loop, Stack

EXACT = Precision(compute="float32", matmul="highest")


class Small(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = RMSNorm(6)
        self.mlp = SwiGLU(6, 10, EXACT, rngs)

    def __call__(self, x, shift):
        return x + self.mlp(self.norm(x) + shift)


def build(**loop) -> Stack:
    return Stack(Small, 5, nnx.Rngs(0), Loop(**loop))


X = jax.random.normal(jax.random.key(1), (2, 3, 6))
SHIFT = jnp.float32(0.3)


def value_and_gradient(stack: Stack):
    graph, params = nnx.split(stack)
    probe = jnp.sin(jnp.arange(X.size)).reshape(X.shape)
    total = lambda params, x: jnp.sum(nnx.merge(graph, params)(x, SHIFT) * probe)
    out = jax.jit(lambda params, x: nnx.merge(graph, params)(x, SHIFT))(params, X)
    return out, jax.jit(jax.grad(total, (0, 1)))(params, X)


@pytest.fixture(scope="module")
def reference():
    return value_and_gradient(build(remat="none", unroll=1))


def test_every_layer_has_parameters_of_its_own():
    kernel = build().blocks.mlp.gate.kernel[...]
    assert kernel.shape == (5, 6, 10)
    flat = kernel.reshape(5, -1)
    assert np.unique(np.round(flat @ flat.T, 5)).size == 15  # no two layers alike


def test_scan_equals_a_loop_over_the_blocks(reference):
    graph, params = nnx.split(build().blocks)
    x = X
    for i in range(5):
        x = nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], params))(x, SHIFT)
    np.testing.assert_allclose(reference[0], x, atol=1e-5)


@pytest.mark.parametrize(
    "loop",
    [
        {"remat": "names"},
        {"remat": "full"},
        {"remat": "names", "unroll": 2},
        {"remat": "none", "unroll": 0},
        {"remat": "names", "unroll": 0},
        {"remat": "full", "unroll": 9},
    ],
    ids=str,
)
def test_remat_and_unrolling_change_no_results(loop, reference):
    ours = value_and_gradient(build(**loop))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ours, reference
    )


def test_remat_keeps_what_it_says():
    def saved(remat: str) -> int:
        graph, params = nnx.split(build(remat=remat))
        run = lambda params: nnx.merge(graph, params)(X, SHIFT).sum()
        leaves = jax.tree.leaves(jax.vjp(run, params)[1])
        return sum(leaf.size for leaf in leaves)

    assert saved("full") < saved("names") < saved("none")


@pytest.mark.parametrize(
    ("unroll", "expected"), [(0, []), (1, [1]), (3, [3]), (9, [5])]
)
def test_the_stack_is_one_scan_and_unroll_0_writes_it_out(unroll, expected):
    graph, params = nnx.split(build(unroll=unroll))
    run = lambda params: nnx.merge(graph, params)(X, SHIFT)
    steps = jax.make_jaxpr(run)(params).eqns
    scans = [step.params["unroll"] for step in steps if step.primitive.name == "scan"]
    assert scans == expected


def test_unknown_loops_are_refused():
    with pytest.raises(ValueError, match="loop.remat.*some"):
        Loop(remat="some").check()
    with pytest.raises(ValueError, match="loop.unroll.*-1"):
        Loop(unroll=-1).check()
