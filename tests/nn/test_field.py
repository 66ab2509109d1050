"""The neural field's parts: unit columns, pixel embedding, coordinate features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.nn.field import (
    ENCODINGS,
    FieldBlock,
    PixelEmbed,
    dct_features,
    sincos_features,
)
from pixelflow_jax.nn.patch import sides
from pixelflow_jax.nn.precision import Precision

EXACT = Precision(compute="float32", matmul="highest")


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("patch", [2, 5, (2, 3)])
def test_pixel_embedding_is_a_linear_layer_on_the_concatenation(encoding, patch):
    embed = PixelEmbed(3, 7, encoding, EXACT, nnx.Rngs(0))
    pixels = normal(0, 2, 4, np.prod(sides(patch)), 3)
    table = jnp.asarray(ENCODINGS[encoding](patch))
    place = jnp.broadcast_to(table, (2, 4, *table.shape))
    both = jnp.concatenate([pixels, place], -1)
    np.testing.assert_allclose(embed(pixels, patch), embed.proj(both), atol=1e-5)


def test_coordinate_features_by_hand():
    table = dct_features(3).reshape(3, 3, 8, 8)  # [y, x, i, j]
    f = 8 / 7 * np.arange(8)
    x, y, i, j = 1 / 2, 1.0, 3, 5
    expected = np.cos(np.pi * x * f[i]) * np.cos(np.pi * y * f[j]) / (1 + f[i] * f[j])
    np.testing.assert_allclose(table[2, 1, i, j], expected, atol=1e-5)
    table = sincos_features(3).reshape(3, 3, 2, 2, 8)  # [y, x, axis, sin/cos, octave]
    np.testing.assert_allclose(table[0, 1, 0, 0, 0], 1, atol=1e-6)  # sin(pi / 2)
    np.testing.assert_allclose(table[2, 1, 1, 1, 0], -1, atol=1e-6)  # cos(pi)
    np.testing.assert_allclose(table[2, 1, 0, 1, 1], -1, atol=1e-6)  # cos(2 pi / 2)
    assert dct_features(1).shape == (1, 64) and sincos_features(1).shape == (1, 32)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_features_of_a_patch_are_those_of_its_rows_and_columns(encoding):
    """Corners are alike in patches of every size, but for "cosine" in pixels."""
    features = lambda *patch: ENCODINGS[encoding](patch).reshape(*patch, -1)
    tall, small, wide = features(7, 3), features(3, 3), features(3, 5)
    np.testing.assert_allclose(tall[0], small[0], atol=1e-6)
    np.testing.assert_allclose(wide[:, 0], small[:, 0], atol=1e-6)
    same = np.allclose(tall[-1, -1], small[-1, -1], atol=1e-4)
    assert same == (encoding != "cosine")
    np.testing.assert_array_equal(
        features(3, 3), ENCODINGS[encoding](3).reshape(small.shape)
    )


@pytest.mark.parametrize(
    "normalised", [(), ("first",), ("second",), ("first", "second")], ids=str
)
def test_a_block_is_the_generated_mlp_of_its_patch(normalised):
    block = FieldBlock(9, 4, 6, normalised, EXACT, nnx.Rngs(0))
    z = normal(0, 2, 3, 5, 4)
    condition = normal(1, 2, 3, 9)
    out = jax.jit(lambda *args: block(*args))(z, condition)
    weights = condition @ block.generator.kernel[...] + block.generator.bias[...]
    weights, patches = np.asarray(weights), np.asarray(z)
    for b, n in [(0, 1), (1, 2)]:
        first = weights[b, n, :24].reshape(4, 6)
        second = weights[b, n, 24:].reshape(6, 4)
        if "first" in normalised:
            first = first / np.linalg.norm(first, axis=0)
        if "second" in normalised:
            second = second / np.linalg.norm(second, axis=0)
        patch = patches[b, n]
        scaled = patch / np.sqrt(np.mean(patch**2, -1, keepdims=True) + 1e-6)
        expected = patch + jax.nn.silu(scaled @ first) @ second
        np.testing.assert_allclose(out[b, n], expected, atol=1e-5)
