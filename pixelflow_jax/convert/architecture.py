"""What a family's file says of each of its official networks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.convert.sizes import Fields, InferredConfig, Sizes
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.sampling import presets
from pixelflow_jax.tensors.lazy import LazyTensor
from pixelflow_jax.tensors.mapping import Row


@dataclasses.dataclass(frozen=True)
class Resized:
    """A model for images of another size, its tensors, and what a user should know."""

    model: DenoiserConfig
    tensors: Mapping[str, LazyTensor]
    notes: tuple[str, ...] = ()


def keep_size(
    model: DenoiserConfig, tensors: Mapping[str, LazyTensor], size: int
) -> Resized:
    """The same, for models that know no size."""
    return Resized(model, tensors)


def no_prediction(model: DenoiserConfig, tensors: Mapping[str, LazyTensor]) -> None:
    """Nothing: the weights say nothing of what they predict."""


def no_buffers(model: DenoiserConfig, prediction: Any) -> dict[str, np.ndarray]:
    """Nothing."""
    return {}


def one_patch(model: DenoiserConfig) -> tuple[int, int]:
    """The smallest images."""
    return model.patch, model.patch


def with_text(experiment: Experiment, length: int) -> Experiment:
    """PixNerd's and PixelGen's text encoder, and 25 steps of Adams-Bashforth.

    `length` is that of the texts in tokens.
    """
    return dataclasses.replace(
        experiment,
        conditioner=Text(encoder=Qwen3(), length=length),
        sampling=presets.adams25_cfg4(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """One official network. Its functions take a config of the class of `model`.

    `families` have it; `by_prefix` names the one whose training program puts a prefix
    before all names. `model` is the config with its defaults. `marks` are tensors of
    its first block and its ends, which only together are its own. `infer` reads the
    config off sizes, next to the given fields; `table` maps names. `some_size` is a
    size of images that every sound config takes.

    `image_size` is the size the weights were released for; `resize` makes a model and
    its tensors fit another; `released` adds to an experiment all that the released
    weights of a family are sampled with at that size.

    Where a file also says what its network predicts, `prediction` reads it from the
    tensors, and a row of the table may be one of that prediction's constants. `buffers`
    are tensors that follow from model and prediction: they are compared, and written.
    """

    families: tuple[str, ...]
    model: DenoiserConfig
    marks: tuple[str, ...]
    infer: Callable[[Sizes, Fields], InferredConfig]
    table: Callable[[Any], list[Row]]
    image_size: Callable[[Any], int]
    released: Callable[[Experiment, Any, int, str], Experiment]
    resize: Callable[[Any, Mapping[str, LazyTensor], int], Resized] = keep_size
    prediction: Callable[[Any, Mapping[str, LazyTensor]], Prediction | None] = (
        no_prediction
    )
    buffers: Callable[[Any, Any], dict[str, np.ndarray]] = no_buffers
    some_size: Callable[[Any], tuple[int, int]] = one_patch
    by_prefix: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def likeness(self, keys: Mapping[str, object]) -> float:
        """The share of the marks that is among some names."""
        return sum(mark in keys for mark in self.marks) / len(self.marks)

    def family(self, place: str) -> str:
        """The family of weights that lie at `place`, a dictionary and a prefix."""
        named = (f for prefix, f in self.by_prefix.items() if prefix in place)
        return next(named, self.families[0])
