"""Image i depends on (seed, i) and its label alone."""

import dataclasses

import jax
import numpy as np
import pytest

from pixelflow_jax.evaluation.generate import Generator
from pixelflow_jax.sharding import MeshShape
from tests.training import tiny

LABELS = np.array([0, 1, 2, 0, 1, 2, 1])


@pytest.fixture(scope="module")
def generator() -> Generator:
    return on(tiny.experiment("unused").generator(16, 16), 1)


@pytest.fixture(scope="module")
def params():
    """Random weights; a fresh decoder is zero and would draw nothing but noise."""
    network = tiny.experiment("unused").network()
    fresh = jax.jit(network.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.device_get(jax.tree.unflatten(tree, noisy))


@pytest.fixture(scope="module")
def expected(generator, params):
    return generator(params, LABELS, seed=1, record=True)


def on(generator, devices, **fields):
    mesh = MeshShape().build(jax.devices()[:devices])
    return dataclasses.replace(generator, mesh=mesh, **fields)


def test_shapes_and_that_labels_matter(generator, params, expected):
    assert expected.images.shape == (7, 16, 16, 3)
    assert expected.clean.shape == (3, 7, 16, 16, 3)
    other = generator(params, LABELS[::-1], seed=1).images
    same = LABELS == LABELS[::-1]
    changed = np.abs(other - expected.images).max((1, 2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, ~same)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_any_batch_size(generator, params, expected, batch_size):
    drawn = on(generator, 1, batch_size=batch_size)(params, LABELS, seed=1)
    np.testing.assert_allclose(drawn.images, expected.images, atol=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_any_number_of_devices(generator, params, expected, devices):
    drawn = on(generator, devices)(params, LABELS, seed=1, record=True)
    np.testing.assert_allclose(drawn.images, expected.images, atol=1e-5)
    np.testing.assert_allclose(drawn.clean, expected.clean, atol=1e-5)


def test_any_place_in_the_order(generator, params, expected):
    later = generator(params, LABELS[3:], seed=1, first=3).images
    np.testing.assert_allclose(later, expected.images[3:], atol=1e-5)


def test_another_seed_is_another_image(generator, params, expected):
    other = generator(params, LABELS, seed=2).images
    assert (np.abs(other - expected.images).max((1, 2, 3)) > 0.1).all()


def test_the_last_clean_image_of_euler_is_the_result(expected):
    np.testing.assert_allclose(expected.clean[-1], expected.images, atol=1e-5)


def test_nothing_to_sample_is_refused(generator, params):
    with pytest.raises(ValueError, match="at least one label"):
        generator(params, [])


def test_checking_computes_nothing_and_finds_what_sampling_would(generator):
    generator.check()
    broken = dataclasses.replace(
        generator, grid=dataclasses.replace(generator.grid, steps=0)
    )
    with pytest.raises(ValueError, match="grid.steps"):
        broken.check()
