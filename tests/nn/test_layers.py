"""Norms, modulation, embeddings and patches, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.nn.embed import ClassEmbed, TimeEmbed, rotary_table, rotate, sinusoid
from pixelflow_jax.nn.layers import (
    RMSNorm,
    SwiGLU,
    gated,
    layer_normalise,
    modulate,
    rms_normalise,
)
from pixelflow_jax.nn.patch import patchify, unpatchify
from pixelflow_jax.nn.precision import Precision

EXACT = Precision(compute="float32", matmul="highest")


def normal(seed: int, *shape: int) -> jax.Array:
    draws = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(draws, jnp.float32)


def test_rms_norm_is_its_formula_and_keeps_the_type():
    x = 3 * normal(0, 2, 5, 8)
    norm = RMSNorm(8)
    norm.weight[...] = normal(1, 8)
    rms = np.sqrt(np.mean(np.square(x, dtype=np.float64), -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(x), x / rms * norm.weight[...], rtol=1e-5)
    low = norm(x.astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), norm(x), atol=0.05)


def test_the_epsilon_of_both_norms_is_1e_6():
    """Where the variance is as small as 1e-6, it counts: 1 / sqrt(2) and not 1."""
    tiny = jnp.array([1e-3, -1e-3])
    expected = np.array([1, -1]) / np.sqrt(2)
    np.testing.assert_allclose(rms_normalise(tiny), expected, rtol=1e-4)
    np.testing.assert_allclose(layer_normalise(tiny + 1), expected, rtol=1e-3)


def test_layer_normalise_removes_mean_and_scale():
    y = layer_normalise(5 + 3 * normal(0, 4, 64))
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(-1), 1, atol=1e-4)


def test_modulate_and_gated_by_hand():
    x, shift, scale = jnp.array([2.0]), jnp.array([0.5]), jnp.array([0.1])
    np.testing.assert_allclose(modulate(x, shift, scale), [2.0 * 1.1 + 0.5])
    np.testing.assert_allclose(gated(x, shift, scale), [2.0 + 0.5 * 0.1])
    for function in (modulate, gated):
        assert function(x.astype(jnp.bfloat16), shift, scale).dtype == jnp.bfloat16


def test_swiglu_by_hand():
    mlp, x = SwiGLU(4, 6, EXACT, nnx.Rngs(0)), normal(0, 3, 4)
    gate, up, down = (layer.kernel[...] for layer in (mlp.gate, mlp.up, mlp.down))
    expected = (x @ gate * jax.nn.sigmoid(x @ gate) * (x @ up)) @ down
    np.testing.assert_allclose(mlp(x), expected, atol=1e-5)
    assert mlp.gate.bias is None and mlp.up.bias is None and mlp.down.bias is None


def test_sinusoid_by_hand():
    t = np.array([0.0, 0.3, 1.0])
    f = 10.0 ** -(np.arange(4) / 4)
    expected = np.concatenate([np.cos(t[:, None] * f), np.sin(t[:, None] * f)], -1)
    np.testing.assert_allclose(sinusoid(jnp.asarray(t), 8, 10.0), expected, atol=1e-6)


def test_the_time_embedding_tells_close_times_apart():
    embed = TimeEmbed(8, 10.0, EXACT, nnx.Rngs(0))
    out = embed(jnp.array([0.0, 0.5, 0.52]))
    assert out.shape == (3, 8) and jnp.abs(out[1] - out[2]).max() > 1e-6


def test_class_embedding_is_a_table_with_a_null_row():
    embed = ClassEmbed(4, 8, nnx.Rngs(0))
    assert embed.table[...].shape == (5, 8)
    np.testing.assert_array_equal(
        embed(jnp.array([4, 1])), embed.table[...][jnp.array([4, 1])]
    )


def test_rotation_keeps_lengths_and_gradients():
    cos, sin = rotary_table(3, 4, 8, 16.0)
    x = normal(0, 2, 12, 3, 8)
    turned = rotate(x, cos, sin)
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )
    np.testing.assert_allclose(turned[:, 0], x[:, 0], atol=1e-6)  # the origin stays
    assert not np.allclose(turned[:, 1], x[:, 1], atol=1e-2)
    np.testing.assert_allclose(rotate(turned, cos, -sin), x, atol=1e-5)


def test_rotated_products_depend_on_relative_positions_only():
    """q at a, k at b meet as q at a + d, k at b + d; and x is not y."""
    rows, columns = 4, 5
    cos, sin = rotary_table(rows, columns, 16, 16.0)
    q, k = normal(0, 1, 1, 1, 16), normal(1, 1, 1, 1, 16)
    everywhere = lambda a: jnp.broadcast_to(a, (1, rows * columns, 1, 16))
    q, k = (rotate(everywhere(a), cos, sin)[0, :, 0] for a in (q, k))
    products = (q @ k.T).reshape(rows, columns, rows, columns)
    np.testing.assert_allclose(products[0, 1, 2, 3], products[1, 0, 3, 2], atol=1e-4)
    np.testing.assert_allclose(products[1, 1, 1, 4], products[3, 0, 3, 3], atol=1e-4)
    assert abs(products[0, 0, 0, 1] - products[0, 0, 1, 0]) > 1e-2


def test_any_grid_spans_the_extent():
    cos, sin = rotary_table(2, 9, 4, 16.0)  # one frequency, 1: pairs (x, y)
    x, y = np.tile(np.arange(9) * 2.0, 2), np.repeat([0.0, 16.0], 9)
    np.testing.assert_allclose(cos, np.cos(np.stack([x, y], -1)), atol=1e-5)
    np.testing.assert_allclose(sin, np.sin(np.stack([x, y], -1)), atol=1e-5)
    one, nothing = rotary_table(1, 1, 8, 16.0)
    assert (one == 1).all() and (nothing == 0).all()
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        rotary_table(2, 2, 6, 16.0)


@pytest.mark.parametrize(
    ("height", "width", "patch"), [(4, 6, 2), (8, 4, 4), (3, 5, 1)]
)
def test_patches_round_trip(height, width, patch):
    image = normal(0, 2, height, width, 3)
    patches = patchify(image, patch)
    count = height * width // patch**2
    assert patches.shape == (2, count, patch * patch, 3)
    np.testing.assert_array_equal(unpatchify(patches, patch, height, width), image)


def test_patches_and_pixels_go_row_by_row():
    image = jnp.arange(24).reshape(1, 4, 6, 1)
    patches = patchify(image, 2)[0, :, :, 0]
    np.testing.assert_array_equal(patches[1], [2, 3, 8, 9])
    np.testing.assert_array_equal(patches[3], [12, 13, 18, 19])
    with pytest.raises(ValueError, match="patch of 4 does not divide.*4 x 6"):
        patchify(image, 4)


def test_precision_refuses_unknown_types_and_casts_matrices_only():
    with pytest.raises(ValueError, match="precision.compute.*float16"):
        Precision(compute="float16").check()
    with pytest.raises(ValueError, match="precision.matmul.*best"):
        Precision(matmul="best").check()
    params = {
        "a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "table": jnp.ones(3),
    }
    types = jax.tree.map(lambda a: a.dtype.name, Precision().cast(params))
    assert types == {
        "a": {"kernel": "bfloat16", "bias": "float32"},
        "table": "float32",
    }
