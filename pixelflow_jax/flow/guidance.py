"""Guidance: from a conditional field and a weaker one to a guided field."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from pixelflow_jax import values
from pixelflow_jax.flow.checks import refuse, unknown
from pixelflow_jax.flow.path import per_image
from pixelflow_jax.values import Place, Scale, Share, Time

# (x, t, step) -> dx/dt. `t` is the time inside the stage, a scalar or one an image;
# `step` is the time at which the solver's current step began. They differ in the second
# evaluation of a Heun step.
Field = Callable[[Array, Array, Array], Array]
Pair = Callable[[Array, Array, Array], tuple[Array, Array]]

Interval = Literal["()", "[)", "(]", "[]"]
# The time that a window is tested at: the step's beginning, or that of the evaluation.
IntervalTime = Literal["step", "evaluation"]
A = TypeVar("A", np.ndarray, Array)

# PixelFlow's stage-wise guidance: shares of scale - 1 on its four stages.
RAMP = (0.0, 1 / 6, 2 / 3, 1.0)


class Branches(NamedTuple):
    """The fields that guidance combines, alone and in pairs.

    `both` evaluates (cond, null) in one doubled batch; `guide` (cond, weaker model)
    where a second model was given.
    """

    cond: Field
    both: Pair
    guide: Pair | None = None


@dataclasses.dataclass(frozen=True)
class Windowed:
    """The field `inside` where a time lies `within` a window, `outside` elsewhere.

    The time is that of `interval_time`. The other field is not computed where the
    decision is one for all images. `runs` takes it while tracing, where the times are
    known; a call, where they are not.
    """

    within: Callable[[Any], Any]
    inside: Field
    outside: Field
    interval_time: IntervalTime = "step"

    def is_inside(self, t: A, step: A) -> A:
        """Whether evaluations at `t`, in steps that began at `step`, lie inside."""
        return self.within({"step": step, "evaluation": t}[self.interval_time])

    def __call__(
        self,
        x: Float[Array, "b ..."],
        t: Float[Array, "*times"],
        step: Float[Array, "*times"],
    ) -> Float[Array, "b ..."]:
        """The velocity, decided by the value that the time has when the program runs.

        Where images stand at different times (adaptive steps) both are computed.
        """
        is_inside = self.is_inside(t, step)
        if jnp.ndim(is_inside) == 0:
            return jax.lax.cond(is_inside, self.inside, self.outside, x, t, step)
        inside, outside = self.inside(x, t, step), self.outside(x, t, step)
        return jnp.where(per_image(is_inside, x), inside, outside)


def runs(
    field: Field, t: Float[np.ndarray, " n"], step: Float[np.ndarray, " n"]
) -> list[tuple[slice, Field]]:
    """Evaluations at `t` [n], cut where a window opens or closes.

    They belong to the steps that began at `step` [n]. Every run of evaluations comes
    with the field that it follows, in which no decision is left; together they cover 0
    to n.
    """
    if not isinstance(field, Windowed):
        return [(slice(0, len(t)), field)]
    is_inside = field.is_inside(t, step)
    cuts = [0, *(np.flatnonzero(is_inside[1:] != is_inside[:-1]) + 1), len(t)]
    return [
        (slice(start, end), field.inside if is_inside[start] else field.outside)
        for start, end in itertools.pairwise(map(int, cuts))
    ]


class Guidance(Protocol):
    """Maps the branches of a stage to the field that the solver follows.

    Config nodes name this class as their base.
    """

    scale: float

    def __call__(
        self, branches: Branches, stage: int, scale: Array | None = None
    ) -> Field:
        """The guided field of stage number `stage`.

        `scale` takes the place of the stage's own where that is an argument of a
        program; whether it is 1 is decided by the own one.
        """
        ...

    def scale_of(self, stage: int) -> float:
        """The scale on stage number `stage`."""
        return self.scale

    def problems(self, num_stages: int) -> list[str]:
        """What is wrong with these fields for a path of that many stages."""
        ...

    def active(self, t: A, stage: int = 0) -> A:
        """Whether guidance acts at time `t` of stage number `stage`."""
        ...

    def guide_weights(self) -> tuple[str, str] | None:
        """Weights of the second model that it needs, and which average of them.

        None where it needs no second model.
        """
        return None


def stage_ramp(num_stages: int) -> tuple[float, ...]:
    """PixelFlow's stage-wise guidance for any number of stages.

    Shares of scale - 1: 0 on the first stage and 1 on the last, as many stages as there
    are read off the line through the published (0, 1/6, 2/3, 1). The official code
    looks the four values up by the stage's number, so that three stages never reach the
    full scale; ramp=(0, 1/6, 2/3) is that.
    """
    if num_stages == 1:
        return (1.0,)
    place = np.linspace(0, 1, num_stages)
    return tuple(np.interp(place, np.linspace(0, 1, len(RAMP)), RAMP).tolist())


@dataclasses.dataclass(kw_only=True)
class ClassifierFree(Guidance):
    """null + scale * (cond - null) inside the interval (low, high), cond outside.

    `interval` says which ends belong to it: "()" for neither (PixNerd), "(]" for the
    upper one (PixelGen's Euler and Heun), "[)" or "[]". Ends are compared in float32,
    with the time at which the step began, or with `interval_time` "evaluation" with
    each evaluation's own. The defaults guide everywhere. Outside the interval, and
    where the scale is 1, the null half is not computed. `ramp` holds the share of scale
    - 1 that each stage gets; empty stands for the full scale everywhere. `rescale` phi
    moves each guided velocity's standard deviation towards the conditional one's (0.7
    in PixelGen's variant). Sources: Ho & Salimans 2022; Kynkaanniemi et al. 2024;
    PixelFlow section 3.4; Lin et al. 2024 for `rescale`.
    """

    scale: Scale = 1.0
    low: Time = -np.inf
    high: Time = np.inf
    interval: Interval = "()"
    interval_time: IntervalTime = "step"
    ramp: tuple[Share, ...] = ()
    rescale: Share = 0.0

    def __call__(
        self, branches: Branches, stage: int, scale: Array | None = None
    ) -> Field:
        """The guided field of stage number `stage`."""
        refuse(self.problems(len(self.ramp) or 1))
        own = self.scale_of(stage)
        if own == 1:
            return branches.cond
        factor = own if scale is None else scale

        def guided(x: Array, t: Array, step: Array) -> Array:
            cond, null = branches.both(x, t, step)
            mixed = null + factor * (cond - null)
            return _rescaled(mixed, cond, self.rescale) if self.rescale else mixed

        return _inside(self, guided, branches.cond)

    def scale_of(self, stage: int) -> float:
        """The scale on stage number `stage`."""
        share = self.ramp[stage] if self.ramp else 1.0
        return 1 + (self.scale - 1) * share

    def problems(self, num_stages: int) -> list[str]:
        """What is wrong with these fields for a path of that many stages."""
        problems = _interval_problems(self)
        if len(self.ramp) not in (0, num_stages):
            problems.append(
                f"guidance.ramp={self.ramp} must hold {num_stages} shares, one for "
                "each stage of the path, or none"
            )
        return problems

    def active(self, t: A, stage: int = 0) -> A:
        """Whether the null half is computed at time `t` of stage number `stage`."""
        return _within(self, t) & (self.scale_of(stage) != 1)


@dataclasses.dataclass(kw_only=True)
class AutoGuidance(Guidance):
    """weak + scale * (main - weak) inside the interval, both under the condition.

    The weaker model comes from `weights`: a training run's folder (`ema` as for
    sampling) or a weights file, of the same data and prediction. Fields of the interval
    are those of `ClassifierFree`. Source: Karras et al. 2024.
    """

    scale: Scale = 1.0
    low: Time = -np.inf
    high: Time = np.inf
    interval: Interval = "()"
    interval_time: IntervalTime = "step"
    weights: Place = ""
    ema: Place = ""

    def __call__(
        self, branches: Branches, stage: int, scale: Array | None = None
    ) -> Field:
        """The guided field, the same on every stage."""
        refuse(self.problems(1))
        guide = branches.guide
        if guide is None:
            raise ValueError(
                "guidance: AutoGuidance needs a second model; name its run or weights "
                "file in guidance.weights."
            )
        if self.scale == 1:
            return branches.cond
        factor = self.scale if scale is None else scale

        def guided(x: Array, t: Array, step: Array) -> Array:
            main, weak = guide(x, t, step)
            return weak + factor * (main - weak)

        return _inside(self, guided, branches.cond)

    def problems(self, num_stages: int) -> list[str]:
        """What is wrong with these fields."""
        return _interval_problems(self)

    def guide_weights(self) -> tuple[str, str]:
        """The fields `weights` and `ema`."""
        return self.weights, self.ema

    def active(self, t: A, stage: int = 0) -> A:
        """Whether the second model is evaluated at time `t`."""
        return _within(self, t) & (self.scale != 1)


def _interval_problems(guidance: ClassifierFree | AutoGuidance) -> list[str]:
    times = get_args(IntervalTime)
    low, high = guidance.low, guidance.high
    holds_one = low == high and guidance.interval == "[]"  # the first step, say
    reversed_ends = (
        f"guidance.low={low} must be below guidance.high={high}: nothing is guided "
        "otherwise"
    )
    return [
        *values.field_problems(guidance, "guidance"),
        *([reversed_ends] if low >= high and not holds_one else []),
        *unknown("guidance.interval", guidance.interval, get_args(Interval)),
        *unknown("guidance.interval_time", guidance.interval_time, times),
    ]


def _within(guidance: ClassifierFree | AutoGuidance, t: A) -> A:
    """Whether time `t` lies inside the interval."""
    low, high = np.float32(guidance.low), np.float32(guidance.high)
    above = t >= low if guidance.interval.startswith("[") else t > low
    below = t <= high if guidance.interval.endswith("]") else t < high
    return above & below


def _inside(
    guidance: ClassifierFree | AutoGuidance, guided: Field, plain: Field
) -> Field:
    """`guided` inside the interval, `plain` outside."""
    if guidance.low == -np.inf and guidance.high == np.inf:
        return guided
    within = functools.partial(_within, guidance)
    # As programs of their own each is traced once, however many runs follow it.
    inside, outside = jax.jit(guided), jax.jit(plain)
    return Windowed(within, inside, outside, guidance.interval_time)


def _rescaled(
    guided: Float[Array, "b h w c"], cond: Float[Array, "b h w c"], phi: float
) -> Float[Array, "b h w c"]:
    """`guided`, each image's deviation moved a share `phi` towards `cond`'s."""

    def deviation(v: Array) -> Array:
        return jnp.std(v, axis=(1, 2, 3), ddof=1, keepdims=True)

    factor = deviation(cond) / (deviation(guided) + 1e-6)
    return guided * (phi * factor + (1 - phi))
