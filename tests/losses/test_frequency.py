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


LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62 18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
CHROMINANCE = {(0, 0): 17, (0, 1): 18, (0, 2): 24, (0, 3): 47, (1, 1): 21, (1, 2): 26}
CHROMINANCE |= {(1, 3): 66, (2, 2): 56}  # symmetric; 99 everywhere else


def weights_by_hand(quality: int, gamma: float) -> np.ndarray:
    """Row by row from JPEG's tables, in float64."""
    colour = np.full((8, 8), 99.0)
    for (row, column), value in CHROMINANCE.items():
        colour[row, column] = colour[column, row] = value
    grey = np.array(LUMINANCE.split(), float).reshape(8, 8)
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    made = []
    for table in (grey, colour, colour):
        q = np.clip(np.floor((table * scale + 50) / 100), 1, 255)
        weight = (q.mean() / q) ** gamma
        made.append(weight / weight.mean())
    return np.stack(made)


@pytest.mark.parametrize("size", [(5, 8), (8, 31), (17, 12)], ids=str)
@pytest.mark.parametrize(
    ("quality", "gamma"), [(1, 1.0), (10, 2.0), (49, 0.5), (50, 1.0), (100, 1.0)]
)
def test_it_is_the_published_sum(size, quality, gamma):
    """Cosine by cosine in float64, with the padding of the bottom and the right."""
    error = np.random.default_rng(quality).standard_normal((3, *size, 3))
    r, g, b = np.moveaxis(error, -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    blue = -0.168736 * r - 0.331264 * g + 0.5 * b
    red = 0.5 * r - 0.418688 * g - 0.081312 * b
    pad = [(0, 0), (0, -size[0] % 8), (0, -size[1] % 8)]
    planes = np.stack([np.pad(a, pad, mode="reflect") for a in (y, blue, red)], 1)
    rows, columns = (side // 8 for side in planes.shape[2:])
    blocks = planes.reshape(3, 3, rows, 8, columns, 8).swapaxes(3, 4)
    places = np.arange(8)
    wave = np.cos(np.pi * (2 * places + 1) * places[:, None] / 16) / 2
    wave[0] /= np.sqrt(2)
    spectrum = wave @ blocks @ wave.T
    weights = weights_by_hand(quality, gamma)[None, :, None, None]
    wanted = (weights * spectrum**2).mean((1, 2, 3, 4, 5))
    shift = jnp.asarray(error, jnp.float32)
    context = contexts(Straight().stages(), PredictVelocity(), size, shift)
    found = FrequencyMatching(quality=quality, gamma=gamma)(context)
    np.testing.assert_allclose(found, wanted, rtol=2e-5)


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
