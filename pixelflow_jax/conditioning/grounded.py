"""Class labels beside a look at the noisy image through a frozen encoder."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.conditioning.drop import CONTENT, GROUNDING, drop, exchange
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.data.source import Source
from pixelflow_jax.models.interface import Condition, DenoiserConfig
from pixelflow_jax.values import Share

Together = Literal["independent", "coupled"]


@dataclasses.dataclass(kw_only=True)
class GroundedLabels(Conditioner):
    """Class labels, and whether the denoiser looks at the image (PixelDiT2).

    Training drops the class with probability `drop` and the grounding with probability
    `grounding_drop`, independently, or with `together` "coupled" the grounding where
    the class is dropped; and both at once with probability `joint_drop`. The null
    condition of guidance is without both.
    """

    drop: Share = 0.1
    grounding_drop: Share = 0.1
    joint_drop: Share = 0.0
    together: Together = "independent"

    def encode(self, frozen_params: dict, batch: dict) -> Condition:
        """The labels of a batch, int32 [b], all of whose images are looked at."""
        labels = batch["label"]
        return Condition(labels=labels, grounding=jnp.ones(labels.shape, bool))

    def null(
        self,
        frozen_params: dict,
        cond: Condition,
        model: DenoiserConfig,
        batch: dict | None = None,
    ) -> Condition:
        """The null class, without a look."""
        null = self._labels.null(frozen_params, cond, model, batch)
        assert cond.labels is not None
        return null._replace(grounding=jnp.zeros(cond.labels.shape, bool))

    def drop_rates(self) -> tuple[float, ...]:
        """Those of class and grounding alone."""
        return self.drop, self.grounding_drop

    def dropped(self, keys: Array, cond: Condition, null: Condition) -> Condition:
        """`cond` with parts of `null` in the images that `keys` [b] choose."""
        draw = lambda key: jax.random.uniform(key, (3,))
        content, grounding, both = jnp.moveaxis(jax.vmap(draw)(keys), -1, 0)
        return self.dropped_by(content, grounding, both, cond, null)

    def dropped_by(
        self,
        content: Array,
        grounding: Array,
        both: Array,
        cond: Condition,
        null: Condition,
    ) -> Condition:
        """The same by numbers in [0, 1), [b] for class, grounding and both."""
        if self.together == "coupled":
            cond = drop(content, cond, null, self.drop)
        else:
            rates = zip(
                (content, grounding),
                (CONTENT, GROUNDING),
                self.drop_rates(),
                strict=True,
            )
            for draw, part, rate in rates:
                cond = drop(draw, cond, exchange(cond, null, part), rate)
        return drop(both, cond, null, self.joint_drop)

    def example(self, count: int) -> dict:
        """Labels [count]."""
        return self._labels.example(count)

    def batch_problems(self, batch: dict, model: DenoiserConfig) -> list[str]:
        """Labels that the model has no class for."""
        return self._labels.batch_problems(batch, model)

    def data_problems(self, source: Source, model: DenoiserConfig) -> list[str]:
        """Where the data have other classes than the model."""
        return self._labels.data_problems(source, model)

    def problems(self, model: DenoiserConfig) -> list[str]:
        """What is wrong with these fields for that model."""
        problems = self._labels.problems(model)
        if not model.frozen_networks():
            problems.append(
                "conditioner GroundedLabels needs a model that looks at its images "
                "through a frozen network (PixelDiT2); others take ClassLabels"
            )
        return problems

    @property
    def _labels(self) -> ClassLabels:
        return ClassLabels(drop=self.drop)
