"""Runs so small that they can be started, killed and compared many times on a CPU."""

import dataclasses

from pixelflow_jax.config_files import load_config
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW

SIZE = 16
SMALL = {
    "num_classes": 3,
    "width": 32,
    "heads": 4,
    "depth": 2,
    "feature_layer": 1,
    "stack": StackConfig(remat="none"),
}


def pixnerd() -> Experiment:
    """Two blocks on four tokens."""
    field = NeuralField(width=8, depth=1)
    return small("emoji:demo", model=PixNerd(patch=8, decoder=field, **SMALL))


def pixelflow() -> Experiment:
    """Two stages, 16 and 8 pixels."""
    return small("emoji:demo", model=PixelFlow(**SMALL), path=Pyramid(num_stages=2))


def pixelgen() -> Experiment:
    """A network that predicts the clean image."""
    model = PixelGen(patch=8, image_size=SIZE, bottleneck=8, context_length=0, **SMALL)
    return small("emoji:demo", model=model, prediction=PredictClean())


def text() -> Experiment:
    """The text model of the emoji, smaller, with its encoder."""
    config = load_config("emoji_t2i:cpu")
    model = dataclasses.replace(config.model, width=32, heads=4, depth=2)
    return small("emoji_t2i:cpu", model=model, size=config.data.image_size)


MODELS = {
    "PixNerd": pixnerd,
    "PixelFlow": pixelflow,
    "PixelGen": pixelgen,
    "PixNerdText": text,
}


def small(name: str, size: int = SIZE, **fields) -> Experiment:
    """A config as it is, but for its size, its speed and its precision."""
    config = load_config(name)
    data = dataclasses.replace(config.data, image_size=size, threads=2)
    sampling = dataclasses.replace(config.sampling, grid=Grid(steps=3))
    return dataclasses.replace(
        config,
        name="tiny",
        batch_size=16,
        data=data,
        sampling=sampling,
        optimizer=AdamW(lr=1e-3, warmup=2, clip=0.1, weight_decay=0.01),
        ema=(0.9,),
        precision=Precision(compute="float32"),
        checkpoint=Checkpointing(every=10**6),
        log=Logging(every=10, preview_every=0),
        **fields,
    )
