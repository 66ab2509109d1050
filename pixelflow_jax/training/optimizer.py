"""AdamW with warm-up, decay schedule and clipping, as one config node."""

import dataclasses
from typing import Literal, get_args

import jax
import optax

from pixelflow_jax.values import (
    Fraction,
    LearningRate,
    Natural,
    NonNegative,
    Rate,
    Share,
)

Schedule = Literal["constant", "cosine", "linear"]


@dataclasses.dataclass(kw_only=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with the papers' defaults.

    `warmup` steps climb linearly to `lr`; then `schedule` is "constant", or "cosine" or
    "linear" down to `final * lr` at the last step. `weight_decay` acts on matrices
    only. `clip` bounds the global gradient norm; 0 turns it off.
    """

    lr: LearningRate = 1e-4
    b1: Rate = 0.9
    b2: Rate = 0.999
    eps: Fraction = 1e-8
    weight_decay: NonNegative = 0.0
    clip: NonNegative = 0.0
    warmup: Natural = 0
    schedule: Schedule = "constant"
    final: Share = 0.0

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
        return problems

    def learning_rate(self, steps: int) -> optax.Schedule:
        """The learning rate of each step."""
        rest = max(steps - self.warmup, 1)
        after = {
            "constant": optax.constant_schedule(self.lr),
            "cosine": optax.cosine_decay_schedule(self.lr, rest, self.final),
            "linear": optax.linear_schedule(self.lr, self.final * self.lr, rest),
        }[self.schedule]
        if not self.warmup:
            return after
        climb = optax.linear_schedule(0.0, self.lr, self.warmup)
        return optax.join_schedules([climb, after], [self.warmup])

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


def _matrices(params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key == "kernel", params
    )
