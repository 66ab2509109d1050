"""The cascade: its stages, the jumps between them, and what an image's points hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.path import (
    Pyramid,
    Stage,
    Straight,
    block_noise,
    downsample2,
    pyramid,
    rectification,
    upsample2,
)
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity

COUNTS = (1, 2, 3, 4, 5)
GAMMAS = (-1 / 3, -0.2)


def image(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def drawn(stage: Stage, size=(32, 64), times=(0.1, 0.7)):
    clean = image((len(times), *size, 3))
    noise = image((len(times), *stage.size(*size), 3), seed=1)
    return stage.draw(clean, noise, jnp.array(times)), noise


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_stages_join(count, gamma):
    stages = pyramid(count, gamma)
    assert [stage.log2_downscale for stage in stages] == list(reversed(range(count)))
    assert stages[0].start == 0 and stages[-1].end == 1
    assert stages[0].jump == (0.0, 1.0) and stages[0].gamma == 0
    for before, stage in zip(stages, stages[1:], strict=False):
        assert stage.start == rectification(before.end, gamma) * before.end
        assert before.timestep_range[1] == stage.timestep_range[0]
    assert stages[0].timestep_range[0] == 0
    low, high = stages[-1].timestep_range
    assert low + 0.999 * (high - low) == pytest.approx(999, abs=1e-9)


def test_published_stages():
    stages = pyramid(4)
    starts = [stage.start for stage in stages]
    np.testing.assert_allclose(starts, [0, 1 / 7, 1 / 3, 0.6], atol=1e-9)
    assert [stage.end for stage in stages] == [0.25, 0.5, 0.75, 1.0]
    timesteps = [stage.timestep_range[0] for stage in stages]
    assert timesteps == [0, 175, 426, 719]


@pytest.mark.parametrize("count", COUNTS[1:])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_jump_keeps_the_distribution(count, gamma):
    """Signal and noise behind a jump are those of the next stage's start.

    The doubled image's noise is the same inside a block: covariance ones; the fresh
    noise has covariance (1 - gamma) I + gamma ones. Their sum must be white.
    """
    stages = pyramid(count, gamma)
    for before, stage in zip(stages, stages[1:], strict=False):
        kept, fresh = stage.jump
        assert kept * before.end == pytest.approx(stage.start, abs=1e-7)
        old, own = (kept * (1 - before.end)) ** 2, fresh**2
        assert old + own == pytest.approx((1 - stage.start) ** 2, abs=1e-6)
        assert old + gamma * own == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("gamma", [*GAMMAS, -0.05])
def test_block_noise_has_its_covariance(gamma):
    white = image((64, 64, 64, 3), seed=3)
    noise = np.asarray(block_noise(white, gamma))
    blocks = noise.reshape(64, 32, 2, 32, 2, 3).transpose(0, 1, 3, 5, 2, 4)
    blocks = blocks.reshape(-1, 4)
    covariance = np.cov(blocks.T)
    wanted = (1 - gamma) * np.eye(4) + gamma
    np.testing.assert_allclose(covariance, wanted, atol=0.02)
    neighbours = np.corrcoef(noise[:, :, 1:-1:2].ravel(), noise[:, :, 2::2].ravel())
    assert abs(neighbours[0, 1]) < 0.02  # blocks know nothing of each other


def test_block_noise_with_the_strongest_correlation_cancels_inside_a_block():
    noise = block_noise(image((2, 8, 8, 3)), -1 / 3)
    np.testing.assert_allclose(downsample2(noise, 1), 0, atol=1e-6)


def test_sampled_jump_is_the_training_start():
    """Pushing a stage's true end over the jump gives the next start's statistics."""
    before, stage = pyramid(3)[1:]
    clean = image((512, 8, 8, 1)) * 0 + 0.5
    noise = image((512, 4, 4, 1), seed=1)
    end = before.end * downsample2(clean, 1) + (1 - before.end) * noise
    fresh = block_noise(image((512, 8, 8, 1), seed=2), stage.gamma)
    x = np.asarray(stage.begin(end, fresh))
    assert x.mean() == pytest.approx(stage.start * 0.5, abs=0.02)
    assert x.std() == pytest.approx(1 - stage.start, abs=0.02)
    across = np.corrcoef(x[:, 0:-1:2].ravel(), x[:, 1::2].ravel())[0, 1]
    assert abs(across) < 0.05


@pytest.mark.parametrize("count", COUNTS)
def test_points_lie_between_their_ends(count):
    for stage in pyramid(count):
        point, noise = drawn(stage)
        coarse = upsample2(downsample2(point.clean, 1))
        start = stage.start * coarse + (1 - stage.start) * noise
        np.testing.assert_allclose(point.start, start, atol=1e-6)
        end = stage.end * point.clean + (1 - stage.end) * noise
        np.testing.assert_allclose(point.end, end, atol=1e-6)
        t = point.t[:, None, None, None]
        np.testing.assert_allclose(point.x_t, t * end + (1 - t) * start, atol=1e-6)
        low, high = stage.timestep_range
        np.testing.assert_allclose(
            point.timestep, low + (high - low) * point.t, rtol=1e-6
        )


@pytest.mark.parametrize("prediction", [PredictVelocity(), PredictClean()])
@pytest.mark.parametrize("count", COUNTS)
def test_clean_image_and_velocity_follow_from_each_other(count, prediction):
    for stage in pyramid(count):
        point, _ = drawn(stage, times=(0.0, 0.3, 0.9))
        truth = point.end - point.start
        is_clean = isinstance(prediction, PredictClean)
        out = point.clean if is_clean else truth
        clean = prediction.clean(out, point.x_t, point.t, stage)
        np.testing.assert_allclose(clean, point.clean, atol=2e-5)
        velocity = prediction.velocity(out, point.x_t, point.t, stage)
        np.testing.assert_allclose(velocity, truth, atol=2e-5)
        np.testing.assert_allclose(prediction.target(point), truth, atol=2e-5)


def test_one_stage_is_plain_flow_matching():
    (stage,) = pyramid(1)
    point, noise = drawn(stage)
    plain, _ = drawn(Stage())
    for name in ("x_t", "t", "start", "end", "clean"):
        np.testing.assert_allclose(
            getattr(point, name), getattr(plain, name), atol=1e-6
        )
    np.testing.assert_array_equal(point.start, noise)
    np.testing.assert_allclose(point.timestep, 1000 * plain.timestep, rtol=1e-6)


def test_noise_scale_is_the_standard_deviation_of_the_start():
    (stage,) = Straight(noise_scale=2.0).stages()
    point, noise = drawn(stage)
    np.testing.assert_array_equal(point.start, 2 * noise)
    np.testing.assert_array_equal(stage.begin(None, noise), 2 * noise)
    assert Straight(noise_scale=0.0).problems()


@pytest.mark.parametrize(
    "wrong",
    [{"num_stages": 0}, {"gamma": 0.0}, {"gamma": -0.5}, {"num_train_timesteps": 2}],
)
def test_pyramids_that_cannot_be(wrong):
    (problem,) = Pyramid(**wrong).problems()
    assert next(iter(wrong)) in problem
    assert not Pyramid().problems()


def test_cuts_are_rounded_down_as_the_official_table_is():
    ends = [stage.end for stage in pyramid(3)]
    np.testing.assert_allclose(ends, [0.333, 0.666, 1.0], atol=1e-7)
    assert [type(stage.timestep_range[0]) for stage in pyramid(3)] == [int] * 3
