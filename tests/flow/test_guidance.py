"""Classifier-free guidance: its formula, its interval, and what it does not compute."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.guidance import Branches, ClassifierFree
from pixelflow_jax.flow.solver import Euler, Heun

COND, NULL = 2.0, -1.0


@pytest.fixture
def counted():
    """Constant branches, and how often each was evaluated."""
    calls = collections.Counter()

    def count(name):
        jax.debug.callback(lambda: calls.update([name]), ordered=True)

    def cond(x, t, step):
        count("cond")
        return jnp.full_like(x, COND)

    def both(x, t, step):
        count("both")
        return jnp.full_like(x, COND), jnp.full_like(x, NULL)

    return Branches(cond, both), calls


def solve(field, solver, times):
    out = jax.jit(lambda x: solver(field, x, np.float32(times), record=True))(
        jnp.zeros(1)
    )
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


@pytest.mark.parametrize(
    ("closed", "at_low", "at_high"),
    [
        ("neither", False, False),
        ("low", True, False),
        ("high", False, True),
        ("both", True, True),
    ],
)
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (0.3, 0.9)])
def test_ends_of_the_interval_are_compared_in_float32(
    closed, at_low, at_high, low, high
):
    guidance = ClassifierFree(scale=3.0, low=low, high=high, closed=closed)
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
    with pytest.raises(ValueError, match="guidance.closed.*upper"):
        ClassifierFree(scale=2.0, closed="upper")(counted[0], 0)
