"""Training times and sampling grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.time import Grid, LogitNormal, Uniform, warp


@pytest.mark.parametrize("shift", [0.3, 1.0, 4.0])
def test_warp_keeps_the_ends_and_has_an_inverse(shift):
    t = np.linspace(0, 1, 11)
    warped = warp(t, shift)
    assert warped[0] == 0 and warped[-1] == 1
    assert (np.diff(warped) > 0).all()
    np.testing.assert_allclose(warp(warped, 1 / shift), t, atol=1e-12)
    # Above 1 stays longer near the noise: every time comes earlier.
    np.testing.assert_array_equal(np.sign(t - warped)[1:-1], np.sign(shift - 1))


def test_uniform_times_fill_the_interval_evenly():
    t = np.asarray(Uniform()(jax.random.key(0), 20_000))
    assert t.dtype == np.float32 and t.shape == (20_000,)
    assert 0 <= t.min() < 0.001 and 0.999 < t.max() <= 1
    histogram = np.histogram(t, 10, (0, 1))[0] / len(t)
    np.testing.assert_allclose(histogram, 0.1, atol=0.01)


def test_shifted_uniform_times_are_warped_draws():
    key = jax.random.key(1)
    np.testing.assert_allclose(
        Uniform(shift=3.0)(key, 9), warp(Uniform()(key, 9), 3.0), rtol=1e-6
    )


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_logits_of_logit_normal_times_are_normal(shift):
    law = LogitNormal(mean=-0.8, std=0.8, shift=shift)
    t = np.asarray(law(jax.random.key(2), 20_000), np.float64)
    assert 0 < t.min() and t.max() < 1
    logit = np.log(t / (1 - t))  # the shift moves the logit by -log(shift)
    assert abs(logit.mean() - (-0.8 - np.log(shift))) < 0.02
    assert abs(logit.std() - 0.8) < 0.02


@pytest.mark.parametrize("last_step", [0.0, 0.04])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_grids_run_from_exactly_0_to_exactly_1(steps, shift, last_step):
    times = Grid(steps=steps, shift=shift, last_step=last_step).times()
    assert times.dtype == np.float32 and times.shape == (steps + 1,)
    assert times[0] == 0 and times[-1] == 1
    assert (np.diff(times) > 0).all()
    even = warp(times.astype(np.float64), 1 / shift)
    if steps > 1:
        last = last_step or 1 / steps
        np.testing.assert_allclose(np.diff(even)[-1], last, atol=2e-6)
        np.testing.assert_allclose(
            np.diff(even)[:-1], (1 - last) / (steps - 1), atol=2e-6
        )


def test_default_last_step_makes_all_steps_equal():
    times = Grid(steps=8).times()
    np.testing.assert_array_equal(times, np.arange(9, dtype=np.float32) / 8)


@pytest.mark.parametrize(
    ("grid", "word"),
    [
        (Grid(steps=0), "grid.steps"),
        (Grid(last_step=1.5), "last_step=1.5"),
        (Grid(last_step=-0.1), "last_step=-0.1"),
        (Grid(shift=0.0), "shift=0.0"),
    ],
)
def test_impossible_grids_are_refused(grid, word):
    with pytest.raises(ValueError, match=word):
        grid.times()


def test_time_laws_depend_on_the_key_alone():
    for law in (Uniform(), LogitNormal()):
        one, two = law(jax.random.key(3), 4), law(jax.random.key(4), 4)
        np.testing.assert_array_equal(one, law(jax.random.key(3), 4))
        assert not jnp.any(one == two)


def test_stages_may_have_steps_of_their_own():
    grid = Grid(stage_steps=(2, 5), last_step=0.001)
    assert [len(grid.times(stage)) for stage in (0, 1)] == [3, 6]
    np.testing.assert_allclose(grid.times(0), [0, 0.999, 1])
    whole = Grid(steps=5, last_step=0.001)
    np.testing.assert_array_equal(whole.times(3), grid.times(1))
    assert not grid.problems(2) and not whole.problems(7)


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        (Grid(stage_steps=(2, 5)), "grid.stage_steps"),
        (Grid(stage_steps=(2, 0, 5)), "stage_steps[1]=0"),
        (Grid(timestep_scale=0.0), "timestep_scale"),
    ],
)
def test_what_does_not_fit_three_stages_is_named(grid, named):
    (problem,) = grid.problems(3)
    assert named in problem


def test_levels_round_down():
    law = Uniform(levels=4)
    draws = jnp.array([0.0, 0.2, 0.25, 0.74, 0.999])
    np.testing.assert_array_equal(law.transform(draws), [0, 0, 0.25, 0.5, 0.75])
    t = law(jax.random.key(0), 4000)
    values, counts = np.unique(t, return_counts=True)
    np.testing.assert_array_equal(values, [0, 0.25, 0.5, 0.75])
    assert counts.min() > 900
