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


class StepGrid(NamedTuple, Generic[A]):
    """Number, beginning and size of each step, and whether it is the last one, [n].

    Scanned, those of one step.
    """

    index: A
    t: A
    dt: A
    last: A

    @staticmethod
    def of(times: Float[np.ndarray, " times"]) -> "StepGrid[np.ndarray]":
        """The steps between nodes."""
        times = np.asarray(times, np.float32)
        index = np.arange(len(times) - 1)
        return StepGrid(index, times[:-1], np.diff(times), index == len(times) - 2)


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


class Evaluations(NamedTuple):
    """All that a solver on fixed steps knows of its evaluations, in order, as numpy.

    Evaluation i asks the field at time `t` [n], in the step that began at `step` [n];
    `rows` is a pytree of arrays [n, ...] with what `advance` reads of each.
    """

    t: np.ndarray
    step: np.ndarray
    rows: Any


Noise = Callable[[Array], Array] | None
Trace = tuple[Array, Array]  # the state and the velocity of an evaluation


class FixedSteps(Solver, Protocol):
    """A solver whose evaluations follow from the nodes; config nodes name it as base.

    It carries what it remembers (`start`, `end`) from one evaluation to the next
    (`advance`), so that they can be scanned, looped over, and left in between.
    """

    def evaluations(self, times: Float[np.ndarray, " times"]) -> Evaluations:
        """Its evaluations on a grid of those nodes."""
        ...

    def start(self, x: Float[Array, "..."]) -> Any:
        """What it remembers at the first node."""
        return x

    def advance(
        self, field: Field, carry: Any, row: Any, noise: Noise
    ) -> tuple[Any, Trace]:
        """Ask the field once, as a row of `Evaluations.rows` says."""
        ...

    def end(self, carry: Any) -> Float[Array, "..."]:
        """The state in what it remembers."""
        return carry

    def way(self, trace: Trace, carry: Any) -> Trace:
        """States before the steps, and their velocities, of all evaluations'."""
        return trace

    def __call__(self, field: Field, x: Float[Array, "..."], steps: Steps) -> Solution:
        """Integrate by one scan for each run of evaluations that are guided alike."""
        refuse(self.problems())
        t, step, rows = self.evaluations(steps.times)
        carry, traces = self.start(x), []

        def scanned(field: Field, carry: Any, row: Any) -> tuple[Any, Trace | None]:
            carry, trace = self.advance(field, carry, row, steps.noise)
            return carry, trace if steps.record else None

        for part, own in runs(field, t, step):
            some = jax.tree.map(lambda a, part=part: jnp.asarray(a[part]), rows)
            carry, trace = jax.lax.scan(functools.partial(scanned, own), carry, some)
            traces.append(trace)
        if not steps.record:
            return Solution(self.end(carry))
        trace = jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)
        return Solution(self.end(carry), *self.way(trace, carry))


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
class Euler(FixedSteps):
    """Euler's method, or one of the reference's stochastic steps.

    With the score s = (t v - x) / ((1-t)^2 + t (1-t)) and w = 1 - t, `step` is

    - "ode": x + v dt
    - "sde_mean": x + v dt + s w dt
    - "sde": the same + sqrt(2 w dt) noise
    - "sde_preserve": x + v dt + s w dt / 2 + sqrt(w dt) noise
    - "sid2": x + v dt + w dt noise

    The last step is always the plain one. Order 1, one evaluation a step.
    """

    step: StochasticStep = "ode"

    def evaluations(self, times: Float[np.ndarray, " times"]) -> Evaluations:
        """One a step."""
        grid = StepGrid.of(times)
        return Evaluations(grid.t, grid.t, grid)

    def advance(
        self, field: Field, carry: Array, row: StepGrid[Array], noise: Noise
    ) -> tuple[Array, Trace]:
        """One step; ValueError for a stochastic one without noise."""
        x, (drift, variance, linear) = carry, STOCHASTIC_WEIGHTS[self.step]
        v = field(x, row.t, row.t)
        moved = x + v * row.dt
        if self.step == "ode":
            return moved, (x, v)
        w = 1 - row.t
        score = (row.t * v - x) / ((1 - row.t) ** 2 + row.t * (1 - row.t))
        jumped = moved + drift * score * w * row.dt
        if variance or linear:
            if noise is None:
                raise ValueError(f'Euler(step="{self.step}") needs a noise function.')
            spread = jnp.sqrt(variance * w * row.dt) + linear * w * row.dt
            jumped += spread * noise(row.index)
        return jnp.where(row.last, moved, jumped), (x, v)

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        return unknown("Euler.step", self.step, STOCHASTIC_WEIGHTS)


class _HeunRow(NamedTuple, Generic[A]):
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
class Heun(FixedSteps):
    """Heun's method (order 2); the last step is Euler's.

    `reuse` takes the first velocity of a step from the previous step's corrector, which
    was evaluated at the predicted and not at the corrected point: one evaluation a step
    instead of two, still of order 2 (the official default, "exact" being the other).
    2n - 1 evaluations in n steps, or n with `reuse`.
    """

    reuse: bool = False

    def evaluations(self, times: Float[np.ndarray, " times"]) -> Evaluations:
        """A predictor and a corrector a step; the last one looks at the grid's end."""
        at = StepGrid.of(times)
        n = len(at.t)
        zero, ends = np.zeros(n, np.float32), np.asarray(times[1:], np.float32)
        if self.reuse:
            begun = np.append(at.t[:1], at.t[: n - 1])
            moves = np.append(zero[:1], at.dt[: n - 1])
            rows = _HeunRow(at.t, begun, moves, at.dt)
            return Evaluations(rows.t, rows.step, rows)
        predictors = _HeunRow(at.t, at.t, zero, at.dt)
        correctors = _HeunRow(ends, at.t, at.dt, zero)
        pairs = zip(predictors, correctors, strict=True)
        rows = _HeunRow(*(np.stack(pair, 1).ravel()[: 2 * n - 1] for pair in pairs))
        return Evaluations(rows.t, rows.step, rows)

    def start(self, x: Float[Array, "..."]) -> tuple[Array, Array, Array]:
        """The state, the point to look at next, and the velocity seen there."""
        return x, x, jnp.zeros_like(x)

    def advance(
        self,
        field: Field,
        carry: tuple[Array, Array, Array],
        row: _HeunRow[Array],
        noise: Noise,
    ) -> tuple[tuple[Array, Array, Array], Trace]:
        """One evaluation: a predictor's, or a corrector's, which moves the state."""
        x, point, v = carry
        new = field(point, row.t, row.step)
        mean = (v + new) / 2
        moved = x + mean * row.move
        used = jnp.where(row.move > 0, mean, new)
        return (moved, moved + new * row.look, new), (x, used)

    def end(self, carry: tuple[Array, Array, Array]) -> Float[Array, "..."]:
        """The point that the last evaluation looked at."""
        return carry[1]

    def way(self, trace: Trace, carry: tuple[Array, Array, Array]) -> Trace:
        """What the correctors did, and the last step, which has none."""
        correctors = slice(1, None, 1 if self.reuse else 2)
        x, _, v = carry
        states, velocities = (
            jnp.concatenate([a[correctors], b[None]])
            for a, b in zip(trace, (x, v), strict=True)
        )
        return states, velocities


@dataclasses.dataclass(kw_only=True)
class AdamsBashforth(FixedSteps):
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

    def evaluations(self, times: Float[np.ndarray, " times"]) -> Evaluations:
        """One a step, each with the weights of the last velocities."""
        weights = adams_weights(times, self.order, self.transform)
        summed = self.static_times(times)
        grid = StepGrid.of(times)._replace(t=summed)
        return Evaluations(summed, summed, (grid, weights.astype(np.float32)))

    def start(self, x: Float[Array, "..."]) -> tuple[Array, Array]:
        """The state, and the velocities [order, ...], the oldest first."""
        return x, jnp.zeros((self.order, *x.shape), x.dtype)

    def advance(
        self,
        field: Field,
        carry: tuple[Array, Array],
        row: tuple[StepGrid[Array], Array],
        noise: Noise,
    ) -> tuple[tuple[Array, Array], Trace]:
        """One step along the weighted velocities."""
        (x, history), (at, weight) = carry, row
        history = jnp.concatenate([history[1:], field(x, at.t, at.t)[None]])
        v = jnp.tensordot(weight, history, 1, precision="highest")
        return (x + v * at.dt, history), (x, v)

    def end(self, carry: tuple[Array, Array]) -> Float[Array, "..."]:
        """The state."""
        return carry[0]

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
