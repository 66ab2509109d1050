"""Class labels as a condition."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pixelflow_jax.conditioning.drop import drop_problems
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.data.source import Source
from pixelflow_jax.models.interface import Condition, DenoiserConfig
from pixelflow_jax.values import Share


@dataclasses.dataclass(kw_only=True)
class ClassLabels(Conditioner):
    """Class labels; the model's class number `num_classes` means "no class".

    `drop` is the probability with which training replaces a label by the null class.
    """

    drop: Share = 0.1

    def encode(self, frozen_params: dict, batch: dict) -> Condition:
        """`batch["label"]`, int32 [b]."""
        return Condition(labels=batch["label"])

    def null(
        self,
        frozen_params: dict,
        cond: Condition,
        model: DenoiserConfig,
        batch: dict | None = None,
    ) -> Condition:
        """The null class for every image."""
        assert cond.labels is not None
        return Condition(labels=jnp.full_like(cond.labels, model.num_classes))

    def example(self, count: int) -> dict:
        """Labels [count]."""
        return {"label": jax.ShapeDtypeStruct((count,), jnp.int32)}

    def batch_problems(self, batch: dict, model: DenoiserConfig) -> list[str]:
        """Labels that the model has no class for, which an embedding would not see."""
        labels = batch["label"].tolist()
        return [
            f"A batch of the data set holds labels the model has no class for: "
            f"{problem}. Mend the labels, or raise --config.model.num_classes."
            for problem in label_problems(labels, model.num_classes)
        ]

    def data_problems(self, source: Source, model: DenoiserConfig) -> list[str]:
        """Where the data have other classes than the model."""
        classes = len(source.class_names)
        if classes == model.num_classes:
            return []
        return [
            f"The data set has {classes} classes but model.num_classes="
            f"{model.num_classes}: set --config.model.num_classes={classes}."
        ]

    def problems(self, model: DenoiserConfig) -> list[str]:
        """What is wrong with these fields for that model."""
        problems = drop_problems(self.drop)
        if model.num_classes < 1:
            problems.append(
                "conditioner ClassLabels needs model.num_classes of at least 1; a "
                "model of text takes conditioner Text"
            )
        return problems


def label_problems(labels: Sequence[int], num_classes: int) -> list[str]:
    """Which labels lie outside [0, num_classes), as a message; empty if none."""
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if not wrong:
        return []
    return [
        f"labels {wrong[:10]} are out of range: this model knows classes 0 to "
        f"{num_classes - 1}"
    ]
