"""The shared transformer block and the token decoder, against their formulas."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.nn.block import Block, BlockConfig
from pixelflow_jax.nn.decoder import TokenDecoder
from pixelflow_jax.nn.dropout import layer_dropout_keys
from pixelflow_jax.nn.layers import TORCH, XAVIER, RMSNorm, layer_normalise
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.nn.precision import Precision

EXACT = Precision(compute="float32", matmul="highest")
WIDTH, HEADS, TOKENS, HIDDEN = 16, 2, 5, 12


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def drawn(module: nnx.Module) -> nnx.Module:
    """The module with every parameter moved, so that nothing is zero or one."""
    graph, params = nnx.split(module)
    leaves, structure = jax.tree.flatten(params)
    moved = [
        jnp.asarray(np.asarray(a) + 0.3 * np.asarray(normal(i, *a.shape)))
        for i, a in enumerate(leaves)
    ]
    return nnx.merge(graph, jax.tree.unflatten(structure, moved))


def block(**options) -> Block:
    config = BlockConfig(width=WIDTH, heads=HEADS, hidden=HIDDEN, **options)
    return Block(config, EXACT, nnx.Rngs(0))


X, COND = normal(90, 3, TOKENS, WIDTH), normal(91, 3, WIDTH)
ALONE = Packing((3,), (TOKENS,))
ANGLES = normal(92, TOKENS, WIDTH // HEADS // 2)
ROPE = (jnp.cos(ANGLES), jnp.sin(ANGLES))


@functools.partial(jax.jit, static_argnums=(0, 4))
def call(graph, params, x, conds, packing, rope, drop):
    return nnx.merge(graph, params)(x, conds, packing, rope, drop)


def run(one: Block, drop=None) -> jax.Array:
    return call(*nnx.split(one), X, (COND,), ALONE, ROPE, drop)


def dense(layer: nnx.Linear, x) -> np.ndarray:
    bias = 0 if layer.bias is None else np.asarray(layer.bias[...])
    return np.asarray(x, np.float64) @ np.asarray(layer.kernel[...]) + bias


def rms(norm: RMSNorm, x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    size = np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6)
    return x / size * np.asarray(norm.weight[...])


@pytest.mark.parametrize("bias", [False, True])
def test_the_block_is_its_formula(bias):
    """Written with complex numbers for the rotation and a loop over the heads."""
    one = drawn(block(bias=bias))
    chunks = np.split(dense(one.modulation, COND)[:, None], 6, -1)
    shift1, scale1, gate1, shift2, scale2, gate2 = chunks
    z = rms(one.norm1, X) * (1 + scale1) + shift1
    q, k, v = np.split(dense(one.attention.qkv, z), 3, -1)
    turn, mixed = np.exp(1j * np.asarray(ANGLES)), []
    for part in (slice(0, 8), slice(8, 16)):
        turned = []
        for a, norm in ((q, one.attention.q_norm), (k, one.attention.k_norm)):
            a = rms(norm, a[..., part])
            pairs = (a[..., ::2] + 1j * a[..., 1::2]) * turn
            turned.append(np.stack([pairs.real, pairs.imag], -1).reshape(a.shape))
        weights = np.exp(np.einsum("bnd,bmd->bnm", *turned) / np.sqrt(8))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ v[..., part])
    x = X + gate1 * dense(one.attention.out, np.concatenate(mixed, -1))
    z = rms(one.norm2, x) * (1 + scale2) + shift2
    gate = dense(one.mlp.gate, z)
    hidden = gate / (1 + np.exp(-gate)) * dense(one.mlp.up, z)
    expected = x + gate2 * dense(one.mlp.down, hidden)
    np.testing.assert_allclose(run(one), expected, atol=2e-4, rtol=1e-4)


def test_biases_are_where_they_are_asked_for():
    without, given = block(), block(bias=True)
    for one in (without, given):
        assert one.attention.out.bias is not None and one.modulation.bias is not None
    for layer in ("gate", "up", "down"):
        assert getattr(without.mlp, layer).bias is None
        assert getattr(given.mlp, layer).bias is not None
    assert without.attention.qkv.bias is None and given.attention.qkv.bias is not None


def test_initial_values():
    one = block(bias=True, initial=XAVIER)
    np.testing.assert_array_equal(run(one), X)  # zero gates
    bounds = {
        "attention.qkv": np.sqrt(6 / (WIDTH + 3 * WIDTH)),
        "attention.out": np.sqrt(6 / (WIDTH + WIDTH)),
        "mlp.gate": np.sqrt(6 / (WIDTH + 2 * HIDDEN)),
        "mlp.up": np.sqrt(6 / (WIDTH + 2 * HIDDEN)),
        "mlp.down": np.sqrt(6 / (WIDTH + HIDDEN)),
    }
    for name, bound in bounds.items():
        group, layer = name.split(".")
        found = getattr(getattr(one, group), layer)
        largest = jnp.abs(found.kernel[...]).max()
        assert 0.97 * bound < largest <= bound and not found.bias[...].any(), name
    other = block(initial=TORCH)
    assert other.modulation.kernel[...].any()
    assert (jnp.abs(other.modulation.kernel[...]) <= WIDTH**-0.5).all()


RATES = {"dropout": 0.5, "attention_dropout": 0.25}


def drop(seed: int = 0, batches: tuple[int, ...] = (3,)):
    return layer_dropout_keys(jax.random.key(seed), batches, 1, range(1))[0]


def test_dropout_follows_its_key_and_is_off_without_one():
    plain, dropping = (drawn(block(bias=True, **rates)) for rates in ({}, RATES))
    np.testing.assert_array_equal(run(dropping), run(plain))
    np.testing.assert_array_equal(run(plain, drop()), run(plain))
    one = run(dropping, drop())
    np.testing.assert_array_equal(run(dropping, drop()), one)
    assert jnp.abs(one - run(dropping, drop(1))).max() > 1e-3
    assert jnp.abs(one - run(dropping)).max() > 1e-3


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"attention_dropout": 0.5}])
def test_dropout_keeps_the_mean_of_what_it_acts_on(rates):
    """Where a branch is linear in what is dropped, its mean over keys is the branch."""
    one = block(bias=True, **rates)
    one.modulation.bias[...] = jnp.repeat(jnp.array([0.0, 0, 1, 0, 0, 1]), WIDTH)
    one.modulation.kernel[...] *= 0
    if "attention_dropout" in rates:
        one.mlp.down.kernel[...] *= 0  # the MLP is not linear in the attention
    else:
        one.attention.out.kernel[...] *= 0
        one.attention.out.bias[...] *= 0
    graph, params = nnx.split(one)

    @jax.jit
    def mean(keys):
        dropouts = lambda key: layer_dropout_keys(key, (3,), 1, range(1))[0]
        one = lambda key: call(graph, params, X, (COND,), ALONE, ROPE, dropouts(key))
        outs = jax.lax.map(one, keys, batch_size=100)
        return outs.mean(0), outs.std(0)

    count = 500
    found, spread = mean(jax.random.split(jax.random.key(5), count))
    error = spread / np.sqrt(count) + 1e-6
    assert (jnp.abs(found - run(one)) < 5 * error).all()
    assert float(spread.max()) > 0.05


def test_projection_and_hidden_values_drop_at_places_of_their_own():
    """The attention's output comes back with zeros, the MLP's does not."""
    one = drawn(block(**RATES))
    one.modulation.kernel[...] *= 0
    gates = lambda *on: jnp.repeat(jnp.array([0.0, 0, on[0], 0, 0, on[1]]), WIDTH)
    one.modulation.bias[...] = gates(1.0, 0.0)
    change = run(one, drop()) - X
    zeros = (change == 0).mean()
    assert 0.3 < zeros < 0.7
    kept = change[change != 0]
    one.modulation.bias[...] = gates(0.0, 1.0)
    change = run(one, drop()) - X
    assert (change != 0).all() and kept.size


def test_packed_groups_drop_like_each_group_alone():
    graph, params = nnx.split(drawn(block(**RATES)))
    batches, lengths = (1, 2), (4, 3)
    packing, both = Packing(batches, lengths), drop(batches=batches)
    groups = [normal(b + n, b, n, WIDTH) for b, n in zip(batches, lengths, strict=True)]
    conds = tuple(normal(i, b, WIDTH) for i, b in enumerate(batches))
    tables = [(ROPE[0][:n], ROPE[1][:n]) for n in lengths]

    @jax.jit
    def packed_and_alone(params):
        one = nnx.merge(graph, params)
        rope = tuple(packing.tile([table[i] for table in tables]) for i in (0, 1))
        packed = packing.split(one(packing.join(groups), conds, packing, rope, both))
        alone = [
            one(group, (cond,), Packing.of([group]), table, both._replace(keys=(keys,)))
            for group, cond, table, keys in zip(
                groups, conds, tables, both.keys, strict=True
            )
        ]
        return packed, alone

    for one, other in zip(*packed_and_alone(params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_the_decoder_is_its_formula(norm):
    model = types.SimpleNamespace(width=WIDTH, patch=2, channels=3)
    norms = {"rms": RMSNorm(WIDTH), "layer": layer_normalise}
    start = TokenDecoder(model, nnx.Rngs(0), EXACT, norms[norm])
    tokens, image = normal(1, 2, 6, WIDTH), jnp.ones((2, 4, 6, 3))
    assert not start(image, tokens, COND[:2], COND[:2]).any()
    decoder = drawn(start)
    shift, scale = np.split(dense(decoder.modulation, COND[:2])[:, None], 2, -1)
    if norm == "rms":
        normal_tokens = rms(decoder.norm, tokens)
    else:
        normal_tokens = np.asarray(layer_normalise(tokens))
    patches = dense(decoder.linear, normal_tokens * (1 + scale) + shift)
    pixel = patches[1, 4].reshape(2, 2, 3)  # token 4 is row 1, column 1
    out = decoder(image, tokens, 0 * COND[:2], COND[:2])
    assert out.shape == image.shape and out.dtype == jnp.float32
    np.testing.assert_allclose(out[1, 2:4, 2:4], pixel, atol=1e-4)
