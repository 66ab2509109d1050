"""ODE (and stochastic Euler) solvers on a fixed time grid, as `lax.scan` over steps.

The grid is known when the program is traced, so step sizes, multistep coefficients, the
number of network evaluations and which of them are guided are constants of the compiled
program, which holds one network for each run of steps that are guided alike.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.flow.guidance import Field, runs


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
    """Integrates a field over the nodes `times`, float32 [n + 1]."""

    def __call__(
        self,
        field: Field,
        x: Array,
        times: np.ndarray,
        *,
        noise: Callable[[Array], Array] | None = None,
        record: bool = False,
    ) -> Solution:
        """`noise(i)` gives step i's standard normal draw to stochastic solvers."""

    def evaluated(self, times: np.ndarray) -> np.ndarray | None:
        """All times, rising, at which it may ask the field; None: not known ahead."""


class _Steps(NamedTuple):
    """What the steps know of the grid, numpy arrays [n]; scanned, those of one step."""

    index: np.ndarray
    t: np.ndarray
    dt: np.ndarray
    last: np.ndarray


def _steps(times: np.ndarray) -> _Steps:
    times = np.asarray(times, np.float32)
    index = np.arange(len(times) - 1)
    return _Steps(index, times[:-1], np.diff(times), index == len(times) - 2)


def _scan(
    advance: Callable,
    field: Field,
    carry: Any,
    rows: Any,
    steps: np.ndarray,
) -> tuple[Any, Any]:
    """`lax.scan` of `advance(field, carry, row)` over the `rows`, a pytree of numpy.

    Row i belongs to the step that begins at `steps[i]`, which decides whether it is
    guided: a scan for each run of rows that are guided alike, one after the other.
    """
    traces = []
    for part, own in runs(field, steps):
        some = jax.tree.map(lambda a, part=part: jnp.asarray(a[part]), rows)
        carry, trace = jax.lax.scan(functools.partial(advance, own), carry, some)
        traces.append(trace)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *traces)


def _trace(record: bool, x: Array, v: Array) -> tuple[Array, Array] | None:
    return (x, v) if record else None


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

    step: str = "ode"

    def evaluated(self, times: np.ndarray) -> np.ndarray:
        """The nodes."""
        return np.asarray(times, np.float32)

    def __call__(
        self,
        field: Field,
        x: Array,
        times: np.ndarray,
        *,
        noise: Callable[[Array], Array] | None = None,
        record: bool = False,
    ) -> Solution:
        """Integrate; order 1, one evaluation a step."""
        drift, variance, linear = _stochastic_weights(self.step)
        random = variance or linear
        if random and noise is None:
            raise ValueError(f'Euler(step="{self.step}") needs a noise function.')

        def advance(field, x, at):
            v = field(x, at.t, at.t)
            moved = x + v * at.dt
            if drift or random:
                w = 1 - at.t
                score = (at.t * v - x) / ((1 - at.t) ** 2 + at.t * (1 - at.t))
                jumped = moved + drift * score * w * at.dt
                if random:
                    spread = jnp.sqrt(variance * w * at.dt) + linear * w * at.dt
                    jumped += spread * noise(at.index)
                moved = jnp.where(at.last, moved, jumped)
            return moved, _trace(record, x, v)

        steps = _steps(times)
        x, trace = _scan(advance, field, x, steps, steps.t)
        return Solution(x, *(trace or ()))


def _stochastic_weights(step: str) -> tuple[float, float, float]:
    """Weights of the score drift, of the noise's variance and of its deviation."""
    weights = {
        "ode": (0.0, 0.0, 0.0),
        "sde_mean": (1.0, 0.0, 0.0),
        "sde": (1.0, 2.0, 0.0),
        "sde_preserve": (0.5, 1.0, 0.0),
        "sid2": (0.0, 0.0, 1.0),
    }
    if step not in weights:
        raise ValueError(f"Euler.step must be one of {sorted(weights)}, not {step!r}.")
    return weights[step]


class _Evaluations(NamedTuple):
    """The evaluations of Heun's method, numpy arrays [n]; scanned, one of them.

    At time `t` of the step that began at `step`: the state moves by `move` along the
    mean of this velocity and the one before, and from there the next evaluation looks
    by `look` along this velocity. A predictor's `move` is 0, a corrector's `look`.
    """

    t: np.ndarray
    step: np.ndarray
    move: np.ndarray
    look: np.ndarray


@dataclasses.dataclass(kw_only=True)
class Heun(Solver):
    """Heun's method (order 2); the last step is Euler's.

    `reuse` takes the first velocity of a step from the previous step's corrector, which
    was evaluated at the predicted and not at the corrected point: one evaluation a step
    instead of two, still of order 2 (the official default, "exact" being the other).
    """

    reuse: bool = False

    def evaluated(self, times: np.ndarray) -> np.ndarray:
        """The nodes."""
        return np.asarray(times, np.float32)

    def __call__(
        self,
        field: Field,
        x: Array,
        times: np.ndarray,
        *,
        noise: Callable[[Array], Array] | None = None,
        record: bool = False,
    ) -> Solution:
        """Integrate; 2n - 1 evaluations in n steps, or n with `reuse`."""
        rows = self._evaluations(times)

        def advance(field, carry, at):
            x, point, v = carry
            new = field(point, at.t, at.step)
            mean = (v + new) / 2
            moved = x + mean * at.move
            return (moved, moved + new * at.look, new), _trace(record, x, mean)

        start = (x, x, jnp.zeros_like(x))
        (x, end, v), trace = _scan(advance, field, start, rows, rows.step)
        if record:
            correctors = slice(1, None, 1 if self.reuse else 2)
            trace = jax.tree.map(
                lambda a, b: jnp.concatenate([a[correctors], b[None]]), trace, (x, v)
            )
        return Solution(end, *(trace or ()))

    def _evaluations(self, times: np.ndarray) -> _Evaluations:
        """All evaluations, in order; the last one looks at the end of the grid."""
        at = _steps(times)
        n = len(at.t)
        zero, ends = np.zeros(n, np.float32), np.asarray(times[1:], np.float32)
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

    order: int = 2
    transform: str = "identity"

    def evaluated(self, times: np.ndarray) -> np.ndarray:
        """The running sums of the step sizes."""
        started = np.zeros(1, np.float32) + np.float32(times[0])
        return np.cumsum(np.append(started, np.diff(times)[:-1]), dtype=np.float32)

    def __call__(
        self,
        field: Field,
        x: Array,
        times: np.ndarray,
        *,
        noise: Callable[[Array], Array] | None = None,
        record: bool = False,
    ) -> Solution:
        """Integrate; order `order`, one evaluation a step."""
        weights = adams_weights(times, self.order, self.transform)
        summed = self.evaluated(times)
        rows = (_steps(times)._replace(t=summed), weights.astype(np.float32))

        def advance(field, carry, row):
            x, history = carry  # history [order, ...], the oldest velocity first
            at, weight = row
            history = jnp.concatenate([history[1:], field(x, at.t, at.t)[None]])
            v = jnp.tensordot(weight, history, 1, precision="highest")
            return (x + v * at.dt, history), _trace(record, x, v)

        start = (x, jnp.zeros((self.order, *x.shape), x.dtype))
        (x, _), trace = _scan(advance, field, start, rows, summed)
        return Solution(x, *(trace or ()))


def adams_weights(
    times: np.ndarray, order: int, transform: str = "identity"
) -> np.ndarray:
    """Multistep weights [n, order] of every step, oldest first; each row sums to 1.

    Rows of the first steps, where fewer than `order` velocities exist, begin with
    zeros.
    """
    transforms = {
        "identity": lambda t: t,
        "logsnr": lambda t: np.log(np.maximum(t, 1e-3) / (1 - t + 1e-3)),
    }
    if order not in (1, 2, 3, 4):
        raise ValueError(f"AdamsBashforth.order must be 1, 2, 3 or 4, not {order}.")
    if transform not in transforms:
        raise ValueError(
            f"AdamsBashforth.transform must be one of {sorted(transforms)}, not "
            f"{transform!r}."
        )
    nodes = transforms[transform](np.asarray(times, np.float64))
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
