"""The adaptive solver against the official code on a closed-form velocity."""

import jax
import jax.numpy as jnp
import numpy as np

from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.solver import Steps
from tests.golden import harness

CLOSE = 1e-6
OPTIONS = {
    "num_steps": None,
    "T_start": None,
    "T_end": None,
    "period": None,
    "rtol": 1e-3,
    "atol": 1e-6,
}


def single(value):
    """A float64 rounded to float32, in a way that compilers respect."""
    return jax.lax.reduce_precision(value, exponent_bits=8, mantissa_bits=23)


@harness.parametrize("pixelflow_dopri5_unit", None, lambda fixture: ["solution"])
def test_solution_and_evaluated_times(fixture, case):
    """float64, but for the time the network is told, which has float32."""
    o = harness.take(fixture.config, OPTIONS)
    given, recorded = fixture.under("in"), fixture.under("out")
    low, length = np.float32(o["T_start"]), np.float32(o["T_end"] - o["T_start"])
    calls = []

    def field(x, t, step):
        told = single(single(length * single(t)) + low)
        # Callbacks get float32, which holds these times exactly.
        jax.debug.callback(lambda told: calls.append(float(told)), told, ordered=True)
        angle = told / o["period"]
        return (x @ given["W"]) * jnp.cos(angle) + given["b"] * jnp.sin(angle)

    grid = recorded["grid"]
    harness.close(np.linspace(0, 1, o["num_steps"]), grid, "grid", 1e-7)
    solver = Dopri5(rtol=o["rtol"], atol=o["atol"], control="batch")
    with jax.enable_x64(True):
        solve = jax.jit(lambda x: solver(field, x, Steps(grid, record=True)))
        solution = jax.block_until_ready(solve(given["x0"]))
        jax.effects_barrier()
        assert solution.x.dtype == jnp.float64
    states = np.concatenate([solution.states, solution.x[None]])
    ours = {
        "grid": grid,
        "nfe": solution.evaluations,
        "solution_at_grid": states,
        "timesteps_evaluated": np.array(calls),
    }
    assert set(recorded) == set(ours)
    assert int(recorded["nfe"]) == solution.evaluations == len(calls)
    for name, theirs in recorded.items():
        harness.close(ours[name], theirs, name, CLOSE)
