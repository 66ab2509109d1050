"""Norms, modulation, embeddings and patches, each against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pixelflow_jax.nn.embed import (
    ClassEmbed,
    TimeEmbed,
    identity_rope,
    pack_patches,
    pack_tables,
    rotary_table,
    rotate,
    sincos_table,
    sinusoid,
)
from pixelflow_jax.nn.layers import (
    RMSNorm,
    fused_xavier,
    gated,
    layer_normalise,
    modulate,
    rms_normalise,
)
from pixelflow_jax.nn.patch import nearest, patchify, unpatchify
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


@pytest.mark.parametrize(("parts", "outputs"), [(1, 30), (3, 10), (1 / 2, 60)])
def test_fused_xavier_sees_the_layer_that_was_drawn(parts, outputs):
    draws = fused_xavier(parts)(jax.random.key(0), (40, 30))
    bound = np.sqrt(6 / (40 + outputs))
    assert 0.98 * bound < jnp.abs(draws).max() <= bound


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


def test_halves_of_integer_positions_with_the_row_first():
    """PixelGen's: token (r, c) turns by r w_k, and in the other half by c w_k."""
    rows, columns, width = 3, 4, 12
    cos, sin = rotary_table(rows, columns, width, None, halves=True, row_first=True)
    w = 10000.0 ** (-2 * np.arange(3) / (width / 2))
    for r in range(rows):
        for c in range(columns):
            angles = np.concatenate([r * w, c * w])
            np.testing.assert_allclose(cos[r * columns + c], np.cos(angles), atol=1e-6)
            np.testing.assert_allclose(sin[r * columns + c], np.sin(angles), atol=1e-6)
    column_first = rotary_table(rows, columns, width, None, halves=True)
    np.testing.assert_array_equal(column_first[0][:, :3], cos[:, 3:])
    swapped = rotary_table(rows, columns, width, 5.0, row_first=True)[1]
    np.testing.assert_array_equal(
        swapped[:, ::2], rotary_table(rows, columns, width, 5.0)[1][:, 1::2]
    )


def test_still_tokens_come_first_and_do_not_turn():
    table = rotary_table(2, 2, 8, 16.0)
    cos, sin = identity_rope(table, 3)
    assert (cos[:3] == 1).all() and (sin[:3] == 0).all()
    np.testing.assert_array_equal(cos[3:], table[0])
    np.testing.assert_array_equal(sin[3:], table[1])
    for whole, part in zip(identity_rope(table, 0), table, strict=True):
        np.testing.assert_array_equal(whole, part)


def test_sincos_table_by_hand():
    """The column's [sin, cos] and then the row's."""
    table = sincos_table(2, 3, 8)
    assert table.shape == (6, 8) and table.dtype == np.float32
    r, c, w = 1, 2, np.array([1.0, 0.01])
    waves = lambda p: [*np.sin(p * w), *np.cos(p * w)]
    np.testing.assert_allclose(table[r * 3 + c], waves(c) + waves(r), atol=1e-6)
    np.testing.assert_array_equal(table[0], [0, 0, 1, 1] * 2)


@pytest.mark.parametrize("batches", [(2, 2), (1, 3)], ids=["aligned", "unaligned"])
def test_patches_and_tables_of_groups_are_packed_alike(batches):
    images = [normal(b, b, 4, w, 3) for b, w in zip(batches, (4, 6), strict=True)]
    packing, flat = pack_patches(tuple(images), 2, jnp.bfloat16)
    assert packing.lengths == (4, 6) and flat.dtype == jnp.bfloat16
    for part, image in zip(packing.split(flat), images, strict=True):
        own = patchify(image.astype(jnp.bfloat16), 2).reshape(*part.shape)
        np.testing.assert_array_equal(part, own)
    tables = [(np.full((n, 1), n), np.arange(n)[:, None]) for n in (4, 6)]
    sizes, places = pack_tables(packing, tables)
    spread = jnp.zeros((*flat.shape[:2], 1))
    for part, n in zip(packing.split(spread + sizes), (4, 6), strict=True):
        assert (part == n).all()
    for part, n in zip(packing.split(spread + places), (4, 6), strict=True):
        assert (part == jnp.arange(n)[:, None]).all()


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


def test_patches_need_not_be_square():
    image = jnp.arange(24).reshape(1, 4, 6, 1)
    patches = patchify(image, (2, 3))
    np.testing.assert_array_equal(patches[0, 1, :, 0], [3, 4, 5, 9, 10, 11])
    np.testing.assert_array_equal(unpatchify(patches, (2, 3), 4, 6), image)
    with pytest.raises(ValueError, match="patch of 3 x 2 does not divide.*4 x 6"):
        patchify(image, (3, 2))


def test_the_nearest_pixels_are_picked():
    image = jnp.arange(24).reshape(1, 4, 6, 1)
    picked = nearest(image, 2, 4)[0, :, :, 0]
    np.testing.assert_array_equal(picked, [[0, 1, 3, 4], [12, 13, 15, 16]])
    grown = nearest(image, 4, 12)[0, 0, :, 0]
    np.testing.assert_array_equal(grown, np.repeat(np.arange(6), 2))
    assert nearest(image, 4, 6) is image


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
