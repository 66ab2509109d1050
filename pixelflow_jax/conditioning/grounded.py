"""Classes or text beside a look at the noisy image through a frozen encoder."""

import dataclasses
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.conditioning.drop import CONTENT, GROUNDING, drop, exchange
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.conditioning.text import Text, TextEncoder
from pixelflow_jax.data.plan import CaptionEncoder
from pixelflow_jax.data.source import Source
from pixelflow_jax.encoders.t5 import T5
from pixelflow_jax.models.interface import Condition, DenoiserConfig
from pixelflow_jax.values import Place, Share, Width

Together = Literal["independent", "coupled"]


class Grounded(Conditioner, Protocol):
    """A condition's `content`, and whether the denoiser looks at the image.

    Training drops the content with probability `drop` and the grounding with
    probability `grounding_drop`, independently, and both at once with probability
    `joint_drop`; or, with `together` "coupled", the grounding where the content is
    dropped and nowhere else. The null condition of guidance is without both.
    """

    grounding_drop: float
    joint_drop: float
    together: Together

    @property
    def content(self) -> Conditioner:
        """What turns batches into all of the condition but the grounding."""
        ...

    def encode(self, frozen_params: dict, batch: dict) -> Condition:
        """The content of a batch, all of whose images are looked at."""
        return _looked_at(self.content.encode(frozen_params, batch), True)

    def null(
        self,
        frozen_params: dict,
        cond: Condition,
        model: DenoiserConfig,
        batch: dict | None = None,
    ) -> Condition:
        """The content's null, without a look."""
        bare = cond._replace(grounding=None)
        null = self.content.null(frozen_params, bare, model, batch)
        return _looked_at(null, False)

    def drop_rates(self) -> tuple[float, ...]:
        """Those of content and grounding alone."""
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
        """The same by numbers in [0, 1), [b] for content, grounding and both."""
        if self.together == "coupled":
            return drop(content, cond, null, self.drop)
        draws, parts = (content, grounding), (CONTENT, GROUNDING)
        for draw, part, rate in zip(draws, parts, self.drop_rates(), strict=True):
            cond = drop(draw, cond, exchange(cond, null, part), rate)
        return drop(both, cond, null, self.joint_drop)

    def example(self, count: int) -> dict:
        """The content's."""
        return self.content.example(count)

    def load(self) -> dict:
        """The content's."""
        return self.content.load()

    def shapes(self) -> dict:
        """The content's."""
        return self.content.shapes()

    def caption_encoder(self) -> CaptionEncoder | None:
        """The content's."""
        return self.content.caption_encoder()

    def batch_problems(self, batch: dict, model: DenoiserConfig) -> list[str]:
        """The content's."""
        return self.content.batch_problems(batch, model)

    def data_problems(self, source: Source, model: DenoiserConfig) -> list[str]:
        """The content's."""
        return self.content.data_problems(source, model)

    def problems(self, model: DenoiserConfig) -> list[str]:
        """What is wrong with these fields for that model."""
        problems = self.content.problems(model)
        if not model.frozen_networks():
            problems.append(
                f"conditioner {type(self).__name__} needs a model that looks at its "
                "images through a frozen network (PixelDiT2); others take "
                f"{type(self.content).__name__}"
            )
        if self.together == "coupled" and self.joint_drop:
            problems.append(
                f"conditioner.joint_drop={self.joint_drop} must be 0 with together="
                '"coupled", where both always drop at once: raise conditioner.drop'
            )
        return problems


def _looked_at(cond: Condition, looks: bool) -> Condition:
    """The condition of images all of which, or none, are looked at."""
    count = len(jax.tree.leaves(cond)[0])
    return cond._replace(grounding=jnp.full(count, looks))


@dataclasses.dataclass(kw_only=True)
class GroundedLabels(Grounded):
    """Class labels, and whether the denoiser looks at the image (PixelDiT2).

    `drop` is the probability of dropping the class; see `Grounded` for the others.
    """

    drop: Share = 0.1
    grounding_drop: Share = 0.1
    joint_drop: Share = 0.0
    together: Together = "independent"

    @property
    def content(self) -> ClassLabels:
        """The labels."""
        return ClassLabels(drop=self.drop)


@dataclasses.dataclass(kw_only=True)
class GroundedText(Grounded):
    """Text through a frozen encoder, and whether the denoiser looks at the image.

    `encoder`, `length`, `drop` and `features` are those of `text.Text`; see `Grounded`
    for the others.
    """

    encoder: TextEncoder = dataclasses.field(default_factory=T5)
    length: Width = 512
    drop: Share = 0.1
    features: Place = ""
    grounding_drop: Share = 0.1
    joint_drop: Share = 0.0
    together: Together = "independent"

    @property
    def content(self) -> Text:
        """The text."""
        return Text(
            encoder=self.encoder,
            length=self.length,
            drop=self.drop,
            features=self.features,
        )

    def for_prompts(self) -> "GroundedText":
        """Text through the encoder itself: prompts have no stored features."""
        return dataclasses.replace(self, features="")

    def with_encoder_files(self, weights: str, tokenizer: str) -> "GroundedText":
        """The conditioner with other files of its encoder; "" leaves one as it is."""
        other = self.content.with_encoder_files(weights, tokenizer)
        return dataclasses.replace(self, encoder=other.encoder)
