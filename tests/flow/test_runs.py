"""Steps under guidance in a window: cut while tracing, the same as decided by value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import AutoGuidance, Branches, ClassifierFree, runs
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun, Steps
from pixelflow_jax.flow.time import Grid
from tests.jaxprs import names

SOLVERS = {
    "euler": Euler(),
    "sde": Euler(step="sde"),
    "heun": Heun(),
    "heun_reuse": Heun(reuse=True),
    "adams1": AdamsBashforth(order=1),
    "adams3": AdamsBashforth(order=3),
}
TIMES = Grid(steps=7, shift=1.5, last_step=0.04).times()
NODE = float(TIMES[3])
SUMMED = float(np.cumsum(np.diff(TIMES), dtype=np.float32)[3])  # Adams' node 4
# Windows (low, high, interval) and the runs that they make of Euler's seven steps.
WINDOWS = {
    "begins inside": ((0.2, np.inf, "()"), 2),
    "ends inside": ((-np.inf, 0.6, "(]"), 2),
    "both inside": ((0.1, 0.9, "(]"), 3),
    "low on a node, open": ((NODE, 0.9, "()"), 3),
    "low on a node, closed": ((NODE, 0.9, "[)"), 3),
    "high on a node, open": ((0.1, NODE, "()"), 3),
    "high on a node, closed": ((0.1, NODE, "[]"), 3),
    "high on a sum of steps": ((0.1, SUMMED, "(]"), 3),
    "the first step alone": ((0.0, 0.0, "[]"), 2),
    "the last step alone": ((0.93, 1.0, "()"), 2),
    "empty": ((0.5, 0.5001, "()"), 1),
    "everywhere": ((0.0, 1.0, "[]"), 1),
}


def cond(x, t, step):
    return jnp.cos(3 * t) - x


def both(x, t, step):
    return cond(x, t, step), 0.3 * jnp.sin(5 * x) + t


BRANCHES = Branches(cond, both, both)


def solve(solver, field, times=TIMES):
    draws = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)), jnp.float32)
    steps = Steps(times, lambda i: draws[i], record=True)
    return lambda x: solver(field, x, steps)


START = jnp.linspace(-1, 1, 4)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", SOLVERS)
def test_runs_are_what_a_decision_in_every_step_gives(name, window):
    low, high, interval = WINDOWS[window][0]
    guidance = ClassifierFree(scale=3.0, low=low, high=high, interval=interval)
    field = guidance(BRANCHES, 0)
    found = jax.jit(solve(SOLVERS[name], field))(START)
    decided = solve(SOLVERS[name], lambda x, t, step: field(x, t, step))
    assert names(jax.make_jaxpr(decided)(START)).count("cond") == 1
    wanted = jax.jit(decided)(START)
    for ours, theirs in zip(found[:3], wanted[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert found.states.shape == (7, 4)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_fixed_grid_leaves_no_decision_to_the_program(name, window):
    (low, high, interval), count = WINDOWS[window]
    for guidance in (ClassifierFree, AutoGuidance):
        field = guidance(scale=3.0, low=low, high=high, interval=interval)(BRANCHES, 0)
        found = names(jax.make_jaxpr(solve(SOLVERS[name], field))(START))
        assert "cond" not in found and "while" not in found
        if name in ("euler", "heun"):
            assert found.count("scan") == count


@pytest.mark.parametrize("guidance", [ClassifierFree, AutoGuidance])
@pytest.mark.parametrize("name", ["euler", "heun", "heun_reuse", "adams3"])
def test_windows_on_the_times_of_evaluations_are_cut_too(name, guidance):
    """A Heun step whose corrector alone lies inside is cut in two."""
    low, high = float(TIMES[2]) - 0.01, float(TIMES[5]) - 0.01
    field = guidance(scale=3.0, low=low, high=high, interval_time="evaluation")(
        BRANCHES, 0
    )
    cut = jax.jit(solve(SOLVERS[name], field))(START)
    decided = solve(SOLVERS[name], lambda x, t, step: field(x, t, step))
    wanted = jax.jit(decided)(START)
    for ours, theirs in zip(cut[:3], wanted[:3], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert "cond" not in names(jax.make_jaxpr(solve(SOLVERS[name], field))(START))
    at_steps = guidance(scale=3.0, low=low, high=high)(BRANCHES, 0)
    other = jax.jit(solve(SOLVERS[name], at_steps))(START)
    same = np.allclose(other.x, cut.x, rtol=1e-6, atol=1e-6)
    assert same == (name in ("euler", "adams3"))  # one evaluation, where a step begins


@pytest.mark.parametrize("name", SOLVERS)
def test_a_run_holds_one_network(name):
    """Compiling takes as long as there are networks, whatever the number of steps."""
    calls = []

    def counted(x, t, step):
        calls.append(t)
        return cond(x, t, step)

    jax.make_jaxpr(solve(SOLVERS[name], counted))(START)
    assert len(calls) == 1


@pytest.mark.parametrize("solver", [Euler(), Heun(), Heun(reuse=True)], ids=str)
def test_one_and_two_steps_are_cut_too(solver):
    guidance = ClassifierFree(scale=3.0, low=0.1)
    field = guidance(BRANCHES, 0)
    for times in (np.float32([0, 1]), np.float32([0, 0.5, 1])):
        found = jax.jit(solve(solver, field, times))(START)
        wanted = jax.jit(solve(solver, lambda *at: field(*at), times))(START)
        for ours, theirs in zip(found[:3], wanted[:3], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_runs_cover_every_step_once():
    field = ClassifierFree(scale=3.0, low=0.1, high=0.6)(BRANCHES, 0)
    found = runs(field, *[np.float32([0, 0.1, 0.2, 0.5, 0.6, 0.9])] * 2)
    assert [part for part, _ in found] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    fields = [own for _, own in found]
    assert fields == [field.outside, field.inside, field.outside]
    assert runs(cond, *[np.float32([0, 0.5])] * 2) == [(slice(0, 2), cond)]


@pytest.mark.parametrize("control", ["image", "batch"])
def test_adaptive_steps_are_decided_while_the_program_runs(control):
    still = lambda x, t, step: x
    branches = Branches(still, lambda *at: (still(*at), still(*at)))
    field = ClassifierFree(scale=3.0, low=0.2, high=0.8)(branches, 0)
    found = solve(Dopri5(control=control), field, np.float32([0, 1]))
    held = names(jax.make_jaxpr(found)(START))
    assert "while" in held and ("cond" in held) == (control == "batch")
