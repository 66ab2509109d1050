"""Network outputs, velocities and clean images: the same thing said three ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.path import Point, Stage
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity

TIMES = jnp.array([0.0, 0.4, 0.9, 0.96, 1.0])  # the last two within PixelGen's clamp


@pytest.fixture(scope="module")
def point() -> Point:
    keys = jax.random.split(jax.random.key(0), 2)
    shape = (len(TIMES), 4, 4, 3)
    image, noise = (jax.random.normal(key, shape) for key in keys)
    return Stage().draw(image, noise, TIMES)


def test_velocity_prediction_round_trip(point):
    velocity = PredictVelocity().target(point)
    np.testing.assert_array_equal(
        PredictVelocity().velocity(velocity, point.x_t, point.t), velocity
    )
    clean = PredictVelocity().clean(velocity, point.x_t, point.t)
    np.testing.assert_allclose(clean, point.clean, atol=1e-5)


def test_clean_prediction_round_trip(point):
    prediction = PredictClean(t_eps=0.0)
    inside = np.asarray(TIMES) < 1
    velocity = prediction.velocity(point.clean, point.x_t, point.t)[inside]
    x_t, t = point.x_t[inside], point.t[inside]
    expected = PredictVelocity().target(point)[inside]
    np.testing.assert_allclose(velocity, expected, atol=1e-4)
    clean = PredictVelocity().clean(velocity, x_t, t)
    np.testing.assert_allclose(clean, point.clean[inside], atol=1e-5)
    np.testing.assert_array_equal(prediction.clean(clean, x_t, t), clean)


@pytest.mark.parametrize("t_eps", [0.05, 0.2])
def test_target_is_the_velocity_of_the_true_image_under_the_clamp_too(point, t_eps):
    prediction = PredictClean(t_eps=t_eps)
    velocity = prediction.velocity(point.clean, point.x_t, point.t)
    np.testing.assert_array_equal(velocity, prediction.target(point))
    # Inside the clamp the target shrinks in proportion, down to nothing at t = 1.
    plain = PredictVelocity().target(point)
    shrink = np.minimum(1, (1 - np.asarray(TIMES)) / t_eps)[:, None, None, None]
    np.testing.assert_allclose(velocity, shrink * plain, atol=1e-4)
    assert not velocity[-1].any()


def test_scalar_times_serve_a_whole_batch(point):
    prediction = PredictClean()
    one = prediction.velocity(point.clean, point.x_t, jnp.float32(0.4))
    many = prediction.velocity(point.clean, point.x_t, jnp.full(len(TIMES), 0.4))
    np.testing.assert_allclose(one, many, rtol=1e-6)
