"""Text as a condition, through a frozen encoder or its stored features."""

import dataclasses

import jax
import jax.numpy as jnp

from pixelflow_jax.conditioning.drop import drop_problems
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.config_io import differences
from pixelflow_jax.data.features import Features
from pixelflow_jax.data.plan import CaptionEncoder
from pixelflow_jax.data.shards import ShardSource
from pixelflow_jax.data.source import Source, spread_captions
from pixelflow_jax.encoders.bert import Bert
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.encoders.t5 import T5
from pixelflow_jax.models.interface import Condition, DenoiserConfig, TextSpec
from pixelflow_jax.values import Place, Share, Width

TextEncoder = T5 | Qwen3 | Bert
PROBED = 20  # images among which captions are looked for


@dataclasses.dataclass(kw_only=True)
class Text(Conditioner):
    """Text through a frozen encoder.

    A batch holds "tokens" int32 [b, l] and "mask" bool [b, l], l at most `length`, or
    exactly that for models of a fixed length. Whether a model reads padding is a fact
    of its own (`model.condition`). The null condition, with which training replaces a
    text with probability `drop`, is the empty text as the encoder reads it: an
    end-of-sequence token alone, or nothing but padding.

    `features` names shards whose captions went through the encoder ahead of time (see
    `data/features.py`): batches then hold "text" and "mask", and the encoder itself is
    not loaded.
    """

    encoder: TextEncoder = dataclasses.field(default_factory=T5)
    length: Width = 512
    drop: Share = 0.1
    features: Place = ""

    def caption_encoder(self) -> CaptionEncoder:
        """The encoder's tokenizer, or the stored features."""
        if self.features:
            return Features(self.features)
        return self.encoder.reader(self.length)

    def for_prompts(self) -> "Text":
        """Text through the encoder itself: prompts have no stored features."""
        return dataclasses.replace(self, features="")

    def with_encoder_files(self, weights: str, tokenizer: str) -> "Text":
        """The conditioner with other files of its encoder; "" leaves one as it is."""
        encoder = dataclasses.replace(
            self.encoder,
            weights=weights or self.encoder.weights,
            tokenizer=tokenizer or self.encoder.tokenizer,
        )
        return dataclasses.replace(self, encoder=encoder)

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
            negative = {name: batch[f"negative_{name}"] for name in names}
            return self.encode(frozen_params, negative)
        assert cond.text is not None
        b, length, _ = cond.text.shape
        if self.features:
            empty = {name: a[None] for name, a in frozen_params["text"].items()}
        else:
            tokens, mask = (jnp.asarray(a)[None] for a in self.encoder.empty(length))
            empty = {"tokens": tokens, "mask": mask}
        null = self.encode(frozen_params, empty)
        return jax.tree.map(lambda a: jnp.broadcast_to(a, (b, *a.shape[1:])), null)

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
        if not any(spread_captions(source, PROBED)):
            return [
                "The data set holds no captions, which conditioner Text reads: prepare "
                "captioned data, or train a model of classes."
            ]
        if self.features:
            return self._feature_problems(Features(self.features), source, model)
        self.encoder.reader(self.length).check()
        return []

    def _feature_problems(
        self, stored: Features, source: Source, model: DenoiserConfig
    ) -> list[str]:
        name = f"The features in {stored.folder}"
        problems = []
        for what, theirs, ours in (
            ("encoder", stored.identity, self.encoder.identity()),
            ("length", stored.length, self.length),
        ):
            problems += [
                f"{name} are of another {what}: they have {old!r} and the config has "
                f"{new!r} in {path or what}."
                for path, (old, new) in differences(theirs, ours).items()
            ]
        if reads_padding(model) and not stored.padding:
            problems.append(
                f"{name} leave padding out, which {type(model).__name__} reads: set "
                "model.mask_text, or prepare them with this config."
            )
        if isinstance(source, ShardSource):
            ours = {f"train/{file}": n for file, n in source.shards.items()}
            train = {k: n for k, n in stored.shards.items() if k.startswith("train/")}
            if train != ours:
                problems.append(
                    f"{name} are of other shards: they have {len(train)} with "
                    f"{sum(train.values())} images, the data {len(ours)} with "
                    f"{sum(ours.values())}. Prepare them for these shards."
                )
        return problems

    def problems(self, model: DenoiserConfig) -> list[str]:
        """What is wrong with these fields for that model."""
        problems = [*drop_problems(self.drop), *self.encoder.problems()]
        if self.length < 1:
            problems.append("conditioner.length must be at least 1")
        spec = model.condition
        if not isinstance(spec, TextSpec):
            return [
                *problems,
                f"{type(model).__name__} reads no text: choose a model of text, or "
                "conditioner ClassLabels",
            ]
        if not problems and spec.width != self.encoder.width:
            problems.append(
                f"model.text_width={spec.width} must be the width of the encoder's "
                f"states, {self.encoder.width}"
            )
        if spec.length not in (None, self.length):
            problems.append(
                f"model.text_length={spec.length} must be "
                f"conditioner.length={self.length}"
            )
        return problems


def reads_padding(model: DenoiserConfig) -> bool:
    """Whether a model's output depends on the states of a text's padding."""
    spec = model.condition
    return isinstance(spec, TextSpec) and spec.reads_padding
