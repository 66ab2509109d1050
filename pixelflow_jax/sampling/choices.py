"""Settings of sampling by the words that people type: a solver's name, steps, a scale.

The command line, the Python API, sweeps and benchmarks read the same words here.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from pixelflow_jax import values
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import AutoGuidance, Guidance
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun, Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.sampling.settings import Sampling

SOLVERS: dict[str, Solver] = {
    "euler": Euler(),
    "sde": Euler(step="sde"),
    "sde_mean": Euler(step="sde_mean"),
    "sde_preserve": Euler(step="sde_preserve"),
    "sid2": Euler(step="sid2"),
    "heun": Heun(),
    "heun_reuse": Heun(reuse=True),
    **{f"adams{order}": AdamsBashforth(order=order) for order in (1, 2, 3, 4)},
    "dopri5": Dopri5(),
}

# Fields of guidance that autoguidance takes over.
SHARED = ("scale", "low", "high", "interval", "interval_time")
Node = TypeVar("Node")


class Choices(NamedTuple):
    """What is said of settings; what is None stays as it is.

    `preset` is a name of `PRESETS`, taken whole before the others change it. `solver`
    is a name of `SOLVERS`, or a solver; `steps` one number, or one a stage; `shift`
    that of the times; `guidance` another guidance, or the scale; `interval` the two
    times between which it acts; `guide` weights of a weaker model to guide by.
    """

    preset: str | None = None
    solver: str | Solver | None = None
    grid: Grid | None = None
    steps: int | tuple[int, ...] | None = None
    shift: float | None = None
    guidance: Guidance | float | None = None
    interval: tuple[float, float] | None = None
    guide: str | None = None

    def apply(self, sampling: Sampling) -> Sampling:
        """The settings with what is said; PipelineError for names that are none."""
        if self.preset is not None:
            sampling = PRESETS[one_of("preset", self.preset, PRESETS)]()
        solver = self.solver or sampling.solver
        if isinstance(solver, str):
            solver = SOLVERS[one_of("solver", solver, SOLVERS)]
        grid = replaced(
            self.grid or sampling.grid, **_steps(self.steps), shift=self.shift
        )
        guidance = self._guidance(sampling.guidance)
        return dataclasses.replace(
            sampling, solver=solver, grid=grid, guidance=guidance
        )

    def _guidance(self, guidance: Guidance) -> Guidance:
        given = self.guidance
        if given is not None and not isinstance(given, int | float):
            guidance, given = given, None
        if self.guide:
            same = {k: v for k, v in vars(guidance).items() if k in SHARED}
            guidance = AutoGuidance(weights=self.guide, **same)
        low, high = self.interval or (None, None)
        return replaced(guidance, scale=given, low=low, high=high)


def one_of(word: str, name: str, known: Iterable[str]) -> str:
    """A name that must be one of those; PipelineError, with what it may be, else."""
    names = sorted(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    raise PipelineError(
        f"{word}={values.show(name)} is none.{meant} There are {', '.join(names)}."
    )


def replaced(node: Node, **changes: object) -> Node:
    """A config node with those of the changes that are not None."""
    given = {name: value for name, value in changes.items() if value is not None}
    config: Any = node
    return dataclasses.replace(config, **given)


def _steps(steps: int | tuple[int, ...] | None) -> dict[str, Any]:
    """The grid's fields for one number of steps, or one a stage."""
    if steps is None:
        return {}
    if isinstance(steps, tuple):
        return {"stage_steps": steps}
    return {"steps": steps, "stage_steps": ()}
