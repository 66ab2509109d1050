"""FrequencyMatching beside FlowMatching: for every prediction, path and size."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.config_files import load_config
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.flow.path import Pyramid, Stage, Straight
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching, frequency_weights
from pixelflow_jax.losses.points import draw_points
from pixelflow_jax.models.interface import Output
from pixelflow_jax.validate import validate

CASCADE = (Stage(log2_downscale=1, end=0.5), Stage(start=0.4))


def contexts(stages, prediction, size, error=0.0):
    """The truth plus an error, at the points of three images."""
    keys = jax.random.split(jax.random.key(0), 3)
    images = jax.random.normal(jax.random.key(1), (3, *size, 3))
    points = draw_points(keys, images, stages, LogitNormal())
    clean = isinstance(prediction, PredictClean)
    right = [p.clean if clean else prediction.target(p) for p in points]
    return Context(
        points, Output(tuple(r + error for r in right), ()), prediction, stages
    )


@pytest.mark.parametrize("stages", [Straight().stages(), CASCADE], ids=["one", "two"])
@pytest.mark.parametrize("prediction", [PredictVelocity(), PredictClean()], ids=str)
def test_it_is_zero_at_the_truth_and_only_there(stages, prediction):
    size = (22, 16)  # neither stage is a multiple of 8
    right = FrequencyMatching()(contexts(stages, prediction, size))
    assert right.shape == (3,) and right.dtype == jnp.float32
    np.testing.assert_allclose(right, 0, atol=1e-9)
    wrong = FrequencyMatching()(contexts(stages, prediction, size, 0.1))
    assert (wrong > 1e-4).all()


def test_equal_weights_and_a_grey_error_are_flow_matching():
    """Gamma 0 weighs all alike, and the DCT keeps lengths: only the colours remain."""
    error = jax.random.normal(jax.random.key(2), (3, 16, 16, 1))  # all of it in Y
    context = contexts(Straight().stages(), PredictVelocity(), (16, 16), error)
    ours = FrequencyMatching(gamma=0.0)(context)
    np.testing.assert_allclose(3 * ours, FlowMatching()(context), rtol=1e-4)


def test_low_frequencies_count_most():
    for quality in (10, 85):
        weights = frequency_weights(quality)
        np.testing.assert_allclose(weights.mean((1, 2)), 1, rtol=1e-6)
        assert (weights[:, 0, 0] > 2 * weights[:, 7, 7]).all()


def test_a_prediction_weighs_it():
    @dataclasses.dataclass(kw_only=True)
    class Halved(PredictVelocity):
        def loss_weight(self, point):
            return jnp.full(point.t.shape, 0.5)

    stages = Straight().stages()
    whole, half = (
        FrequencyMatching()(contexts(stages, prediction, (8, 8), 0.1))
        for prediction in (PredictVelocity(), Halved())
    )
    np.testing.assert_allclose(half, whole / 2, rtol=1e-6)


def test_what_is_smaller_than_its_padding_is_refused_before_a_run():
    config = load_config("deco:emoji")
    config.path = Pyramid(num_stages=2)
    config.data.image_size = 8
    config.model.patch = 2
    with pytest.raises(ConfigError, match="one is 4 x 4"):
        validate(config)
