"""PixelGen's dropout, and what learns under it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.convert import pixelgen
from pixelflow_jax.models.interface import network
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sharding import MeshShape, batch_sharding
from pixelflow_jax.tensors import mapping as tables
from tests.jaxprs import names
from tests.models.pixelgen_small import (
    EXACT,
    IMAGES,
    SINGLE,
    batch,
    change,
    keys,
    model,
    near,
    run,
)


@pytest.fixture(scope="module")
def single():
    """The same as a single stack, which compiles faster with dropout."""
    net, params = model(SINGLE)
    return jax.jit(net.apply), params


def test_only_the_middle_half_of_the_blocks_drops():
    expected = {28: range(7, 21), 24: range(6, 18), 5: range(1, 3), 3: range(0)}
    assert {depth: PixelGen(depth=depth).dropping for depth in expected} == expected


@pytest.mark.slow
def test_packed_groups_drop_like_separate_calls(single):
    """The trained size and another; keys come in the order of the groups."""
    apply, params = single
    groups = [batch(1, 1, 12, 12), batch(3, 3, 8, 20)]
    own = keys(0, 4)
    packed = apply(params, groups[0] + groups[1], key=own)
    for i, (group, part) in enumerate(zip(groups, (own[:1], own[1:]), strict=True)):
        near(packed.pred[i], apply(params, group, key=part).pred[0])


def test_blocks_outside_the_middle_half_do_not_drop(single):
    apply, params = single
    plain = apply(params, IMAGES).pred[0]
    assert jnp.abs(apply(params, IMAGES, key=keys(0, 4)).pred[0] - plain).max() > 0.01
    # With blocks 1 and 2 of 4 silenced, no key has an effect.
    mute = jax.tree.map(jnp.copy, params)
    modulation = mute["late"]["blocks"]["modulation"]
    for name, value in modulation.items():
        modulation[name] = value.at[1:3].set(0.0)
    dropped = apply(mute, IMAGES, key=keys(0, 4)).pred[0]
    near(dropped, apply(mute, IMAGES).pred[0])


def test_the_key_decides_image_by_image(single):
    apply, params = single
    own = keys(7, 4)
    one = apply(params, IMAGES, key=own).pred[0]
    near(apply(params, IMAGES, key=own).pred[0], one, 0)
    other = apply(params, IMAGES, key=own.at[0].set(jax.random.key(1))).pred[0]
    assert jnp.abs(other - one)[0].max() > 0.01
    near(other[1:], one[1:], 0)
    turned = jax.tree.map(lambda a: a[::-1], IMAGES)
    near(apply(params, turned, key=own[::-1]).pred[0], one[::-1])


def test_dropout_does_not_depend_on_devices(single):
    apply, params = single
    layout = batch_sharding(MeshShape().build(jax.devices()[:4]))
    split, own = jax.device_put((IMAGES, keys(0, 4)), layout)
    out = apply(params, split, key=own).pred[0]
    assert len(out.sharding.device_set) == 4
    near(out, apply(params, IMAGES, key=keys(0, 4)).pred[0])


def trained(config: PixelGen):
    """Output and gradients under dropout."""
    net, params = model(config)

    def total(params):
        out = net.apply(params, IMAGES, key=keys(0, 4)).pred[0]
        return jnp.mean(out**2), out

    (_, out), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    return out, tables.export(pixelgen.table(config), grads)


@pytest.fixture(scope="module")
def written_out():
    return trained(change(SINGLE, stack=StackConfig(remat="none", scan=False)))


def test_positions_are_frozen_and_all_else_learns(written_out):
    grads = dict(written_out[1])
    assert not grads.pop("pos_embed").any()
    for name, grad in grads.items():
        assert np.abs(grad).max() > 1e-6, name


def test_masks_do_not_depend_on_how_the_blocks_run(written_out):
    expected, slopes = written_out
    out, grads = trained(change(SINGLE, stack=StackConfig(remat="names")))
    near(out, expected, 1e-5)
    for name, slope in slopes.items():
        near(grads[name], slope, 1e-5)
    near(run(change(SINGLE, feature_layer=1), keys(0, 4)).pred[0], expected, 1e-5)


def draws(jaxpr) -> int:
    """How often the seeds in keys are asked for: once for every dropout."""
    return names(jaxpr).count("random_unwrap")


@pytest.mark.parametrize(
    ("rates", "scan", "expected"),
    [
        ((0.3, 0.2), 0, 6),  # three places in each of two blocks
        ((0.3, 0.0), 0, 4),
        ((0.0, 0.2), 0, 2),
        ((0.3, 0.0), 1, 4),  # scanned
        ((0.0, 0.0), 1, 0),
    ],
)
def test_only_what_drops_draws(rates, scan, expected):
    stack = StackConfig(remat="none", scan=scan)
    config = change(dropout=rates[0], attention_dropout=rates[1], stack=stack)
    apply = lambda params, key: network(config, EXACT).apply(params, IMAGES, key=key)
    params = network(config, EXACT).shapes()
    assert draws(jax.make_jaxpr(apply)(params, jax.random.key(0))) == expected
