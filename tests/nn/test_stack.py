"""The stack of blocks: one scan, equal to a loop whatever is kept or unrolled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.nn.block import Block
from pixelflow_jax.nn.dropout import DropoutKeys, group_dropouts, layer_dropout_keys
from pixelflow_jax.nn.layers import BlockConfig, RMSNorm
from pixelflow_jax.nn.mlp import MLP
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import (
    Stack,
    StackConfig,
    join_modulations,
    layer_modulations,
    unstack_layers,
    written_out_blocks,
)

EXACT = Precision(compute="float32", matmul="highest")


class Small(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = RMSNorm(6)
        self.mlp = MLP("swiglu", 6, 10, EXACT, rngs)

    def __call__(self, x, shift):
        return x + self.mlp(self.norm(x) + shift, Packing((2,), (3,)))


def build(**stack) -> Stack:
    return Stack(Small, 5, nnx.Rngs(0), StackConfig(**stack))


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
    return value_and_gradient(build(remat="none"))


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
    "stack",
    [
        {"remat": "names"},
        {"remat": "branches"},
        {"remat": "mlp"},
        {"remat": "full"},
        {"remat": "names", "unroll": 2},
        {"remat": "none", "scan": False},
        {"remat": "names", "scan": False},
        {"remat": "full", "unroll": 9},
    ],
    ids=str,
)
def test_remat_and_unrolling_change_no_results(stack, reference):
    ours = value_and_gradient(build(**stack))
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
    ("config", "expected"),
    [({"scan": False}, []), ({}, [1]), ({"unroll": 3}, [3]), ({"unroll": 9}, [5])],
)
def test_the_stack_is_one_scan_or_written_out(config, expected):
    graph, params = nnx.split(build(**config))
    run = lambda params: nnx.merge(graph, params)(X, SHIFT)
    steps = jax.make_jaxpr(run)(params).eqns
    scans = [step.params["unroll"] for step in steps if step.primitive.name == "scan"]
    assert scans == expected


def test_unknown_loops_are_refused():
    with pytest.raises(ValueError, match="stack.remat.*some"):
        StackConfig(remat="some").check()
    with pytest.raises(ValueError, match="stack.unroll.*-1"):
        StackConfig(unroll=-1).check()


class Dropped(nnx.Module):
    """Like `Small`, with dropout of the MLP's output; collects masks in channel 0."""

    def __init__(self, rngs: nnx.Rngs):
        self.small = Small(rngs)

    def __call__(self, x, shift, drop: DropoutKeys | None = None):
        change = self.small(x, shift) - x
        (one,) = group_dropouts(drop, 0.4, 0) or (lambda change: change,)
        kept = one(jnp.ones(x.shape[:-1])) != 0
        return (x + one(change)).at[..., 0].set(2 * x[..., 0] + kept)


def dropped(layers: range, seed: int = 0, **stack):
    """The stack's output and gradients, where `layers` drop."""
    stack = Stack(Dropped, 5, nnx.Rngs(0), StackConfig(**stack))
    graph, params = nnx.split(stack)
    dropouts = layer_dropout_keys(jax.random.key(seed), (2,), 5, layers)

    def total(params, x):
        out = nnx.merge(graph, params)(x, SHIFT, dropouts=dropouts)
        return jnp.sum(out[..., 1:] ** 2), out

    start = jnp.tile(X, (1, 5, 1)).at[..., 0].set(0.0)
    (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params, start)
    return out, grads


def masks(out) -> np.ndarray:
    """Which layers kept each token, [2, 15, 5], from channel 0."""
    number = np.asarray(out[..., 0], int)
    return np.stack([number >> (4 - i) & 1 for i in range(5)], -1)


@pytest.fixture(scope="module")
def written_out():
    ranges = {"some": range(1, 4), "all": range(5), "none": range(0)}
    return {name: dropped(r, remat="none", scan=False) for name, r in ranges.items()}


@pytest.mark.parametrize(
    ("layers", "which", "stack"),
    [
        (range(1, 4), "some", {"remat": "none"}),
        (range(1, 4), "some", {"remat": "names", "unroll": 2}),
        (range(1, 4), "some", {"remat": "names", "scan": False}),
        (range(5), "all", {"remat": "full"}),
        (range(0), "none", {"remat": "names"}),
    ],
    ids=str,
)
def test_layers_drop_alike_however_the_stack_runs(layers, which, stack, written_out):
    out, grads = dropped(layers, **stack)
    expected, slopes = written_out[which]
    np.testing.assert_array_equal(masks(out), masks(expected))  # bit for bit
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    jax.tree.map(close, (out, grads), (expected, slopes))


def test_only_the_layers_of_the_range_drop_and_each_has_a_mask_of_its_own(written_out):
    some, everywhere, nowhere = (masks(out) for out, _ in written_out.values())
    assert nowhere.all() and some[..., [0, 4]].all()
    assert not some[..., 1:4].all()
    np.testing.assert_array_equal(some[..., 1:4], everywhere[..., 1:4])
    assert np.unique(everywhere.reshape(30, 5), axis=1).shape[1] == 5
    other = masks(dropped(range(5), seed=1, scan=False, remat="none")[0])
    assert (other != everywhere).any()


@pytest.mark.parametrize("scan", [False, True])
def test_layers_taken_apart_run_as_they_did_together(scan):
    stack = build(scan=scan, unroll=2)
    (graph, params), paths = nnx.split(stack), written_out_blocks(stack)
    assert paths == ([] if scan else [("blocks",)])
    pure = {"blocks": nnx.to_pure_dict(params)["blocks"], "other": {"blocks": {}}}
    apart = unstack_layers(
        unstack_layers(pure, paths), paths
    )  # twice is as good as once
    assert len(apart["blocks"]["norm"]["weight"]) == 5 and apart["other"] == {
        "blocks": {}
    }
    run = jax.jit(lambda params: nnx.merge(graph, params)(X, SHIFT))
    one, other = run({"blocks": pure["blocks"]}), run({"blocks": apart["blocks"]})
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 3])
def test_modulations_in_one_array_change_nothing(depth):
    config = BlockConfig(width=8, heads=2, hidden=12)
    stack = Stack(
        lambda rngs: Block(config, EXACT, rngs),
        depth,
        nnx.Rngs(0),
        StackConfig(scan=False, remat="none"),
    )
    # Fresh modulations are zeros: gates that are not show which layer adds what.
    graph, params = nnx.split(stack)
    params = jax.tree.map(
        lambda a: a + 0.1 * jnp.sin(jnp.arange(a.size)).reshape(a.shape), params
    )
    stack = nnx.merge(graph, params)
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    cond = (jax.random.normal(jax.random.key(2), (2, 8)),)
    apart = layer_modulations(stack, cond)
    (together,) = join_modulations([apart])
    assert together.groups[0].shape == (2, depth * 6 * 8)
    packing = Packing((2,), (3,))
    expected = stack(x, cond, packing, None)
    for ahead in (apart, together):
        found = stack(x, cond, packing, None, modulation=ahead)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
