"""From a batch to the condition of the network, the null condition, and dropping."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.flow.path import per_image
from pixelflow_jax.models.base import Cond, DenoiserConfig


class Conditioner(Protocol):
    """Turns batches into conditions."""

    drop: float

    def encode(self, frozen: dict, batch: dict) -> Cond:
        """The condition of a batch; `frozen` holds parameters of frozen encoders."""

    def null(self, cond: Cond, model: DenoiserConfig) -> Cond:
        """The unconditional twin of `cond`."""


@dataclasses.dataclass(kw_only=True)
class ClassLabels:
    """Class labels; the model's class number `num_classes` means "no class".

    `drop` is the probability with which training replaces a label by the null class.
    """

    drop: float = 0.1

    def encode(self, frozen: dict, batch: dict) -> Cond:
        """`batch["label"]`, int32 [b]."""
        return Cond(labels=batch["label"])

    def null(self, cond: Cond, model: DenoiserConfig) -> Cond:
        """The null class for every image."""
        return Cond(labels=jnp.full_like(cond.labels, model.num_classes))


def drop(draw: Array, cond: Cond, null: Cond, rate: float) -> Cond:
    """`null` where the uniform `draw` [b] lies below `rate`, `cond` elsewhere."""
    dropped = draw < rate
    return jax.tree.map(lambda c, n: jnp.where(per_image(dropped, c), n, c), cond, null)


def label_problems(labels: list[int], num_classes: int) -> list[str]:
    """Which labels lie outside [0, num_classes), as a message; empty if none."""
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if not wrong:
        return []
    return [
        f"labels {wrong[:10]} are out of range: this model knows classes 0 to "
        f"{num_classes - 1}"
    ]
