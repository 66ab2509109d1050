"""Classifier-free guidance: its formula, its interval, and what it does not compute."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.guidance import (
    RAMP,
    AutoGuidance,
    Branches,
    ClassifierFree,
    stage_ramp,
)
from pixelflow_jax.flow.solver import Euler, Heun, Steps

COND, NULL = 2.0, -1.0


@pytest.fixture
def counted():
    """Constant branches, and how often each was evaluated."""
    calls = collections.Counter()

    def count(name):
        jax.debug.callback(lambda: calls.update([name]))

    def cond(x, t, step):
        count("cond")
        return jnp.full_like(x, COND)

    def both(x, t, step):
        count("both")
        return jnp.full_like(x, COND), jnp.full_like(x, NULL)

    return Branches(cond, both), calls


def solve(field, solver, times):
    steps = Steps(np.float32(times), record=True)
    out = jax.jit(lambda x: solver(field, x, steps))(jnp.zeros(1))
    jax.effects_barrier()
    return out


def test_scale_1_is_the_conditional_field_itself(counted):
    branches, calls = counted
    for low in (-np.inf, 0.2):
        assert ClassifierFree(scale=1.0, low=low)(branches, 0) is branches.cond
    solve(ClassifierFree()(branches, 0), Euler(), [0, 0.5, 1])
    assert calls == {"cond": 2}


def test_guidance_without_an_interval_is_everywhere(counted):
    branches, calls = counted
    out = solve(ClassifierFree(scale=3.0)(branches, 0), Euler(), [0, 0.5, 1])
    np.testing.assert_allclose(out.velocities[:, 0], NULL + 3 * (COND - NULL))
    assert calls == {"both": 2}


def test_the_null_half_is_not_computed_outside_the_interval(counted):
    branches, calls = counted
    guidance = ClassifierFree(scale=3.0, low=0.2, high=0.8)
    out = solve(guidance(branches, 0), Euler(), [0, 0.2, 0.5, 0.7, 0.8, 1])
    guided = NULL + 3 * (COND - NULL)
    np.testing.assert_allclose(out.velocities[:, 0], [COND, COND, guided, guided, COND])
    assert calls == {"cond": 3, "both": 2}


def test_both_evaluations_of_a_heun_step_are_decided_at_its_beginning(counted):
    branches, calls = counted
    guidance = ClassifierFree(scale=3.0, low=0.2)
    solve(guidance(branches, 0), Heun(), [0, 0.4, 0.9, 1])
    # The first step ends inside the interval but began outside.
    assert calls == {"cond": 2, "both": 3}


def test_an_evaluation_may_be_decided_at_its_own_time(counted):
    branches, calls = counted
    guidance = ClassifierFree(scale=3.0, low=0.2, high=0.5, interval_time="evaluation")
    out = solve(guidance(branches, 0), Heun(), [0, 0.4, 0.9, 1])
    # The corrector of the first step lies inside, the second one's outside.
    assert calls == {"cond": 3, "both": 2}
    guided = NULL + 3 * (COND - NULL)
    means = [(COND + guided) / 2, (guided + COND) / 2, COND]
    np.testing.assert_allclose(out.velocities[:, 0], means)


@pytest.mark.parametrize("low", [0.2, 0.7])
def test_images_with_times_of_their_own_are_decided_by_either_time(counted, low):
    """As adaptive steps ask: `t` and `step` are one an image, known to the program."""
    branches, _ = counted
    guided = NULL + 2 * (COND - NULL)
    step, t = jnp.array([0.1, 0.4, 0.8]), jnp.array([0.3, 0.75, 0.9])
    for interval_time, time in (("step", step), ("evaluation", t)):
        guidance = ClassifierFree(scale=2.0, low=low, interval_time=interval_time)
        out = guidance(branches, 0)(jnp.zeros((3, 1)), t, step)
        np.testing.assert_allclose(out[:, 0], np.where(time > low, guided, COND))


@pytest.mark.parametrize(
    ("interval", "at_low", "at_high"),
    [
        ("()", False, False),
        ("[)", True, False),
        ("(]", False, True),
        ("[]", True, True),
    ],
)
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (0.3, 0.9)])
def test_ends_of_the_interval_are_compared_in_float32(
    interval, at_low, at_high, low, high
):
    guidance = ClassifierFree(scale=3.0, low=low, high=high, interval=interval)
    beside = lambda end, to: np.nextafter(np.float32(end), np.float32(to))
    for where, expected in [
        (np.float32(low), at_low),
        (np.float32(high), at_high),
        (beside(low, 0), False),
        (beside(low, 1), True),
        (beside(high, 0), True),
        (beside(high, 1), False),
    ]:
        assert guidance.active(where) == expected
        assert jax.jit(guidance.active)(where) == expected


def test_an_unknown_kind_of_interval_is_refused(counted):
    with pytest.raises(ValueError, match="guidance.interval.*upper"):
        ClassifierFree(scale=2.0, interval="upper")(counted[0], 0)
    with pytest.raises(ValueError, match="guidance.interval_time.*evaluation.*never"):
        ClassifierFree(scale=2.0, interval_time="never")(counted[0], 0)


def flat(values):
    """A velocity [b, 1, 2, 1] of given rows, whatever the state."""
    rows = jnp.asarray(values, jnp.float32)[:, None, :, None]
    return lambda x, t, step: rows


def test_each_stage_has_its_share_of_the_scale(counted):
    branches, _ = counted
    guidance = ClassifierFree(scale=2.4, ramp=RAMP)
    x, t = jnp.zeros((1, 1, 1, 1)), jnp.float32(0.5)
    assert guidance(branches, 0) is branches.cond  # nothing to guide with
    for stage, share in enumerate(RAMP):
        scale = 1 + 1.4 * share
        assert guidance.scale_of(stage) == pytest.approx(scale)
        value = guidance(branches, stage)(x, t, t).item()
        assert value == pytest.approx(NULL + scale * (COND - NULL), rel=1e-6)
        assert guidance.active(t, stage) == (stage > 0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_stage_ramps_of_any_length(count):
    ramp = stage_ramp(count)
    assert (
        len(ramp) == count
        and ramp[-1] == 1
        and not ClassifierFree(ramp=ramp).problems(count)
    )
    assert count == 1 or ramp[0] == 0
    assert list(ramp) == sorted(ramp)
    if count == 4:
        np.testing.assert_allclose(ramp, RAMP)


def test_ramp_and_interval_act_together(counted):
    branches, calls = counted
    guidance = ClassifierFree(scale=3.0, ramp=(0.0, 0.5), low=0.2, high=0.6)
    x = solve(guidance(branches, 1), Euler(), [0, 0.25, 0.5, 0.75, 1]).x
    assert calls == {"cond": 2, "both": 2}
    guided = NULL + 2.0 * (COND - NULL)
    np.testing.assert_allclose(x, (2 * COND + 2 * guided) / 4)


def test_images_at_different_times_are_guided_apart(counted):
    branches, _ = counted
    guidance = ClassifierFree(scale=2.0, low=0.2, high=0.6)
    t = jnp.array([0.1, 0.4, 0.7])
    out = guidance(branches, 0)(jnp.zeros((3, 1)), t, t)
    np.testing.assert_allclose(out[:, 0], [COND, NULL + 2 * (COND - NULL), COND])


def test_rescale_moves_the_deviation_of_each_image():
    cond, null = [[1.0, 3.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]
    both = lambda x, t, step: (flat(cond)(x, t, step), flat(null)(x, t, step))
    x, t = jnp.zeros((2, 1, 2, 1)), jnp.float32(0.5)
    plain = ClassifierFree(scale=3.0)(Branches(flat(cond), both), 0)(x, t, t)
    for phi in (0.7, 1.0):
        guidance = ClassifierFree(scale=3.0, rescale=phi)
        out = np.asarray(guidance(Branches(flat(cond), both), 0)(x, t, t))
        wanted = np.std(np.asarray(cond), axis=1, ddof=1)
        had = np.std(np.asarray(plain)[:, 0, :, 0], axis=1, ddof=1)
        factor = phi * wanted / had + 1 - phi
        np.testing.assert_allclose(out, plain * factor[:, None, None, None], rtol=1e-5)
    assert ClassifierFree(rescale=1.5).problems(1)


def test_autoguidance_moves_away_from_the_weaker_model(counted):
    branches, calls = counted
    pair = lambda x, t, step: (jnp.full_like(x, COND), jnp.full_like(x, 0.5))
    branches = branches._replace(guide=pair)
    guidance = AutoGuidance(scale=1.8, low=0.2, high=0.8, interval="(]")
    x = solve(guidance(branches, 0), Euler(), [0, 0.25, 0.5, 0.75, 1]).x
    guided = 0.5 + 1.8 * (COND - 0.5)
    np.testing.assert_allclose(x, (COND + 3 * guided) / 4, rtol=1e-6)
    assert calls == {"cond": 1}
    assert AutoGuidance(scale=1.0)(branches, 0) is branches.cond


def test_autoguidance_without_a_second_model_is_refused(counted):
    with pytest.raises(ValueError, match=r"guidance\.weights"):
        AutoGuidance(scale=2.0)(counted[0], 0)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (ClassifierFree(ramp=(0.0, 1.0)), "guidance.ramp"),
        (ClassifierFree(interval="open"), "guidance.interval"),
        (AutoGuidance(interval="open"), "guidance.interval"),
    ],
)
def test_what_does_not_fit_four_stages_is_named(wrong, named):
    (problem,) = wrong.problems(4)
    assert named in problem
