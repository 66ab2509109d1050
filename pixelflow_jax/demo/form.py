"""What a visitor of the demo may ask for, and what it means to a pipeline."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pixelflow_jax import values
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.choices import SOLVERS
from pixelflow_jax.validate import size_problems

# Parts of the trained size that are offered, where the model can draw them.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
LONGEST_PROMPT = 1000  # characters
LAST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The most that one request may take: images, steps, pixels a side.

    `waiting` is how many requests may wait for their turn.
    """

    images: int = 16
    steps: int = 200
    side: int = 512
    waiting: int = 16


class Form(NamedTuple):
    """The fields of the page, as they come from it.

    `wanted` holds names of classes, or a text with a prompt a line; `size` is a side in
    pixels, `low` and `high` are the two times between which guidance acts.
    """

    wanted: Sequence[str] | str | None
    count: float | None
    seed: float | None
    solver: str
    steps: float | None
    guidance: float | None
    low: float | None
    high: float | None
    shift: float | None
    size: float | None
    trajectory: bool

    def request(self, limits: Limits) -> tuple[list[str], dict[str, Any]]:
        """What to draw, and the keyword arguments of the call that draws it.

        Raises PipelineError, in a visitor's words, for what is missing or too much.
        """
        wanted = self._wanted()
        count = _whole("Images of each", self.count, 1, limits.images)
        if count * len(wanted) > limits.images:
            raise PipelineError(
                f"{len(wanted)} x {count} images are more than are drawn at once here, "
                f"{limits.images}: choose fewer."
            )
        low, high = _number("From", self.low), _number("To", self.high)
        if low >= high:
            raise PipelineError(
                f"Guidance acts from the earlier time to the later one, but {low:g} is "
                f"not before {high:g}: move one of the two."
            )
        return wanted, {
            "images_per_prompt": count,
            "seed": _whole("The seed", self.seed, 0, LAST_SEED),
            "solver": self.solver,
            "steps": _whole("Steps", self.steps, 1, limits.steps),
            "guidance": _number("The guidance scale", self.guidance),
            # The sliders end where times do: there guidance has no end.
            "guidance_interval": (
                -math.inf if low <= 0 else low,
                math.inf if high >= 1 else high,
            ),
            "shift": _number("The timestep shift", self.shift),
            "height": _whole("The size", self.size, 1, limits.side),
            "width": _whole("The size", self.size, 1, limits.side),
            "record": bool(self.trajectory),
        }

    def _wanted(self) -> list[str]:
        """The classes or prompts; PipelineError where there are none."""
        if not isinstance(self.wanted, str):
            if not self.wanted:
                raise PipelineError("Choose what to draw: at least one class.")
            return list(self.wanted)
        prompts = [line.strip() for line in self.wanted.splitlines() if line.strip()]
        if not prompts:
            raise PipelineError("Write what to draw: a prompt, or several, one a line.")
        longest = max(map(len, prompts))
        if longest > LONGEST_PROMPT:
            raise PipelineError(
                f"A prompt has {longest:,} characters; {LONGEST_PROMPT:,} are the most."
            )
        return prompts


def _number(what: str, value: float | None) -> float:
    """A field's number; PipelineError where it is empty or no number."""
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    raise PipelineError(f"{what} must be a number, not {values.show(value)}.")


def _whole(what: str, value: float | None, low: int, high: int) -> int:
    """A field's whole number in [low, high]; PipelineError for others."""
    number = _number(what, value)
    if number != int(number) or not low <= number <= high:
        raise PipelineError(
            f"{what} must be a whole number from {low:,} to {high:,}, not {number:g}."
        )
    return int(number)


class Defaults(NamedTuple):
    """What the page shows at first: the model's own settings of sampling."""

    solver: str
    steps: int
    guidance: float
    low: float
    high: float
    shift: float
    size: int


def defaults(pipeline: Pipeline, limits: Limits) -> Defaults:
    """The settings that a model's config names, by the page's fields, within limits."""
    sampling = pipeline.config.sampling
    solvers = [name for name, solver in SOLVERS.items() if solver == sampling.solver]
    grid, guidance = sampling.grid, sampling.guidance
    steps = max(grid.stage_steps) if grid.stage_steps else grid.steps
    return Defaults(
        solver=solvers[0] if solvers else "euler",
        steps=min(steps, limits.steps),
        guidance=getattr(guidance, "scale", 1.0),
        low=max(0.0, getattr(guidance, "low", 0.0)),
        high=min(1.0, getattr(guidance, "high", 1.0)),
        shift=grid.shift,
        size=sizes(pipeline, limits)[0],
    )


def sizes(pipeline: Pipeline, limits: Limits) -> list[int]:
    """The sides in pixels that the model can draw, up to the limit, the best first.

    That is its own, or the largest below the limit; its own alone where none is.
    """
    own = pipeline.config.data.image_size
    sides = [int(own * scale) for scale in SCALES]
    able = [
        side
        for side in sides
        if side <= limits.side and not size_problems(pipeline.config, side, side)
    ]
    best = min(own, max(able, default=own))
    return [best, *(side for side in able if side != best)]
