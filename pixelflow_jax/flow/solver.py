"""ODE (and stochastic Euler) solvers on a fixed time grid, as `lax.scan` over steps.

The grid is known when the program is traced, so step sizes, multistep coefficients, the
number of network evaluations and which of them are guided are constants of the compiled
program, which holds one network for each run of steps that are guided alike.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pixelflow_jax import values
from pixelflow_jax.flow.checks import refuse, unknown
from pixelflow_jax.flow.guidance import Field, runs
from pixelflow_jax.values import Range

StochasticStep = Literal["ode", "sde_mean", "sde", "sde_preserve", "sid2"]
Transform = Literal["identity", "logsnr"]
A = TypeVar("A", np.ndarray, Array)  # known while tracing, or scanned


class Steps(NamedTuple):
    """The steps that a solver is to take.

    `times` are their nodes, float32 [n + 1], rising. `noise(i)` gives step i's standard
    normal draw to stochastic solvers. `record` asks for the way to the last node.
    """

    times: np.ndarray
    noise: Callable[[Array], Array] | None = None
    record: bool = False

    def grid(self) -> "StepGrid[np.ndarray]":
        """What a solver on this grid knows of each step."""
        times = np.asarray(self.times, np.float32)
        index = np.arange(len(times) - 1)
        return StepGrid(index, times[:-1], np.diff(times), index == len(times) - 2)

    def trace(self, x: Array, v: Array) -> tuple[Array, Array] | None:
        """State and velocity of a step, where the way is recorded."""
        return (x, v) if self.record else None


class StepGrid(NamedTuple, Generic[A]):
    """Number, beginning and size of each step, and whether it is the last one, [n].

    Scanned, those of one step.
    """

    index: A
    t: A
    dt: A
    last: A


class Solution(NamedTuple):
    """The state at the last node and, when recorded, the way there.

    `states` [n, ...] are the states before each of the n steps and `velocities` [n,
    ...] the velocities the steps used; both are None unless recording was asked for.
    `evaluations` counts what an adaptive solver spent, None for the others.
    """

    x: Array
    states: Array | None = None
    velocities: Array | None = None
    evaluations: Array | None = None


class Solver(Protocol):
    """Integrates a field over the nodes of some steps; config nodes name it as base."""

    def __call__(self, field: Field, x: Float[Array, "..."], steps: Steps) -> Solution:
        """Follow `field` from `x` at the first node to the last node."""
        ...

    def static_times(
        self, times: Float[np.ndarray, " times"]
    ) -> Float[np.ndarray, " asked"] | None:
        """All times, rising, at which the field is asked on a grid of those nodes.

        The nodes, for most; None where they are not known while a program is traced.
        """
        return np.asarray(times, np.float32)

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        return []


class _Asked(NamedTuple):
    """Times [n] at which a field is asked, and at which those steps began."""

    t: np.ndarray
    step: np.ndarray


def _scan(
    advance: Callable, field: Field, carry: Any, rows: Any, asked: _Asked
) -> tuple[Any, Any]:
    """`lax.scan` of `advance(field, carry, row)` over the `rows`, a pytree of numpy.

    Each row asks the field once; the times decide whether it is guided: a scan for each
    run of rows that are guided alike, one after the other.
    """
    traces = []
    for part, own in runs(field, *asked):
        some = jax.tree.map(lambda a, part=part: jnp.asarray(a[part]), rows)
        carry, trace = jax.lax.scan(functools.partial(advance, own), carry, some)
        traces.append(trace)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)


# Of Euler's steps: the weight of the score's drift, of the noise's variance, and of its
# deviation.
STOCHASTIC_WEIGHTS: dict[str, tuple[float, float, float]] = {
    "ode": (0.0, 0.0, 0.0),
    "sde_mean": (1.0, 0.0, 0.0),
    "sde": (1.0, 2.0, 0.0),
    "sde_preserve": (0.5, 1.0, 0.0),
    "sid2": (0.0, 0.0, 1.0),
}


@dataclasses.dataclass(kw_only=True)
class Euler(Solver):
    """Euler's method, or one of the reference's stochastic steps.

    With the score s = (t v - x) / ((1-t)^2 + t (1-t)) and w = 1 - t, `step` is

    - "ode": x + v dt
    - "sde_mean": x + v dt + s w dt
    - "sde": the same + sqrt(2 w dt) noise
    - "sde_preserve": x + v dt + s w dt / 2 + sqrt(w dt) noise
    - "sid2": x + v dt + w dt noise

    The last step is always the plain one.
    """

    step: StochasticStep = "ode"

    def __call__(self, field: Field, x: Float[Array, "..."], steps: Steps) -> Solution:
        """Integrate; order 1, one evaluation a step."""
        refuse(self.problems())
        drift, variance, linear = STOCHASTIC_WEIGHTS[self.step]
        noise = steps.noise if variance or linear else None
        if (variance or linear) and noise is None:
            raise ValueError(f'Euler(step="{self.step}") needs a noise function.')

        def advance(field: Field, x: Array, at: StepGrid[Array]) -> tuple[Array, Any]:
            v = field(x, at.t, at.t)
            moved = x + v * at.dt
            if drift or noise:
                w = 1 - at.t
                score = (at.t * v - x) / ((1 - at.t) ** 2 + at.t * (1 - at.t))
                jumped = moved + drift * score * w * at.dt
                if noise:
                    spread = jnp.sqrt(variance * w * at.dt) + linear * w * at.dt
                    jumped += spread * noise(at.index)
                moved = jnp.where(at.last, moved, jumped)
            return moved, steps.trace(x, v)

        grid = steps.grid()
        x, trace = _scan(advance, field, x, grid, _Asked(grid.t, grid.t))
        return Solution(x, *(trace or ()))

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        return unknown("Euler.step", self.step, STOCHASTIC_WEIGHTS)


class _Evaluations(NamedTuple, Generic[A]):
    """The evaluations of Heun's method, [n]; scanned, one of them.

    At time `t` of the step that began at `step`: the state moves by `move` along the
    mean of this velocity and the one before, and from there the next evaluation looks
    by `look` along this velocity. A predictor's `move` is 0, a corrector's `look`.
    """

    t: A
    step: A
    move: A
    look: A


@dataclasses.dataclass(kw_only=True)
class Heun(Solver):
    """Heun's method (order 2); the last step is Euler's.

    `reuse` takes the first velocity of a step from the previous step's corrector, which
    was evaluated at the predicted and not at the corrected point: one evaluation a step
    instead of two, still of order 2 (the official default, "exact" being the other).
    """

    reuse: bool = False

    def __call__(self, field: Field, x: Float[Array, "..."], steps: Steps) -> Solution:
        """Integrate; 2n - 1 evaluations in n steps, or n with `reuse`."""
        rows = self._evaluations(steps)

        def advance(
            field: Field, carry: tuple[Array, Array, Array], at: _Evaluations[Array]
        ) -> tuple[tuple[Array, Array, Array], Any]:
            x, point, v = carry
            new = field(point, at.t, at.step)
            mean = (v + new) / 2
            moved = x + mean * at.move
            return (moved, moved + new * at.look, new), steps.trace(x, mean)

        start = (x, x, jnp.zeros_like(x))
        (x, end, v), trace = _scan(
            advance, field, start, rows, _Asked(rows.t, rows.step)
        )
        if steps.record:
            correctors = slice(1, None, 1 if self.reuse else 2)
            trace = jax.tree.map(
                lambda a, b: jnp.concatenate([a[correctors], b[None]]), trace, (x, v)
            )
        return Solution(end, *(trace or ()))

    def _evaluations(self, steps: Steps) -> _Evaluations[np.ndarray]:
        """All evaluations, in order; the last one looks at the end of the grid."""
        at = steps.grid()
        n = len(at.t)
        zero, ends = np.zeros(n, np.float32), np.asarray(steps.times[1:], np.float32)
        if self.reuse:
            begun = np.append(at.t[:1], at.t[: n - 1])
            moves = np.append(zero[:1], at.dt[: n - 1])
            return _Evaluations(at.t, begun, moves, at.dt)
        predictors = _Evaluations(at.t, at.t, zero, at.dt)
        correctors = _Evaluations(ends, at.t, at.dt, zero)
        pairs = zip(predictors, correctors, strict=True)
        return _Evaluations(*(np.stack(pair, 1).ravel()[: 2 * n - 1] for pair in pairs))


@dataclasses.dataclass(kw_only=True)
class AdamsBashforth(Solver):
    """Adams-Bashforth of order 1 to 4 on any nodes; starts at order 1 and climbs.

    Step i follows the sum of the last velocities weighted by the integrals of their
    Lagrange basis over the step, divided by the weights' sum. `transform` "logsnr"
    takes the integrals in log(t / (1 - t)) (with the reference's 1e-3 guards),
    "identity" in t. One evaluation a step. As in the reference the network is told the
    float32 running sum of the step sizes.
    """

    order: Annotated[int, Range(low=1, high=4)] = 2
    transform: Transform = "identity"

    def static_times(
        self, times: Float[np.ndarray, " times"]
    ) -> Float[np.ndarray, " asked"]:
        """The running sums of the step sizes."""
        started = np.zeros(1, np.float32) + np.float32(times[0])
        return np.cumsum(np.append(started, np.diff(times)[:-1]), dtype=np.float32)

    def __call__(self, field: Field, x: Float[Array, "..."], steps: Steps) -> Solution:
        """Integrate; order `order`, one evaluation a step."""
        refuse(self.problems())
        weights = adams_weights(steps.times, self.order, self.transform)
        summed = self.static_times(steps.times)
        rows = (steps.grid()._replace(t=summed), weights.astype(np.float32))

        def advance(
            field: Field, carry: tuple[Array, Array], row: tuple[StepGrid[Array], Array]
        ) -> tuple[tuple[Array, Array], Any]:
            x, history = carry  # history [order, ...], the oldest velocity first
            at, weight = row
            history = jnp.concatenate([history[1:], field(x, at.t, at.t)[None]])
            v = jnp.tensordot(weight, history, 1, precision="highest")
            return (x + v * at.dt, history), steps.trace(x, v)

        start = (x, jnp.zeros((self.order, *x.shape), x.dtype))
        (x, _), trace = _scan(advance, field, start, rows, _Asked(summed, summed))
        return Solution(x, *(trace or ()))

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        return [
            *unknown("AdamsBashforth.transform", self.transform, TRANSFORMS),
            *values.field_problems(self, "AdamsBashforth"),
        ]


TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda t: t,
    "logsnr": lambda t: np.log(np.maximum(t, 1e-3) / (1 - t + 1e-3)),
}


def adams_weights(
    times: Float[np.ndarray, " times"], order: int, transform: Transform = "identity"
) -> Float[np.ndarray, "steps {order}"]:
    """Multistep weights [n, order] of every step, oldest first; each row sums to 1.

    Rows of the first steps, where fewer than `order` velocities exist, begin with
    zeros.
    """
    nodes = TRANSFORMS[transform](np.asarray(times, np.float64))
    rows = np.zeros((len(nodes) - 1, order))
    for i in range(len(nodes) - 1):
        known = nodes[max(0, i + 1 - order) : i + 1]
        # Centred and scaled to the step, so that no digits cancel.
        width = nodes[i + 1] - nodes[i]
        local = (known - nodes[i]) / width
        for j, node in enumerate(local):
            others = np.delete(local, j)
            basis = np.atleast_1d(np.poly(others)) / np.prod(node - others)
            integral = np.polyval(np.polyint(basis), 1.0)
            rows[i, order - len(known) + j] = integral
    return rows / rows.sum(1, keepdims=True)
