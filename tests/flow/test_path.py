"""Stages of the path: plain flow matching, and cascades' end points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.path import (
    Stage,
    Straight,
    downsample2,
    image_noise,
    per_image,
    upsample2,
)
from pixelflow_jax.flow.prediction import PredictVelocity

SHAPE = (3, 8, 12, 2)


@pytest.fixture(scope="module")
def draws():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], SHAPE), jax.random.normal(keys[1], SHAPE)


def test_one_stage_is_plain_flow_matching(draws):
    image, noise = draws
    (stage,) = Straight().stages()
    t = jnp.array([0.0, 0.3, 1.0])
    point = stage.draw(image, noise, t)
    w = np.asarray(t)[:, None, None, None]
    np.testing.assert_allclose(point.x_t, w * image + (1 - w) * noise, atol=1e-6)
    np.testing.assert_array_equal(point.x_t[0], noise[0])
    np.testing.assert_array_equal(point.x_t[2], image[2])
    np.testing.assert_array_equal(point.timestep, t)
    np.testing.assert_array_equal(point.clean, image)
    np.testing.assert_allclose(
        PredictVelocity().target(point), image - noise, atol=1e-6
    )


def test_end_points_of_a_stage_in_the_middle(draws):
    image, _ = draws
    stage = Stage(log2_downscale=1, start=0.25, end=0.75, timestep_range=(100.0, 300.0))
    height, width = stage.size(*SHAPE[1:3])
    assert (height, width) == (4, 6)
    noise = jax.random.normal(jax.random.key(5), (3, height, width, 2))
    clean = np.asarray(image).reshape(3, 4, 2, 6, 2, 2).mean((2, 4))
    coarse = clean.reshape(3, 2, 2, 3, 2, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    start = stage.draw(image, noise, jnp.zeros(3))
    end = stage.draw(image, noise, jnp.ones(3))
    np.testing.assert_allclose(start.clean, clean, atol=1e-6)
    np.testing.assert_allclose(start.x_t, 0.25 * coarse + 0.75 * noise, atol=1e-6)
    np.testing.assert_allclose(end.x_t, 0.75 * clean + 0.25 * noise, atol=1e-6)
    np.testing.assert_array_equal(start.timestep, [100.0] * 3)
    np.testing.assert_array_equal(end.timestep, [300.0] * 3)


def test_target_is_the_speed_of_the_path(draws):
    image, noise = draws
    stage = Stage(start=0.2, end=0.9)
    at = lambda t: stage.draw(image, noise, jnp.full(3, t)).x_t
    target = PredictVelocity().target(stage.draw(image, noise, jnp.zeros(3)))
    np.testing.assert_allclose((at(0.75) - at(0.25)) / 0.5, target, atol=1e-5)


def test_halving_is_a_block_mean_and_undoes_doubling(draws):
    image, _ = draws
    np.testing.assert_allclose(downsample2(upsample2(image), 1), image, atol=1e-6)
    np.testing.assert_allclose(
        downsample2(image, 2), downsample2(downsample2(image, 1), 1), rtol=1e-6
    )
    np.testing.assert_array_equal(downsample2(image, 0), image)
    corner = image[0, :2, :2].mean((0, 1))
    np.testing.assert_allclose(downsample2(image, 1)[0, 0, 0], corner, rtol=1e-6)


def test_per_image_broadcasts_times_but_leaves_scalars():
    assert per_image(jnp.zeros(3), jnp.zeros(SHAPE)).shape == (3, 1, 1, 1)
    assert per_image(jnp.float32(0.5), jnp.zeros(SHAPE)).shape == ()


def test_noise_of_an_image_depends_on_its_key_alone():
    keys = jax.random.split(jax.random.key(1), 4)
    noise = image_noise(keys, 32, 32, 3)
    np.testing.assert_array_equal(image_noise(keys[2:], 32, 32, 3), noise[2:])
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    assert not jnp.any(noise[0] == noise[1])
