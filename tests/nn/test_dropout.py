"""Dropout: its law, its keys, and that quiet layers draw nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.nn.dropout import (
    DropoutKeys,
    drop_packed,
    dropout,
    group_dropouts,
    hash_bits,
    layer_dropout_keys,
)
from pixelflow_jax.nn.packing import Packing
from pixelflow_jax.sharding import MeshShape, batch_sharding


def keys(seed: int, count: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


def same(one: DropoutKeys, other: DropoutKeys) -> bool:
    data = [jax.random.key_data(jnp.concatenate(d.keys)) for d in (one, other)]
    return bool((data[0] == data[1]).all())


def test_elements_are_zero_or_scaled_and_the_mean_is_kept():
    x = jnp.full((40, 50, 60), 3.0)
    out = dropout(x, 0.2, keys(0, 40))
    zero = out == 0
    np.testing.assert_allclose(out[~zero], 3.0 / 0.8, rtol=1e-6)
    error = np.sqrt(0.2 * 0.8 / x.size)
    assert abs(zero.mean() - 0.2) < 5 * error
    assert abs(out.mean() / 3 - 1) < 5 * error / 0.8
    # Neither places nor images drop together.
    for axis in ((1, 2), (0, 2), (0, 1)):
        assert jnp.unique(zero.mean(axis)).size > 5


def test_the_type_is_kept_and_gradients_pass_through_the_mask():
    x = jax.random.normal(jax.random.key(0), (2, 30))
    low = dropout(x.astype(jnp.bfloat16), 0.5, keys(1, 2))
    full = dropout(x, 0.5, keys(1, 2))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low == 0, full == 0)
    slope = jax.grad(lambda x: dropout(x, 0.5, keys(1, 2)).sum())(x)
    np.testing.assert_array_equal(slope, jnp.where(full == 0, 0.0, 2.0))


def test_a_mask_belongs_to_its_images_key():
    x, own = jnp.ones((4, 5, 6)), keys(0, 4)
    out = dropout(x, 0.5, own)
    np.testing.assert_array_equal(dropout(x[1:3], 0.5, own[1:3]), out[1:3])
    np.testing.assert_array_equal(dropout(x, 0.5, own[::-1]), out[::-1])
    assert (out[0] != out[1]).any()


def test_masks_do_not_depend_on_devices():
    x, own = jnp.ones((8, 5, 6)), keys(0, 8)
    run = jax.jit(lambda x, keys: dropout(x, 0.5, keys))
    layout = batch_sharding(MeshShape().build())
    split = run(jax.device_put(x, layout), jax.device_put(own, layout))
    assert len(split.sharding.device_set) == 8
    np.testing.assert_array_equal(split, run(x, own))


def test_a_flag_decides():
    x, own = jnp.ones((3, 4, 5)), keys(0, 3)
    run = lambda x, active: dropout(x, 0.5, own, active)
    both = jax.jit(run)
    np.testing.assert_array_equal(both(x, jnp.array(True)), dropout(x, 0.5, own))
    np.testing.assert_array_equal(both(x, jnp.array(False)), x)


def test_bits_look_random_in_every_place_and_across_numbers_and_seeds():
    """Every bit is set half the time and flips half the time where an input steps."""
    number = jnp.arange(2**16, dtype=jnp.uint32)
    seeds = jnp.uint32(7), jnp.uint32(11)
    bits = hash_bits(*seeds, number)
    steps = {
        "number": hash_bits(*seeds, number + 1),
        "one": hash_bits(seeds[0] + 1, seeds[1], number),
        "other": hash_bits(seeds[0], seeds[1] + 1, number),
    }
    share = lambda bits, place: float(((bits >> place) & 1).mean())
    for place in range(32):
        assert abs(share(bits, place) - 0.5) < 0.01
        for name, moved in steps.items():
            assert abs(share(bits ^ moved, place) - 0.5) < 0.01, (name, place)
    assert len(np.unique(bits)) == len(number)


def test_layers_images_and_places_have_keys_of_their_own():
    dropouts = layer_dropout_keys(jax.random.key(3), (2, 1), 5, range(1, 4))
    assert [drop is None for drop in dropouts] == [True, False, False, False, True]
    assert [k.shape for k in dropouts[1].keys] == [(2,), (1,)]
    assert not same(dropouts[1], dropouts[2])
    data = jax.random.key_data(
        jnp.concatenate([k for d in dropouts[1:4] for k in d.keys])
    )
    assert len(np.unique(data, axis=0)) == 9
    one, two = (group_dropouts(dropouts[1], 0.5, place)[0] for place in (0, 1))
    x = jnp.ones((2, 40))
    assert (one(x) != two(x)).any()
    np.testing.assert_array_equal(one(x), group_dropouts(dropouts[1], 0.5, 0)[0](x))


def test_one_key_or_one_an_image():
    single = layer_dropout_keys(jax.random.key(3), (2, 1), 2, range(2))
    split = layer_dropout_keys(keys(3, 3), (2, 1), 2, range(2))
    assert all(same(a, b) for a, b in zip(single, split, strict=True))
    other = layer_dropout_keys(keys(4, 3), (2, 1), 2, range(2))
    assert not same(split[0], other[0])
    with pytest.raises(ValueError, match=r"one for each of 3 images.*\(4,\)"):
        layer_dropout_keys(keys(3, 4), (2, 1), 2, range(2))


def test_which_layers_drop_changes_no_layers_keys():
    few = layer_dropout_keys(keys(0, 2), (2,), 3, range(3))
    many = layer_dropout_keys(keys(0, 2), (2,), 3, range(1, 2))
    assert many[0] is many[2] is None and same(few[1], many[1])


@pytest.mark.parametrize("batches", [(2,), (2, 2), (1, 3)])
def test_packed_tokens_drop_like_each_group_alone(batches):
    lengths = (3, 2)[: len(batches)]
    packing = Packing(batches, lengths)
    (drop,) = layer_dropout_keys(jax.random.key(0), batches, 1, range(1))
    groups = [jnp.ones((b, n, 7)) for b, n in zip(batches, lengths, strict=True)]
    dropouts = group_dropouts(drop, 0.5, 1)
    joined = drop_packed(packing.join(groups), packing, dropouts)
    alone = group_dropouts(drop, 0.5, 1)
    for part, group, one in zip(packing.split(joined), groups, alone, strict=True):
        np.testing.assert_array_equal(part, one(group))


def test_without_a_rate_or_a_layers_dropout_nothing_happens():
    (drop,) = layer_dropout_keys(jax.random.key(0), (2,), 1, range(1))
    for given, rate in ((None, 0.5), (drop, 0.0)):
        assert group_dropouts(given, rate, 0) is None
