"""What turns a batch into what a network is conditioned on."""

from typing import Protocol

from jax import Array

from pixelflow_jax.conditioning.drop import drop_parts
from pixelflow_jax.data.plan import CaptionEncoder
from pixelflow_jax.data.source import Source
from pixelflow_jax.errors import PromptError
from pixelflow_jax.models.interface import Condition, DenoiserConfig


class Conditioner(Protocol):
    """Turns batches into conditions: a config node, which names this class as its base.

    `drop` is the probability with which training replaces a condition by the null
    condition. `frozen_params` are the parameters of what it loads, by name, perhaps
    among others.
    """

    drop: float

    @property
    def content(self) -> "Conditioner":
        """What makes all of the condition but the grounding: itself, for most."""
        return self

    def encode(self, frozen_params: dict, batch: dict) -> Condition:
        """The condition of a batch."""
        ...

    def null(
        self,
        frozen_params: dict,
        cond: Condition,
        model: DenoiserConfig,
        batch: dict | None = None,
    ) -> Condition:
        """What `cond` is without its parts, or with what `batch` names in their place.

        Every part's null is whole, so that one may be exchanged without the others
        (`conditioning.drop`).
        """
        ...

    def example(self, count: int) -> dict:
        """What `encode` reads of a batch of `count`, as shapes."""
        ...

    def problems(self, model: DenoiserConfig) -> list[str]:
        """What is wrong with these fields for that model."""
        ...

    def drop_rates(self) -> tuple[float, ...]:
        """The rates at which parts are dropped, in the order of `drop.PARTS`."""
        return (self.drop,)

    def dropped(self, keys: Array, cond: Condition, null: Condition) -> Condition:
        """`cond` with parts of `null` in the images that `keys` [b] choose."""
        return drop_parts(keys, cond, null, self.drop_rates())

    def for_prompts(self) -> "Conditioner":
        """The conditioner of prompts, where captions were read in another way."""
        return self

    def with_encoder_files(self, weights: str, tokenizer: str) -> "Conditioner":
        """The conditioner with other files of its encoder; "" leaves one as it is.

        Raises PromptError where it has no encoder.
        """
        raise PromptError(
            "This model draws classes and has no text encoder: leave text_encoder and "
            "tokenizer away."
        )

    def load(self) -> dict:
        """Parameters of frozen encoders, by name; reads their files."""
        return {}

    def shapes(self) -> dict:
        """The same as shapes; reads nothing."""
        return {}

    def caption_encoder(self) -> CaptionEncoder | None:
        """What turns captions into entries of a batch; None if none are read."""
        return None

    def batch_problems(self, batch: dict, model: DenoiserConfig) -> list[str]:
        """Why that model cannot learn from a batch, on the host."""
        return []

    def data_problems(self, source: Source, model: DenoiserConfig) -> list[str]:
        """Why that model cannot learn from `source`; may read files."""
        return []
