"""The MLPs, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pixelflow_jax.nn.dropout import group_dropouts, layer_dropout_keys
from pixelflow_jax.nn.layers import TORCH
from pixelflow_jax.nn.mlp import MLP, gate_up_together
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import unstack_layers

EXACT = Precision(compute="float32", matmul="highest")
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32)
PACKING = Packing((2,), (3,))


def test_swiglu_by_hand():
    mlp = MLP("swiglu", 4, 6, EXACT, nnx.Rngs(0))
    gate, up, down = (layer.kernel[...] for layer in (mlp.gate, mlp.up, mlp.down))
    expected = (X @ gate * jax.nn.sigmoid(X @ gate) * (X @ up)) @ down
    np.testing.assert_allclose(mlp(X, PACKING), expected, atol=1e-5)
    assert mlp.gate.bias is None and mlp.up.bias is None and mlp.down.bias is None


def test_swiglu_with_biases_and_dropout_by_hand():
    ones, halves = nnx.initializers.ones, nnx.initializers.constant(0.5)
    initial = TORCH._replace(gate_up=halves, bias=ones)
    mlp = MLP("swiglu", 4, 6, EXACT, nnx.Rngs(0), bias=True, initial=initial)
    (drop,) = layer_dropout_keys(jax.random.key(1), (2,), 1, range(1))
    dropouts = group_dropouts(drop, 0.5, 2)
    inner = X.sum(-1, keepdims=True) / 2 + 1  # gate and up are alike
    hidden = jnp.broadcast_to(jax.nn.silu(inner) * inner, (2, 3, 6))
    kept = dropouts[0](jnp.ones_like(hidden))
    assert set(np.unique(kept)) == {0, 2}
    # The last bias is the caller's to add.
    expected = (kept * hidden) @ mlp.down.kernel[...]
    np.testing.assert_allclose(
        mlp(X, PACKING, dropouts), expected, rtol=1e-4, atol=1e-6
    )


def test_gelu_by_hand():
    mlp = MLP("gelu", 4, 6, EXACT, nnx.Rngs(0), bias=True)
    mlp.up.bias[...] = jnp.arange(6.0)
    hidden = X @ mlp.up.kernel[...] + jnp.arange(6.0)
    bent = hidden * (1 + jnp.tanh((2 / np.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    expected = bent / 2 @ mlp.down.kernel[...]
    np.testing.assert_allclose(mlp(X, PACKING), expected, atol=1e-5)


def test_gate_and_up_as_one_product_give_the_same():
    mlp = MLP("swiglu", 4, 6, EXACT, nnx.Rngs(0), bias=True)
    graph, state = nnx.split(mlp)
    params = nnx.to_pure_dict(state)
    once = gate_up_together(params)
    assert once["gate"]["kernel"].shape == (4, 12)
    assert once["up"]["kernel"].shape == (4, 0)
    assert once["down"] is not None and params["gate"]["kernel"].shape == (4, 6)
    for made in (once, gate_up_together(once)):
        joined = nnx.merge(graph, made)(X, PACKING)
        np.testing.assert_allclose(joined, mlp(X, PACKING), atol=1e-6)


def test_gate_and_up_are_joined_layer_by_layer_wherever_they_lie():
    kernel = lambda *shape: {"kernel": jnp.ones(shape)}
    mlp = {"gate": kernel(3, 4, 6), "up": kernel(3, 4, 6), "down": kernel(3, 6, 4)}
    gelu = {"up": kernel(3, 4, 6), "down": kernel(3, 6, 4)}
    params = {"late": {"blocks": {"mlp": mlp, "other": gelu}}}
    apart = unstack_layers(params, [("late", "blocks")])
    for given in (params, apart):
        shapes = jax.tree.map(jnp.shape, gate_up_together(given)["late"]["blocks"])
        before = jax.tree.map(jnp.shape, given["late"]["blocks"])
        assert shapes["other"] == before["other"]
        assert shapes["mlp"]["down"] == before["mlp"]["down"]
        whole = jax.tree.leaves(
            gate_up_together(given)["late"]["blocks"]["mlp"]["gate"]
        )
        assert {a.shape[-2:] for a in whole} == {(4, 12)}
