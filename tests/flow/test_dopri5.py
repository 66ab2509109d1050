"""Dopri5: coefficients, order, step control, dense output and its own image's steps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from pixelflow_jax.flow import dopri5
from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.solver import Steps

UNIT = np.float32([0, 1])


def solve(solver, field, x, times=UNIT, **options):
    return jax.jit(lambda x: solver(field, x, Steps(times, **options)))(x)


def logged(field):
    """The field, and the list that its calls (t, step) go to."""
    calls = []

    def spy(x, t, step):
        note = lambda t, step: calls.append((np.array(t), np.array(step)))
        jax.debug.callback(note, t, step, ordered=True)
        return field(x, t, step)

    return spy, calls


def attempts(calls):
    """Where every attempted step began, and by what factor the next one is longer."""
    starts = np.array([float(step) for _, step in calls[2::6]])
    lengths = np.array([float(t) for t, _ in calls[7::6]]) - starts
    return starts, lengths[1:] / lengths[:-1]


# Coefficients


def test_the_pair_is_dormand_and_princes():
    published = scipy.integrate.RK45
    np.testing.assert_allclose(dopri5.WEIGHTS[:5, :5], published.A[1:], atol=1e-15)
    assert not np.triu(dopri5.WEIGHTS, 1).any()
    np.testing.assert_allclose(dopri5.SOLUTION[:6], published.B, atol=1e-15)
    np.testing.assert_allclose(dopri5.NODES[:5], published.C[1:], atol=1e-15)
    np.testing.assert_allclose(dopri5.WEIGHTS.sum(1), dopri5.NODES, atol=1e-14)


@pytest.mark.parametrize(
    ("weights", "end", "order"),
    [
        (dopri5.SOLUTION, 1.0, 5),
        (dopri5.SOLUTION - dopri5.ERROR, 1.0, 4),
        (dopri5.MIDDLE, 0.5, 4),
    ],
)
def test_quadrature_orders(weights, end, order):
    nodes = np.append(0, dopri5.NODES)
    off = [weights @ nodes**k - end ** (k + 1) / (k + 1) for k in range(order + 1)]
    np.testing.assert_allclose(off[:order], 0, atol=1e-10)
    assert abs(off[order]) > 1e-5


# Against a plain solver


def plain_dopri5(field, x, times, rtol, atol):
    """The official step control as a loop over Python numbers; states, evaluations.

    Coefficients are Dormand and Prince's and Shampine's, the quartic is written out.
    """
    c_error = [35 / 384 - 1951 / 21600, 0, 500 / 1113 - 22642 / 50085]
    c_error += [125 / 192 - 451 / 720, -2187 / 6784 + 12231 / 42400]
    c_error += [11 / 84 - 649 / 6300, -1 / 60]
    rms = lambda z: np.sqrt(np.mean(np.square(z)))
    combine = lambda weights, k: sum(w * s for w, s in zip(weights, k, strict=True))
    count = 0

    def f(t, x):
        nonlocal count
        count += 1
        return field(x, t)

    t = start = float(times[0])
    f0 = f(t, x)
    scale = atol + rtol * abs(x)
    d0, d1 = rms(x / scale), rms(f0 / scale)
    h0 = 1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1
    d2 = rms((f(t + h0, x + h0 * f0) - f0) / scale) / h0
    steepest = max(d1, d2)
    h = max(1e-6, h0 / 1000) if steepest <= 1e-15 else (0.01 / steepest) ** 0.2
    h = min(100 * h0, h)
    states = []
    for wanted in map(float, times):
        while wanted > t:
            k = [f0]
            for row, node in zip(dopri5.WEIGHTS, dopri5.NODES, strict=True):
                k.append(f(t + node * h, x + h * combine(row[: len(k)], k)))
            x1 = x + h * combine(dopri5.SOLUTION, k)
            error = h * combine(c_error, k)
            ratio = rms(error / (atol + rtol * np.maximum(abs(x), abs(x1))))
            if ratio <= 1:
                mid = x + h * combine(dopri5.MIDDLE, k)
                start, old, df = t, x, h * np.array([k[0], k[-1]])
                t, x, f0, width = t + h, x1, k[-1], h
            least = 1.0 if ratio < 1 else 0.2
            h *= 10 if ratio == 0 else min(10, max(0.9 / ratio**0.2, least))
        if wanted == start:
            states.append(x)
            continue
        s = (wanted - start) / width
        a = 2 * (df[1] - df[0]) - 8 * (x + old) + 16 * mid
        b = 5 * df[0] - 3 * df[1] + 18 * old + 14 * x - 32 * mid
        c = df[1] - 4 * df[0] - 11 * old - 5 * x + 16 * mid
        states.append(old + s * (df[0] + s * (c + s * (b + s * a))))
    return np.stack(states), count


def random_equation(seed):
    """A field for numpy and jax, a start [b, d] and times, drawn from the seed."""
    rng = np.random.default_rng(seed)
    b, d = rng.integers(1, 4), rng.integers(2, 6)
    push, turn = rng.normal(size=d), rng.normal(size=(d, d)) * rng.choice([1, 4])
    pace = rng.choice([1, 10, 40])
    times = np.sort(rng.uniform(0, 1, 4)) + rng.choice([0, 0, 3])

    def field(x, t, step=None):
        xp = jnp if isinstance(x, jax.Array) else np
        return xp.tanh(x) @ turn + push * xp.sin(pace * t) * (3 + x)

    # From zero the first step is cut to a hundred times the trial's.
    return field, rng.normal(size=(b, d)) * (seed % 4 > 0), times


@pytest.mark.parametrize("seed", range(8))
def test_batch_control_is_the_official_step_control(seed):
    field, x, times = random_equation(seed)
    rtol, atol = [(1e-3, 1e-6), (1e-6, 1e-3)][seed % 2]
    with jax.enable_x64(True):
        solver = Dopri5(rtol=rtol, atol=atol, control="batch")
        ours = solve(solver, field, jnp.asarray(x), times, record=True)
        states, evaluations = plain_dopri5(field, x, times, rtol, atol)
        assert ours.evaluations.shape == () and ours.evaluations == evaluations
        np.testing.assert_allclose(ours.states, states[:-1], atol=1e-8)
        np.testing.assert_allclose(ours.x, states[-1], atol=1e-8)
        np.testing.assert_allclose(ours.velocities[0], field(x, times[0]), atol=1e-12)


def test_a_field_at_rest_takes_the_official_number_of_steps():
    # From 1e-6 ten times longer each time: seven steps pass 1.
    out = solve(Dopri5(), lambda x, t, step: 0 * x, jnp.ones((2, 3)))
    np.testing.assert_array_equal(out.x, np.ones((2, 3)))
    np.testing.assert_array_equal(out.evaluations, [2 + 6 * 7] * 2)
    _, count = plain_dopri5(lambda x, t: 0 * x, np.ones(3), UNIT, 1e-3, 1e-6)
    assert count == 2 + 6 * 7


# Accuracy


def turn(x):
    """A rotation: x'' = -36 x; x is [b, 2]."""
    return 6 * jnp.stack([x[:, 1], -x[:, 0]], 1)


def test_errors_fall_with_the_fifth_power_of_the_evaluations():
    errors, evaluations = [], []
    with jax.enable_x64(True):
        for rtol in (1e-5, 1e-7, 1e-9, 1e-11):
            solver = Dopri5(rtol=rtol, atol=rtol)
            out = solve(solver, lambda x, t, step: turn(x), jnp.array([[1.0, 0.0]]))
            off = out.x[0] - jnp.array([np.cos(6), -np.sin(6)])
            errors.append(float(abs(off).max()))
            evaluations.append(int(out.evaluations[0]))
            assert errors[-1] < 10 * rtol
    slope, _ = np.polyfit(np.log(evaluations), np.log(errors), 1)
    assert -5.4 < slope < -4.7


def test_dense_output_is_exact_for_quartics():
    """x = t^4 lies on the quartic, so the states and their slopes are exact inside."""
    times = np.linspace(0.1, 0.9, 30)
    field = lambda x, t, step: jnp.broadcast_to(4 * t**3, x.shape)
    with jax.enable_x64(True):
        x = jnp.full((2, 3), 0.1**4)
        out = solve(Dopri5(control="batch"), field, x, times, record=True)
        assert out.evaluations < 2 + 6 * 20  # fewer steps than wanted times
        assert out.states.shape == out.velocities.shape == (29, 2, 3)
        expected = np.broadcast_to(times[:-1, None, None], (29, 2, 3))
        np.testing.assert_allclose(out.states, expected**4, atol=1e-10)
        np.testing.assert_allclose(out.velocities, 4 * expected**3, atol=1e-9)
        np.testing.assert_allclose(out.x, 0.9**4, atol=1e-10)


def test_recording_changes_nothing():
    field = lambda x, t, step: jnp.cos(9 * t)[:, None] - x
    x, times = jnp.array([[1.0, -2.0], [0.5, 30.0]]), np.float32([0, 0.3, 0.4, 1])
    out, plain = (
        solve(Dopri5(rtol=1e-5), field, x, times, record=record)
        for record in (True, False)
    )
    np.testing.assert_allclose(out.x, plain.x, atol=1e-6)
    np.testing.assert_array_equal(out.evaluations, plain.evaluations)
    np.testing.assert_array_equal(out.states[0], x)
    np.testing.assert_array_equal(out.velocities[0], field(x, jnp.zeros(2), None))
    slopes = jax.vmap(lambda x, t: field(x, jnp.full(2, t), None))
    expected = slopes(out.states, times[:-1])
    np.testing.assert_allclose(out.velocities, expected, atol=0.02)
    assert plain.states is None and plain.velocities is None


def test_rejected_steps_are_tried_again():
    """A peak that grown steps run into; its integral is known."""
    peak = lambda x, t, step: 1 / (1e-4 + (t - 0.5) ** 2) + 0 * x
    field, calls = logged(peak)
    out = solve(Dopri5(rtol=1e-4, control="batch"), field, jnp.ones(2))
    jax.effects_barrier()
    np.testing.assert_allclose(out.x, 1 + 200 * np.arctan(50), rtol=1e-3)
    starts, change = attempts(calls)
    assert starts[0] == calls[0][1] == calls[1][1] == calls[0][0] < calls[1][0]
    assert len(calls) == out.evaluations == 2 + 6 * len(starts)
    rejected = np.diff(starts) == 0
    assert rejected.sum() >= 3 and (np.diff(starts) >= 0).all()
    assert (change[rejected] < 0.91).all() and (change[rejected] > 0.19).all()
    assert (change[~rejected] > 0.89).all() and (change[~rejected] < 10.01).all()


def test_the_last_step_goes_past_the_end():
    field, calls = logged(lambda x, t, step: -x)
    out = solve(Dopri5(control="batch"), field, jnp.ones(1), np.float32([0, 0.7]))
    jax.effects_barrier()
    assert calls[-1][0] > 0.75 and calls[-1][1] < 0.7
    np.testing.assert_allclose(out.x, np.exp(-0.7), rtol=1e-3)


@pytest.mark.parametrize("first", [0.25, 1000.0])
def test_any_interval(first):
    """A later one, and one far off, where float32 times are 6e-5 apart."""
    times = np.float32([first, first + 0.5])
    drift = lambda x, t, step: jnp.concatenate([turn(x), 0 * x[:, :1] + 1], 1)
    for solver in (Dopri5(), Dopri5(control="batch", rtol=1e-6)):
        out = solve(solver, drift, jnp.array([[1.0, 0.0, 0.0]]), times)
        np.testing.assert_allclose(out.x[0, :2], [np.cos(3), -np.sin(3)], atol=0.01)
        # The way is as long as the time, however that time is rounded.
        np.testing.assert_allclose(out.x[0, 2], 0.5, atol=1e-6)


def test_the_field_is_told_the_time_of_the_interval():
    field = lambda x, t, step: jnp.cos(9 * t) + 0 * x
    for first in (0.0, 0.25):
        times = np.float32([first, 0.75])
        out = solve(Dopri5(control="batch", rtol=1e-5), field, jnp.zeros(1), times)
        expected = (np.sin(9 * 0.75) - np.sin(9 * first)) / 9
        np.testing.assert_allclose(out.x, expected, atol=1e-4)


# One step size for each image


def paced(x, t, step):
    """Every image turns at a pace of its own, which it carries along; x is [b, 3]."""
    a, b, pace = x[:, :1], x[:, 1:2], x[:, 2:]
    t = t[:, None] if jnp.ndim(t) else t
    return jnp.concatenate([pace * b + jnp.cos(pace * t), -pace * a, 0 * pace], 1)


IMAGES = np.float32([[1, 0, 1], [0, 2, 60], [-1, 1, 0], [0.3, 0.1, 12], [9, 9, 5]])


def test_an_image_does_not_depend_on_its_batch():
    times = np.float32([0, 0.35, 1])
    together = solve(Dopri5(), paced, IMAGES, times, record=True)
    assert together.evaluations.shape == (5,)
    assert together.evaluations.dtype == jnp.int32
    assert len(set(together.evaluations.tolist())) > 3
    alone = jax.jit(lambda x: Dopri5()(paced, x, Steps(times, record=True)))
    shuffled = alone(IMAGES[::-1])
    for i in range(len(IMAGES)):
        one = alone(IMAGES[i : i + 1])
        assert one.evaluations[0] == together.evaluations[i]
        assert shuffled.evaluations[::-1][i] == together.evaluations[i]
        for name in ("states", "velocities"):
            mine, theirs = getattr(one, name)[:, 0], getattr(together, name)[:, i]
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.x[0], together.x[i], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(shuffled.x[::-1][i], together.x[i], rtol=1e-5)


def test_controls_agree_for_one_image_and_differ_for_several():
    for images in (IMAGES[1:2], IMAGES):
        own, shared = (
            solve(Dopri5(control=control), paced, images, record=True)
            for control in ("image", "batch")
        )
        for name in ("x", "states", "velocities"):
            assert getattr(own, name).shape == getattr(shared, name).shape
        same = own.evaluations[0] == shared.evaluations
        if len(images) == 1:
            assert same
            np.testing.assert_allclose(own.x, shared.x, atol=1e-6)
            np.testing.assert_allclose(own.velocities, shared.velocities, rtol=1e-6)
        else:
            # The mean over all hides part of the fastest one's error.
            fewest, most = own.evaluations.min(), own.evaluations.max()
            assert fewest < shared.evaluations < most


def test_finished_images_stand_still():
    field, calls = logged(paced)
    out = solve(Dopri5(), field, IMAGES)
    jax.effects_barrier()
    assert len(calls) == out.evaluations.max()
    steps = np.stack([step for _, step in calls[2::6]])  # [attempts, b]
    for i, evaluations in enumerate(out.evaluations):
        attempts = (int(evaluations) - 2) // 6
        assert (steps[:attempts, i] < 1).all()
        assert len(set(steps[attempts:, i])) <= 1  # where its last step ended
        assert (steps[attempts:, i] >= 1).all()
    np.testing.assert_allclose(out.x[:, 2], IMAGES[:, 2], rtol=1e-6)


@pytest.mark.parametrize(("control", "shape"), [("image", (5,)), ("batch", ())])
def test_scalar_or_one_time_an_image(control, shape):
    timestep_scale = set()

    def field(x, t, step):
        timestep_scale.update((v.shape, v.dtype.name) for v in (t, step))
        return paced(x, t, step)

    with jax.enable_x64(True):  # time inside is float64 then, not what the field sees
        jax.eval_shape(lambda x: Dopri5(control=control)(field, x, Steps(UNIT)), IMAGES)
    assert timestep_scale == {(shape, "float32")}


# What cannot be solved


def test_too_many_steps_give_nan_and_nothing_else():
    times = np.float32([0, 0.01, 1])
    out = solve(Dopri5(max_steps=12), paced, IMAGES, times, record=True)
    failed = np.isnan(out.x).all(1)
    np.testing.assert_array_equal(failed, [False, True, False, False, False])
    assert np.isnan(out.x).any(1).tolist() == failed.tolist()
    assert out.evaluations[1] == 2 + 6 * 12
    assert np.isfinite(out.states).all()  # it got that far
    enough = solve(Dopri5(), paced, IMAGES, times)
    np.testing.assert_allclose(out.x[~failed], enough.x[~failed], atol=1e-5)


def test_the_last_allowed_step_counts():
    needed = (int(solve(Dopri5(), paced, IMAGES[:1]).evaluations[0]) - 2) // 6
    for allowed, finite in [(needed, True), (needed - 1, False)]:
        out = solve(Dopri5(max_steps=allowed), paced, IMAGES[:1])
        assert np.isfinite(out.x).all() == finite


def test_a_field_that_is_not_finite_gives_nan():
    """From the beginning for the first image, from the middle on for the second."""

    def field(x, t, step):
        return jnp.where(t[:, None] < x[:, 1:], x, jnp.nan) * jnp.array([1.0, 0.0])

    x = jnp.array([[1.0, 0.0], [1.0, 0.5], [1.0, 9.0]])
    out = solve(Dopri5(), field, x, np.float32([0, 0.25, 1]), record=True)
    assert np.isnan(out.x[:2]).any(1).all()
    np.testing.assert_allclose(out.x[2, 0], np.e, rtol=1e-3)
    np.testing.assert_allclose(out.states[1, 1:, 0], np.exp(0.25), rtol=1e-3)
    assert out.evaluations[0] == 2
    assert out.evaluations[1] < 2 + 6 * 100  # and not max_steps of them


def test_a_step_into_the_void_is_tried_shorter():
    """x' = -2 sqrt(x) from 1 is (1 - t)^2; longer steps reach below zero: NaN."""
    field, calls = logged(lambda x, t, step: -2 * jnp.sqrt(x))
    times = np.float32([0, 0.98])
    out = solve(Dopri5(rtol=1e-2, control="batch"), field, jnp.ones(1), times)
    jax.effects_barrier()
    starts, change = attempts(calls)
    rejected = np.diff(starts) == 0
    np.testing.assert_allclose(change[rejected].min(), 0.2, rtol=1e-3)
    np.testing.assert_allclose(out.x, 0.02**2, atol=1e-3)


@pytest.mark.parametrize(
    ("fields", "times", "message"),
    [
        ({"control": "images"}, UNIT, "control must be 'image' or 'batch', not 'ima"),
        ({"rtol": -1e-3}, UNIT, "rtol=-0.001 must be a finite number of at"),
        ({"rtol": math.nan}, UNIT, "rtol=nan must be a finite number of at least 0"),
        ({"atol": 0.0}, UNIT, "atol=0.0 must be a finite number above 0"),
        ({"max_steps": 0}, UNIT, "max_steps=0 must be a whole number"),
        ({"atol": 0.0, "max_steps": 0}, UNIT, "atol=0.0 must be .*; Dopri5.max_steps"),
        ({}, np.float32([0]), "two or more increasing times"),
        ({}, np.float32([1, 0]), "two or more increasing times"),
        ({}, np.float32([0, 0.5, 0.5]), "two or more increasing times"),
    ],
)
def test_wrong_options_are_refused(fields, times, message):
    with pytest.raises(ValueError, match=message):
        Dopri5(**fields)(paced, IMAGES, Steps(times))
