"""From a batch to the condition of the network, the null condition, and dropping."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from pixelflow_jax.config_io import differences
from pixelflow_jax.data.features import Features
from pixelflow_jax.data.plan import CaptionEncoder
from pixelflow_jax.data.shards import ShardSource
from pixelflow_jax.data.source import Source, spread_captions
from pixelflow_jax.encoders.bert import Bert
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.encoders.t5 import T5
from pixelflow_jax.flow.path import per_image
from pixelflow_jax.models.interface import Condition, DenoiserConfig
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd_text import PixNerdText

LOOKED_AT = 20  # images in which to look for captions

# The models that read texts of one length only.
FIXED_LENGTH = (PixNerdText, PixelGenText)


class Conditioner(Protocol):
    """Turns batches into conditions; `frozen_params` are the parameters of what it loads."""

    drop: float

    def encode(self, frozen_params: dict, batch: dict) -> Condition:
        """The condition of a batch."""

    def null(
        self,
        frozen_params: dict,
        cond: Condition,
        model: DenoiserConfig,
        batch: dict | None = None,
    ) -> Condition:
        """The unconditional twin of `cond`, or what `batch` names in its place."""

    def example(self, count: int) -> dict:
        """What `encode` reads of a batch of `count`, as shapes."""

    def load(self) -> dict:
        """Parameters of frozen encoders, by name; reads their files."""

    def shapes(self) -> dict:
        """The same as shapes; reads nothing."""

    def reader(self) -> CaptionEncoder | None:
        """What turns captions into entries of a batch; None if none are read."""

    def problems(self, model: DenoiserConfig) -> list[str]:
        """What is wrong with these fields for that model."""

    def data_problems(self, source: Source, model: DenoiserConfig) -> list[str]:
        """Why that model cannot learn from `source`; may read files."""


@dataclasses.dataclass(kw_only=True)
class ClassLabels:
    """Class labels; the model's class number `num_classes` means "no class".

    `drop` is the probability with which training replaces a label by the null class.
    """

    drop: float = 0.1

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
        return Condition(labels=jnp.full_like(cond.labels, model.num_classes))

    def example(self, count: int) -> dict:
        """Labels [count]."""
        return {"label": jax.ShapeDtypeStruct((count,), jnp.int32)}

    def load(self) -> dict:
        """Nothing."""
        return {}

    def shapes(self) -> dict:
        """Nothing."""
        return {}

    def reader(self) -> None:
        """Nothing: labels need no reading."""
        return None

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
        found = drop_problems(self.drop)
        if model.num_classes < 1:
            found.append(
                "conditioner ClassLabels needs model.num_classes of at least 1; a "
                "model of text takes conditioner Text"
            )
        return found


@dataclasses.dataclass(kw_only=True)
class Text:
    """Text through a frozen encoder.

    A batch holds "tokens" int32 [b, l] and "mask" bool [b, l], l at most `length`, or
    exactly that for PixNerdText and PixelGenText. PixelFlow does not attend to padding;
    those two do, unless `model.mask_text` is set. The null condition, with which
    training replaces a text with probability `drop`, is the empty text as the encoder
    reads it: an end-of-sequence token alone, or nothing but padding.

    `features` names shards whose captions went through the encoder ahead of time (see
    `data/features.py`): batches then hold "text" and "mask", and the encoder itself is
    not loaded.
    """

    encoder: T5 | Qwen3 | Bert = dataclasses.field(default_factory=T5)
    length: int = 512
    drop: float = 0.1
    features: str = ""

    def reader(self) -> CaptionEncoder:
        """The encoder's tokenizer, or the stored features."""
        if self.features:
            return Features(self.features)
        return self.encoder.reader(self.length)

    def encode(self, frozen_params: dict, batch: dict) -> Condition:
        """States [b, l, width] of the last layer, with their mask."""
        if self.features:
            return Condition(text=batch["text"].astype(jnp.float32), mask=batch["mask"])
        tokens, mask = batch["tokens"], batch["mask"]
        if tokens.shape[1] > self.length:
            raise ValueError(
                f"A text of {tokens.shape[1]} tokens is longer than conditioner.length="
                f"{self.length}: shorten it, or raise conditioner.length."
            )
        return Condition(
            text=self.encoder.states(frozen_params["text"], tokens, mask), mask=mask
        )

    def null(
        self,
        frozen_params: dict,
        cond: Condition,
        model: DenoiserConfig,
        batch: dict | None = None,
    ) -> Condition:
        """The empty text for every image, or the negative one that `batch` gives it.

        That is "negative_tokens" and "negative_mask", of the shape of the texts.
        """
        if batch and "negative_tokens" in batch:
            names = ("tokens", "mask")
            return self.encode(
                frozen_params, {n: batch[f"negative_{n}"] for n in names}
            )
        b, length, _ = cond.text.shape
        if self.features:
            stored = frozen_params["text"]
            states = stored["text"][None].astype(jnp.float32)
            one = Condition(text=states, mask=stored["mask"][None])
        else:
            tokens, mask = (jnp.asarray(a)[None] for a in self.encoder.empty(length))
            states = self.encoder.states(frozen_params["text"], tokens, mask)
            one = Condition(text=states, mask=mask)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (b, *a.shape[1:])), one)

    def example(self, count: int) -> dict:
        """Tokens, or states, and mask [count, length]."""
        shape = (count, self.length)
        if self.features:
            return self._stored_shapes(count)
        return {
            "tokens": jax.ShapeDtypeStruct(shape, jnp.int32),
            "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
        }

    def load(self) -> dict:
        """The encoder's parameters; WeightsError where its weights are absent.

        With stored features the null text's; DataError where they are absent.
        """
        if self.features:
            states, mask = Features(self.features).empty()
            return {"text": {"text": states, "mask": mask}}
        return {"text": self.encoder.load()}

    def shapes(self) -> dict:
        """What `load` returns, as shapes."""
        if self.features:
            return {"text": self._stored_shapes()}
        return {"text": self.encoder.shapes()}

    def _stored_shapes(self, *count: int) -> dict:
        shape = (*count, self.length)
        return {
            "text": jax.ShapeDtypeStruct((*shape, self.encoder.width), jnp.bfloat16),
            "mask": jax.ShapeDtypeStruct(shape, jnp.bool_),
        }

    def data_problems(self, source: Source, model: DenoiserConfig) -> list[str]:
        """Where the data have no captions, or their features are of another encoder.

        Raises what checking the tokenizer raises.
        """
        if not any(spread_captions(source, LOOKED_AT)):
            return [
                "The data set holds no captions, which conditioner Text reads: prepare "
                "captioned data, or train a model of classes."
            ]
        reader = self.reader()
        if not self.features:
            reader.check()
            return []
        return self._feature_problems(reader, source, model)

    def _feature_problems(
        self, stored: Features, source: Source, model: DenoiserConfig
    ) -> list[str]:
        name = f"The features in {stored.folder}"
        found = []
        for what, theirs, ours in (
            ("encoder", stored.identity, self.encoder.identity()),
            ("length", stored.length, self.length),
        ):
            found += [
                f"{name} are of another {what}: they have {old!r} and the config has "
                f"{new!r} in {path or what}."
                for path, (old, new) in differences(theirs, ours).items()
            ]
        if reads_padding(model) and not stored.padding:
            found.append(
                f"{name} leave padding out, which {type(model).__name__} reads: set "
                "model.mask_text, or prepare them with this config."
            )
        if isinstance(source, ShardSource):
            ours = {f"train/{file}": n for file, n in source.shards.items()}
            train = {k: n for k, n in stored.shards.items() if k.startswith("train/")}
            if train != ours:
                found.append(
                    f"{name} are of other shards: they have {len(train)} with "
                    f"{sum(train.values())} images, the data {len(ours)} with "
                    f"{sum(ours.values())}. Prepare them for these shards."
                )
        return found

    def problems(self, model: DenoiserConfig) -> list[str]:
        """What is wrong with these fields for that model."""
        found = [*drop_problems(self.drop), *self.encoder.problems()]
        if self.length < 1:
            found.append("conditioner.length must be at least 1")
        if not isinstance(model, (PixelFlow, *FIXED_LENGTH)):
            return [
                *found,
                f"{type(model).__name__} reads no text; PixelFlow, PixNerdText and "
                "PixelGenText do",
            ]
        if not found and model.text_width != self.encoder.width:
            found.append(
                f"model.text_width={model.text_width} must be the width of the "
                f"encoder's states, {self.encoder.width}"
            )
        if isinstance(model, FIXED_LENGTH) and model.text_length != self.length:
            found.append(
                f"model.text_length={model.text_length} must be "
                f"conditioner.length={self.length}"
            )
        return found


def reads_padding(model: DenoiserConfig) -> bool:
    """Whether a model's output depends on the states of a text's padding."""
    return isinstance(model, FIXED_LENGTH) and not model.mask_text


def drop_problems(rate: float) -> list[str]:
    """A message where the rate of dropping is none."""
    return [] if 0 <= rate <= 1 else ["conditioner.drop must lie in [0, 1]"]


def drop(draw: Array, cond: Condition, null: Condition, rate: float) -> Condition:
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
