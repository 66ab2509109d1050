"""Steps as arguments of a program: one for any number of steps, and any scale.

A scan over a fixed grid is compiled for that grid. Here the same evaluations are rows
of arrays that a program is given, filled up to a few lengths, and it loops over those
that count. What is left of the settings in the program is which runs of evaluations are
guided, the solver, and the shapes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from pixelflow_jax.flow.guidance import Field, runs
from pixelflow_jax.flow.solver import FixedSteps, Noise

SHORTEST = 64  # rows: most settings share one length


class Walk(NamedTuple):
    """The evaluations of a stage, as a program is given them.

    `rows` are the solver's [n, ...]; run k of evaluations that are guided alike is from
    `bounds` [k] to `bounds` [k + 1]; `times` [m] are all times that are asked for,
    rising; `scale` is that of guidance. n and m are of `padded` lengths.
    """

    rows: Any
    bounds: np.ndarray | Array
    times: np.ndarray | Array
    scale: np.ndarray | Array

    def between(self, first: int, last: int) -> "Walk":
        """Those evaluations alone, from number `first` up to `last`."""
        return self._replace(bounds=np.clip(np.asarray(self.bounds), first, last))


class Seen(NamedTuple):
    """Of the last evaluation's step: the state before it, its time, its velocity."""

    x: Array
    t: Array
    v: Array


def walk(solver: FixedSteps, times: np.ndarray, field: Field, scale: float) -> Walk:
    """The evaluations of a solver between nodes `times`, of a guided field."""
    t, step, rows = solver.evaluations(times)
    stops = [part.stop for part, _ in runs(field, t, step)]
    asked = solver.static_times(times)
    return Walk(
        rows=jax.tree.map(_filled, rows),
        bounds=np.array([0, *stops], np.int32),
        times=_filled(np.asarray(times if asked is None else asked, np.float32)),
        scale=np.asarray(scale, np.float32),
    )


def ends(solver: FixedSteps, times: np.ndarray) -> list[int]:
    """How many evaluations are behind each step, at its end."""
    count, steps = len(solver.evaluations(times).t), len(times) - 1
    each = -(-count // steps)
    return [min((i + 1) * each, count) for i in range(steps)]


def padded(count: int) -> int:
    """The length that so many rows are filled up to: a power of two."""
    return max(SHORTEST, 1 << (count - 1).bit_length())


def follow(
    solver: FixedSteps, fields: Sequence[Field], carry: Any, walk: Walk, noise: Noise
) -> Any:
    """What the solver remembers after a walk whose runs follow `fields`, one each."""
    for number, field in enumerate(fields):

        def advance(i: Array, carry: Any, field: Field = field) -> Any:
            return solver.advance(field, carry, _row(walk, i), noise)[0]

        carry = jax.lax.fori_loop(
            walk.bounds[number], walk.bounds[number + 1], advance, carry
        )
    return carry


def watch(
    solver: FixedSteps, fields: Sequence[Field], carry: Any, walk: Walk, noise: Noise
) -> tuple[Any, Seen]:
    """The same, with what was seen last; the walk holds one evaluation at least."""
    x = solver.end(carry)
    state = carry, Seen(x, jnp.float32(0), jnp.zeros_like(x))
    for number, field in enumerate(fields):

        def advance(i: Array, state: tuple, field: Field = field) -> tuple:
            begun = []

            def timed(x: Array, t: Array, step: Array) -> Array:
                begun.append(step)
                return field(x, t, step)

            row = _row(walk, i)
            carry, (x, v) = solver.advance(timed, state[0], row, noise)
            return carry, Seen(x, begun[0], v)

        state = jax.lax.fori_loop(
            walk.bounds[number], walk.bounds[number + 1], advance, state
        )
    return state


def _row(walk: Walk, i: Array) -> Any:
    """The row of evaluation number `i`."""
    return jax.tree.map(lambda a: jnp.asarray(a)[i], walk.rows)


def _filled(array: np.ndarray) -> np.ndarray:
    """An array [n, ...] with its last row repeated, so that there are `padded` rows."""
    more = padded(len(array)) - len(array)
    return np.concatenate([array, np.repeat(array[-1:], more, axis=0)])
