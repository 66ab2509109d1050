"""Solvers: orders, evaluations, multistep weights and stochastic steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.solver import (
    AdamsBashforth,
    Euler,
    Heun,
    Steps,
    adams_weights,
)
from pixelflow_jax.flow.time import Grid

SOLVERS = {
    "euler": (Euler(), 1, lambda n: n),
    "heun": (Heun(), 2, lambda n: 2 * n - 1),
    "heun_reuse": (Heun(reuse=True), 2, lambda n: n),
    **{
        f"adams{order}": (AdamsBashforth(order=order), order, lambda n: n)
        for order in (1, 2, 3, 4)
    },
}


def solve(solver, field, x, times, **options):
    return jax.jit(lambda x: solver(field, x, Steps(times, **options)))(x)


@pytest.mark.parametrize("name", SOLVERS)
def test_order_on_a_closed_form_equation(name):
    """x' = 5 t^4 x: its flat start hides that multistep methods begin at order 1."""
    solver, order, _ = SOLVERS[name]
    field = lambda x, t, step: 5 * t**4 * x
    errors = []
    for steps in (64, 128):
        x = solve(solver, field, jnp.ones(1), Grid(steps=steps, shift=0.7).times()).x
        errors.append(abs(float(x[0]) - np.e))
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.3


@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_and_recorded_trajectory(name):
    solver, _, evaluations = SOLVERS[name]
    calls = []

    def field(x, t, step):
        jax.debug.callback(lambda *a: calls.append(a), t, step, ordered=True)
        return jnp.cos(3 * t) - x

    times = Grid(steps=5, shift=1.5).times()
    start = jnp.array([1.0, -2.0])
    out = solve(solver, field, start, times, record=True)
    jax.effects_barrier()
    assert len(calls) == evaluations(5)
    assert out.states.shape == out.velocities.shape == (5, 2)
    np.testing.assert_array_equal(out.states[0], start)
    states = np.concatenate([out.states, out.x[None]])
    moves = np.diff(times)[:, None] * out.velocities
    np.testing.assert_allclose(np.diff(states, axis=0), moves, atol=1e-6)
    plain = solve(solver, field, start, times)
    np.testing.assert_array_equal(plain.x, out.x)
    assert plain.states is None and plain.velocities is None
    # The time a step begins with goes along, also to the corrector at its end; the last
    # step of the reusing Heun evaluates nothing.
    begun = times[: 4 if name == "heun_reuse" else 5]
    np.testing.assert_allclose(np.unique([step for _, step in calls]), begun, 1e-6)


def test_heun_evaluates_where_the_official_code_does():
    calls = []

    def field(x, t, step):
        jax.debug.callback(lambda t: calls.append(float(t)), t, ordered=True)
        return x

    times = np.float32([0, 0.25, 0.5, 1])
    for solver, expected in [
        (Heun(), [0, 0.25, 0.25, 0.5, 0.5]),
        (Heun(reuse=True), [0, 0.25, 0.5]),
    ]:
        calls.clear()
        solve(solver, field, jnp.ones(1), times)
        jax.effects_barrier()
        assert calls == expected


def test_one_step_of_every_solver_is_eulers():
    for solver, _, _ in SOLVERS.values():
        field = lambda x, t, step: 2 * x + t
        out = solve(solver, field, jnp.ones(1), np.float32([0, 1]))
        np.testing.assert_allclose(out.x, [3.0])


def test_adams_tells_the_network_the_float32_running_sum():
    times = Grid(steps=3, shift=1.5, last_step=0.04).times()
    summed = np.float32(0)
    told = []
    for dt in np.diff(times):
        told.append(summed)
        summed = np.float32(summed + dt)
    assert not np.array_equal(told, times[:-1])  # so that the sum can be told apart
    field = lambda x, t, step: jnp.full(1, t)
    out = solve(AdamsBashforth(order=1), field, jnp.zeros(1), times, record=True)
    np.testing.assert_array_equal(out.velocities[:, 0], told)


NODES = Grid(steps=7, shift=2.5, last_step=0.03).times()


@pytest.mark.parametrize("transform", ["identity", "logsnr"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_multistep_weights_sum_to_one_and_climb(order, transform):
    weights = adams_weights(NODES, order, transform)
    assert weights.shape == (7, order)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    for i, row in enumerate(weights):
        known = min(i + 1, order)
        assert not row[: order - known].any() and row[order - known :].all()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_multistep_weights_integrate_polynomials_exactly(order):
    weights = adams_weights(NODES, order)
    nodes = NODES.astype(np.float64)
    for i in range(order - 1, 7):
        past, (a, b) = nodes[i + 1 - order : i + 1], nodes[i : i + 2]
        for degree in range(order):
            exact = (b ** (degree + 1) - a ** (degree + 1)) / (degree + 1) / (b - a)
            assert abs(weights[i] @ past**degree - exact) < 1e-9
        excess = weights[i] @ past**order
        exact = (b ** (order + 1) - a ** (order + 1)) / (order + 1) / (b - a)
        assert abs(excess - exact) > 1e-6  # one degree more is too much


def test_logsnr_weights_by_hand():
    t = np.float64([0.0, 0.3, 0.6])
    lam = np.log(np.maximum(t, 1e-3) / (1 - t + 1e-3))
    r = (lam[2] - lam[1]) / (lam[1] - lam[0])
    np.testing.assert_allclose(
        adams_weights(t, 2, "logsnr"), [[0, 1], [-r / 2, 1 + r / 2]], rtol=1e-9
    )


@pytest.mark.parametrize("step", ["sde_mean", "sde", "sde_preserve"])
def test_stochastic_step_by_hand(step):
    """One stochastic step from 0.2 to 0.6, then the last one, which is plain."""
    times, start = np.float32([0.2, 0.6, 1.0]), np.float32([1.0, -0.5])
    draws = np.float32([[0.3, -1.2], [9.0, 9.0]])
    v, t, dt, w = np.float32([0.7, 0.1]), 0.2, 0.4, 0.8
    score = (t * v - start) / ((1 - t) ** 2 + t * (1 - t))
    expected = {
        "sde_mean": start + v * dt + score * w * dt,
        "sde": start + v * dt + score * w * dt + np.sqrt(2 * w * dt) * draws[0],
        "sde_preserve": start
        + v * dt
        + 0.5 * score * w * dt
        + np.sqrt(w * dt) * draws[0],
    }[step]
    noise = lambda i: jnp.asarray(draws)[i]
    field = lambda x, t, step: jnp.asarray(v)
    out = solve(Euler(step=step), field, start, times, noise=noise, record=True)
    np.testing.assert_allclose(out.states[1], expected, rtol=1e-5)
    np.testing.assert_allclose(out.x, expected + 0.4 * v, rtol=1e-5)


@pytest.mark.parametrize("step", ["ode", "sde", "sde_preserve"])
def test_every_step_keeps_the_marginals_of_gaussian_data(step):
    """Data N(1, 0.5^2): x_t is N(t, v) with v = (t / 2)^2 + (1 - t)^2 at every time."""
    mean, std, n = 1.0, 0.5, 20_000

    def field(x, t, step):
        variance = (t * std) ** 2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    keys = jax.random.split(jax.random.key(0), 301)
    noise = lambda i: jax.random.normal(keys[i], (n,))
    times = Grid(steps=300).times()
    start = jax.random.normal(keys[300], (n,))
    out = solve(Euler(step=step), field, start, times, noise=noise, record=True)
    for i in (75, 150, 225, 299):
        t, x = times[i], np.asarray(out.states[i])
        assert abs(x.mean() - t * mean) < 0.02
        assert abs(x.std() / np.sqrt((t * std) ** 2 + (1 - t) ** 2) - 1) < 0.02
    assert abs(float(out.x.std()) - std) < 0.015
    assert abs(float(out.x.mean()) - mean) < 0.015
    if step != "ode":  # it moved at random: the end no longer follows the start
        assert abs(np.corrcoef(start, out.x)[0, 1]) < 0.9


def test_wrong_options_are_refused():
    field, x = (lambda x, t, step: x), jnp.ones(1)
    steps = Steps(np.float32([0, 0.5, 1]))
    with pytest.raises(ValueError, match="Euler.step.*sde_men"):
        Euler(step="sde_men")(field, x, steps)
    with pytest.raises(ValueError, match="needs a noise function"):
        Euler(step="sde")(field, x, steps)
    with pytest.raises(ValueError, match="order=5 must be a whole number from 1 to 4"):
        AdamsBashforth(order=5)(field, x, steps)
    with pytest.raises(ValueError, match="transform.*cosine"):
        AdamsBashforth(transform="cosine")(field, x, steps)
