"""A text-to-image pipeline so small that compiling is what takes the time."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import pytest

from pixelflow_jax import Pipeline, build
from pixelflow_jax.conditioning.grounded import GroundedText
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.encoders.t5 import T5, T5Geometry
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Pyramid, Straight
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.models.pixeldit2_text import PixelDiT2Text
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd_text import PixNerdText, text_field
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import Geometry

EXACT = Precision(compute="float32", matmul="highest")
SIZE, LENGTH = 16, 6
LOAD = T5.load  # what `encoder_without_files` takes away
ENCODER = T5(
    geometry=T5Geometry(width=16, hidden=24, depth=1, heads=2, vocabulary=30),
    precision=EXACT,
)
WIDTHS = {"width": 32, "heads": 4, "depth": 2, "feature_layer": 1, "text_width": 16}
TEXTS = {"text_depth": 1, "text_length": LENGTH}
FIELD = dataclasses.replace(text_field(), width=8, depth=1)
EYES = DinoV2(
    geometry=Geometry(width=24, heads=3, depth=1, patch=4, grid=4), precision=EXACT
)
MODELS: dict[str, DenoiserConfig] = {
    "pixnerd": PixNerdText(patch=4, decoder=FIELD, **WIDTHS, **TEXTS),
    "canvas": PixNerdText(
        patch=4, canvas=(SIZE, SIZE), mask_text=True, decoder=FIELD, **WIDTHS, **TEXTS
    ),
    "pixelgen": PixelGenText(patch=4, image_size=SIZE, bottleneck=8, **WIDTHS, **TEXTS),
    "pixelflow": PixelFlow(num_classes=0, **WIDTHS),
    "pixeldit2": PixelDiT2Text(patch=4, encoder=EYES, **WIDTHS, **TEXTS),
}


class CaptionEncoder:
    """Letters as tokens: what stands in for a tokenizer, which is a file of others."""

    def __init__(self, length: int):
        self.length = length
        self.read: list[str] = []

    def check(self) -> None:
        """There is no file that could be wrong."""

    def __call__(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        self.read += texts
        tokens = np.zeros((len(texts), self.length), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, text in enumerate(texts):
            numbers = [2 + ord(letter) % 28 for letter in text[: self.length - 1]] + [1]
            tokens[row, : len(numbers)] = numbers
            mask[row, : len(numbers)] = True
        return {"tokens": tokens, "mask": mask}


def random(shapes: dict, seed: int = 0) -> dict:
    """Parameters of which none is zero, so large that values keep their size."""
    rng = np.random.default_rng(seed)

    def draw(a: jax.ShapeDtypeStruct) -> np.ndarray:
        size = a.shape[-2] ** -0.5 if len(a.shape) > 1 else 0.4
        return (size * rng.standard_normal(a.shape)).astype(a.dtype)

    return jax.tree.map(draw, shapes)


@contextlib.contextmanager
def encoder_without_files(vision: bool = True) -> Iterator[list[str]]:
    """T5 with random weights and letters as tokens; lists how often it is loaded.

    With `vision`, a DINOv2 has random weights, too.
    """
    loaded = []

    def load(self: T5, field: str = "") -> dict:
        loaded.append(self.weights)
        return random(self.shapes(), len(self.weights))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(T5, "load", load)
        if vision:
            patch.setattr(DinoV2, "load", lambda self, field: random(self.shapes(), 2))
        patch.setattr(T5, "reader", lambda self, n: CaptionEncoder(n), raising=False)
        yield loaded


def experiment(model: DenoiserConfig) -> Experiment:
    """A text model with two steps of guided sampling."""
    cascade = isinstance(model, PixelFlow)
    reads = GroundedText if model.frozen_networks() else Text
    config = Experiment(
        name="text",
        model=model,
        path=Pyramid(num_stages=2) if cascade else Straight(),
        conditioner=reads(encoder=dataclasses.replace(ENCODER), length=LENGTH),
        precision=EXACT,
        batch_size=8,
        ema=(),
        sampling=Sampling(
            grid=Grid(steps=2), guidance=ClassifierFree(scale=3.0), batch_size=4
        ),
    )
    config.data.image_size = SIZE
    return config


def pipeline(name: str) -> Pipeline:
    """One of `MODELS` with random weights."""
    config = experiment(MODELS[name])
    params = random(build.network(config).shapes(), 1)
    return Pipeline(config=config, params=params, class_names=(), step=0)
