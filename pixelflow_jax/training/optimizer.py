"""AdamW with warm-up, decay schedule and clipping, as one config node."""

import dataclasses
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jax import Array

from pixelflow_jax.values import (
    Count,
    Decay,
    Fraction,
    LearningRate,
    Natural,
    NonNegative,
    Rate,
    Share,
)

Schedule = Literal["constant", "cosine", "linear"]
WARMUP_SHARE = 10  # a warm-up that must shrink takes this part of the steps


@dataclasses.dataclass(kw_only=True)
class Extension:
    """Another length of a run that had begun: from `step` on, another learning rate.

    Until then the run was to take `planned` steps. "constant" keeps the learning rate
    of `step` to the end. "restart" begins the whole schedule anew, for the steps that
    are left (Loshchilov & Hutter 2017, SGDR); a warm-up that would take all of them
    takes a tenth.
    """

    step: Natural = 0
    planned: Count = 1
    kind: Literal["constant", "restart"] = "restart"


@dataclasses.dataclass(kw_only=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with the papers' defaults.

    `warmup` steps climb linearly to `lr`; then `schedule` is "constant", or "cosine" or
    "linear" down to `final * lr` at the last step. `weight_decay` acts on matrices
    only. `clip` bounds the global gradient norm; 0 turns it off. `extended` holds what
    happened to the schedule of a run whose number of steps was changed on the way
    (`pixelflow train --extend`), in order.
    """

    lr: LearningRate = 1e-4
    b1: Rate = 0.9
    b2: Rate = 0.999
    eps: Fraction = 1e-8
    weight_decay: Decay = 0.0
    clip: NonNegative = 0.0
    warmup: Natural = 0
    schedule: Schedule = "constant"
    final: Share = 0.0
    extended: tuple[Extension, ...] = ()

    def problems(self, steps: int) -> list[str]:
        """What is wrong with these fields for a run of `steps`."""
        problems = []
        if self.schedule not in get_args(Schedule):
            problems.append(
                'optimizer.schedule must be "constant", "cosine" or "linear", not '
                f"{self.schedule!r}"
            )
        if self.lr <= 0 or self.clip < 0 or self.weight_decay < 0:
            problems.append("optimizer.lr must be positive, clip and weight_decay >= 0")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1 and self.eps > 0):
            problems.append("optimizer.b1 and b2 must lie in [0, 1), eps be positive")
        if not 0 <= self.final <= 1:
            problems.append("optimizer.final is a share of lr: it must lie in [0, 1]")
        if not 0 <= self.warmup <= steps:
            problems.append(
                f"optimizer.warmup={self.warmup} must lie in 0..steps={steps}"
            )
        begins = [0, *(one.step for one in self.extended), steps]
        if begins != sorted(begins):
            problems.append(
                f"optimizer.extended: its steps {begins[1:-1]} must rise to "
                f"steps={steps} at most"
            )
        return problems

    @property
    def depends_on_steps(self) -> bool:
        """Whether another number of steps changes the learning rate from now on."""
        last = self.extended[-1].kind if self.extended else "restart"
        return self.schedule != "constant" and last != "constant"

    def learning_rate(self, steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        planned = [*(one.planned for one in self.extended), steps]
        parts, begins = [self._schedule(planned[0], self.warmup)], [0]
        for one, end in zip(self.extended, planned[1:], strict=True):
            left = end - one.step
            following = self._schedule(left, shrunk_warmup(self.warmup, left))
            if one.kind == "constant":
                reached = parts[-1](one.step - begins[-1])
                following = optax.constant_schedule(float(jnp.asarray(reached)))
            parts.append(following)
            begins.append(one.step)
        return optax.join_schedules(parts, begins[1:]) if begins[1:] else parts[0]

    def _schedule(self, steps: int, warmup: int) -> optax.Schedule:
        """Warm-up and schedule, once, over so many steps."""
        rest = max(steps - warmup, 1)
        after = {
            "constant": optax.constant_schedule(self.lr),
            "cosine": optax.cosine_decay_schedule(self.lr, rest, self.final),
            "linear": optax.linear_schedule(self.lr, self.final * self.lr, rest),
        }[self.schedule]
        if not warmup:
            return after
        climb = optax.linear_schedule(0.0, self.lr, warmup)
        return optax.join_schedules([climb, after], [warmup])

    def build(self, steps: int) -> optax.GradientTransformation:
        """The gradient transformation of a run of `steps`."""
        adam = optax.adamw(
            self.learning_rate(steps),
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=_matrices,
        )
        if not self.clip:
            return adam
        return optax.chain(optax.clip_by_global_norm(self.clip), adam)

    def last_update(
        self, opt_state: optax.OptState, params: dict, steps: int
    ) -> dict[str, Any]:
        """What the last step added to parameters, from what it left behind.

        Adam's moments hold it: neither gradients nor earlier parameters are needed.
        `params` are those after the step, at least one, of a run of `steps`.
        """
        is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
        (adam,) = filter(is_adam, jax.tree.leaves(opt_state, is_leaf=is_adam))
        lr = jnp.asarray(self.learning_rate(steps)(adam.count - 1), jnp.float32)
        first, second = 1 - self.b1**adam.count, 1 - self.b2**adam.count

        def one(mean: Array, square: Array, after: Array, decayed: bool) -> Array:
            step = lr * (mean / first) / (jnp.sqrt(square / second) + self.eps)
            shrunk = lr * self.weight_decay * decayed
            # after = before * (1 - shrunk) - step
            return -(step + shrunk * after) / (1 - shrunk)

        return jax.tree.map(one, adam.mu, adam.nu, params, _matrices(params))


def shrunk_warmup(warmup: int, steps: int) -> int:
    """A warm-up, or a tenth of the steps where it would take all of them."""
    return warmup if warmup < steps else steps // WARMUP_SHARE


def _matrices(params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )
