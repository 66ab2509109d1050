"""Dormand and Prince's Runge-Kutta pair 5(4) with adaptive steps and dense output."""

import dataclasses
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pixelflow_jax import values
from pixelflow_jax.flow.checks import refuse, unknown
from pixelflow_jax.flow.guidance import Field
from pixelflow_jax.flow.path import per_image
from pixelflow_jax.flow.solver import Solution, Solver, Steps
from pixelflow_jax.values import Count, NonNegative, Positive

# Dormand & Prince 1980, table 2. A step from t to t + h has seven slopes k_0 to k_6;
# row i of WEIGHTS leads to the point of k_(i+1), at t + NODES[i] h. The last row is the
# solution of order 5, so that the last slope of a step is the first one of the next.
NODES = np.array([1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
WEIGHTS = np.array(
    [
        [1 / 5, 0, 0, 0, 0, 0, 0],
        [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
        [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
    ]
)
SOLUTION = WEIGHTS[-1]
# Less the solution of order 4 that Shampine chose in place of the pair's own.
ERROR = SOLUTION - np.array(
    [1951 / 21600, 0, 22642 / 50085, 451 / 720, -12231 / 42400, 649 / 6300, 1 / 60]
)
# The point at t + h / 2, of order 4 (Shampine 1986).
MIDDLE = 0.5 * np.array(
    [
        6025192743 / 30085553152,
        0,
        51252292925 / 65400821598,
        -2691868925 / 45128329728,
        187940372067 / 1594534317056,
        -1776094331 / 19743644256,
        11237099 / 235043384,
    ]
)
# Inside a step x(t + s h) = x + h sum_j q_j(s) k_j, where q = (s, s^2, s^3, s^4) DENSE
# has the slope k_0 at 0, the value MIDDLE at 1/2, the value SOLUTION at 1 and the slope
# k_6 at 1.
DENSE = np.linalg.solve(
    [[1, 0, 0, 0], [1 / 2, 1 / 4, 1 / 8, 1 / 16], [1, 1, 1, 1], [1, 2, 3, 4]],
    np.stack([np.eye(7)[0], MIDDLE, SOLUTION, np.eye(7)[6]]),
)
SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0
Control = Literal["image", "batch"]


class _Walk(NamedTuple):
    """Where every unit (an image, or the whole batch) stands; times are [u]."""

    t: Array
    h: Array  # the size of the next step
    x: Array  # [u, ...]
    v: Array  # the velocity at (t, x)
    attempts: Array
    # States and, if recorded, velocities at the wanted times, [m, u, ...]; NaN before.
    passed: tuple[Array, ...]


@dataclasses.dataclass(kw_only=True)
class Dopri5(Solver):
    """Dormand-Prince 5(4): steps as long as the tolerances `rtol` and `atol` allow.

    A step is accepted where the root mean square of error / (atol + rtol |x|) is at
    most 1. With `control` "image" every image has its own steps, so that it does not
    depend on the rest of the batch; with "batch" one mean over everything in `x`
    decides for all, as in the official PixelFlow (torchdiffeq). Steps do not end on
    the wanted times: the last one goes past the end, and the result lies on the
    quartic through the step. The field is therefore asked beyond the last time.

    An image that needs more than `max_steps` attempts, accepted or not, or steps too
    short for the precision of the time (where the field is not finite, for one),
    becomes NaN.

    Time has float64 where jax has it enabled, as in torchdiffeq, and float32 otherwise.
    """

    rtol: NonNegative = 1e-3
    atol: Positive = 1e-6
    control: Control = "image"
    max_steps: Count = 1000

    def static_times(self, times: np.ndarray) -> None:
        """None: it finds its times on the way."""

    def __call__(self, field: Field, x: Float[Array, "..."], steps: Steps) -> Solution:
        """Integrate; order 5, 2 evaluations and 6 more for each attempted step.

        The field's `t` and `step` are [b] under control "image" and scalars under
        "batch"; `evaluations` of the solution is int32 of the same shape. Only the
        first and the last of the times matter, unless the way there is recorded;
        recorded velocities are the slopes of the interpolant. Raises ValueError for
        settings that cannot work.
        """
        times, problems = np.asarray(steps.times), self.problems()
        if len(times) < 2 or not (np.diff(times) > 0).all():
            problems.append(f"Dopri5 needs two or more increasing times, not {times}")
        refuse(problems)
        if self.control == "image":
            return self._solve(field, x, times, steps.record)
        whole = lambda x, t, step: field(x[0], t[0], step[0])[None]
        units = self._solve(whole, x[None], times, steps.record)
        return Solution(
            x=units.x[0],
            states=None if units.states is None else units.states[:, 0],
            velocities=None if units.velocities is None else units.velocities[:, 0],
            evaluations=None if units.evaluations is None else units.evaluations[0],
        )

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        problems = unknown("Dopri5.control", self.control, get_args(Control))
        return problems + values.field_problems(self, "Dopri5")

    def _solve(
        self, field: Field, x: Array, times: np.ndarray, record: bool
    ) -> Solution:
        """Every entry of the first axis of `x` on its own."""
        evaluate = lambda x, t, step: field(x, t.astype(x.dtype), step.astype(x.dtype))
        wanted = jnp.asarray(times if record else times[-1:], float)
        start = jnp.full(x.shape[:1], times[0], wanted.dtype)
        v = evaluate(x, start, start)
        ahead = jnp.full((len(wanted), *x.shape), jnp.nan, x.dtype)
        walk = _Walk(
            t=start,
            h=self._first_step(evaluate, x, start, v),
            x=x,
            v=v,
            attempts=jnp.zeros(x.shape[:1], jnp.int32),
            passed=(ahead,),
        )
        if record:
            walk = walk._replace(passed=(ahead.at[0].set(x), ahead.at[0].set(v)))

        def going(walk: _Walk) -> Array:
            moves = walk.t + walk.h > walk.t  # not where the step is NaN
            return (walk.t < wanted[-1]) & moves & (walk.attempts < self.max_steps)

        walk = jax.lax.while_loop(
            lambda walk: going(walk).any(),
            lambda walk: self._attempt(evaluate, walk, wanted, going(walk)),
            walk,
        )
        counts = 2 + 6 * walk.attempts
        way = [one[:-1] for one in walk.passed] if record else [None, None]
        return Solution(walk.passed[0][-1], *way, evaluations=counts)

    def _attempt(
        self, evaluate: Field, walk: _Walk, wanted: Array, going: Array
    ) -> _Walk:
        """One attempt at a step by the units `going` [u]; the others stay."""
        x = walk.x
        t = walk.t + walk.h
        h = t - walk.t  # the rounded times, not the intended ones, are h apart
        slopes = _slopes(evaluate, walk, h)
        width = per_image(h.astype(x.dtype), x)
        moved = x + width * _weigh(SOLUTION, slopes)
        scale = self._scale(jnp.maximum(jnp.abs(x), jnp.abs(moved)))
        ratio = _rms(width * _weigh(ERROR, slopes) / scale).astype(h.dtype)
        # Where the field overflowed a shorter step may not.
        ratio = jnp.where(jnp.isfinite(ratio), ratio, jnp.inf)
        accepted = going & (ratio <= 1)
        floor = jnp.where(ratio < 1, 1.0, SHRINK)
        factor = jnp.clip(SAFETY * ratio ** (-1 / 5), floor, GROW)

        reached = accepted & (walk.t < wanted[:, None]) & (wanted[:, None] <= t)
        fraction = (wanted[:, None] - walk.t) / h
        inside = _inside(fraction, slopes, x, width)
        # Without a record of the way only the states are kept, not the velocities.
        pairs = zip(inside, walk.passed, strict=False)
        return _Walk(
            t=jnp.where(accepted, t, walk.t),
            h=jnp.where(going, h * factor, walk.h),
            x=_where(accepted, moved, x),
            v=_where(accepted, slopes[-1], walk.v),
            attempts=walk.attempts + going,
            passed=tuple(_where(reached, new, old) for new, old in pairs),
        )

    def _first_step(self, evaluate: Field, x: Array, t: Array, v: Array) -> Array:
        """The size of the first step (Hairer, Norsett & Wanner 1993, section II.4)."""
        scale = self._scale(jnp.abs(x))
        size, slope = _rms(x / scale), _rms(v / scale)
        tiny = (size < 1e-5) | (slope < 1e-5)
        trial = jnp.where(tiny, 1e-6, 0.01 * size / slope)
        moved = x + per_image(trial, x) * v
        change = evaluate(moved, t + trial, t) - v
        steepest = jnp.maximum(slope, _rms(change / scale) / trial)
        still = steepest <= 1e-15
        h = (0.01 / steepest) ** (1 / 5)
        h = jnp.where(still, jnp.maximum(1e-6, 1e-3 * trial), h)
        return jnp.minimum(100 * trial, h).astype(t.dtype)

    def _scale(self, size: Array) -> Array:
        return self.atol + self.rtol * size


def _slopes(evaluate: Field, walk: _Walk, h: Array) -> Array:
    """The seven slopes of a step of size `h` [u]; [7, u, ...]."""
    x = walk.x
    width = per_image(h.astype(x.dtype), x)

    # A scan, so that the network is compiled once and not six times.
    def advance(slopes: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, node, weights = at
        point = x + width * _weigh(weights, slopes)
        slope = evaluate(point, walk.t + node * h, walk.t)
        return slopes.at[index].set(slope), None

    slopes = jnp.zeros((7, *x.shape), x.dtype).at[0].set(walk.v)
    nodes = jnp.asarray(NODES, h.dtype)
    weights = jnp.asarray(WEIGHTS, x.dtype)
    return jax.lax.scan(advance, slopes, (jnp.arange(1, 7), nodes, weights))[0]


def _inside(
    fraction: Array, slopes: Array, x: Array, width: Array
) -> tuple[Array, Array]:
    """States and velocities [m, u, ...] at the `fraction` [m, u] of a step from `x`."""
    powers = [fraction**n for n in (1, 2, 3, 4)]
    rises = [n * fraction ** (n - 1) for n in (1, 2, 3, 4)]
    dense = jnp.asarray(DENSE, x.dtype)
    risen, velocities = (
        jnp.einsum(
            "nmu,nj,ju...->mu...",
            jnp.stack(basis).astype(x.dtype),
            dense,
            slopes,
            precision="highest",
        )
        for basis in (powers, rises)
    )
    return x + width * risen, velocities


def _weigh(weights: Array | np.ndarray, slopes: Array) -> Array:
    """The weighted sum of the seven slopes."""
    weights = jnp.asarray(weights, slopes.dtype)
    return jnp.tensordot(weights, slopes, 1, precision="highest")


def _rms(x: Float[Array, "u ..."]) -> Float[Array, " u"]:
    """The root mean square of every unit: [u, ...] to [u]."""
    return jnp.sqrt(jnp.mean(jnp.square(x), axis=tuple(range(1, x.ndim))))


def _where(condition: Array, new: Array, old: Array) -> Array:
    """`new` for the units of `condition` [u] or [m, u], `old` for the others."""
    return jnp.where(per_image(condition, new), new, old)
