"""Your own images: a folder with a sub-folder a class, or without any.

pixelflow train --config=images --config.data.source.path=my_images --workdir=runs/mine
pixelflow train --config=images:256 --config.data.source.path=my_images \\
    --workdir=runs/mine256

| variant | images | params, by the number of images | made for            |
|---------|--------|---------------------------------|---------------------|
| small   | 64     | 4.5M, 10M from 5,000 on         | a laptop or one GPU |
| 256     | 256    | 52M, 135M from 50,000 on        | one GPU or more     |

Classes are counted, and the model is chosen for the number of images and for
`data.image_size`, which may be changed: 16 x 16 tokens, as far as that goes. What is
set by hand stays. After ten steps the run says how long one takes.
"""

import dataclasses
import sys

from pixelflow_jax import distributed
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.source import Source
from pixelflow_jax.errors import DataError
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.solver import AdamsBashforth
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW

TOKENS = 16  # along each side
PATCHES = (4, 8, 16)
# From how many images on which width, heads and depth.
SMALL = {0: (192, 6, 6), 5_000: (256, 8, 8)}
LARGE = {0: (512, 8, 10), 50_000: (768, 12, 12)}
FEW = 1_000  # images below which a model repeats what it has seen
CHOSEN = ("patch", "width", "heads", "depth")  # fields that are chosen together


def denoiser(size: int, images: int, sizes: dict[int, tuple[int, int, int]]) -> PixNerd:
    """A PixNerd for so many images of a size."""
    width, heads, depth = sizes[max(least for least in sizes if least <= images)]
    return PixNerd(
        num_classes=1,
        patch=max(p for p in PATCHES if p <= max(size // TOKENS, PATCHES[0])),
        width=width,
        heads=heads,
        depth=depth,
        feature_layer=depth // 2,
        decoder=NeuralField(width=16 if sizes is SMALL else 32, depth=2),
        stack=StackConfig(remat="none", scan=sizes is not SMALL),
    )


def experiment(name: str, size: int, model: PixNerd, **fields) -> Experiment:
    """What all sizes have in common."""
    return Experiment(
        name=name,
        data=Data(source=ImageFolder(holdout=0.05), image_size=size, threads=4),
        model=model,
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.4),
        sampling=Sampling(
            solver=AdamsBashforth(order=2),
            grid=Grid(steps=20),
            guidance=ClassifierFree(scale=2.0, low=0.1, high=1.0),
        ),
        **fields,
    )


def small() -> Experiment:
    """64 px, for a laptop or one GPU."""
    return experiment(
        "images",
        64,
        denoiser(64, 0, SMALL),
        steps=10_000,
        batch_size=32,
        optimizer=AdamW(lr=1e-3, warmup=200, schedule="cosine", clip=1.0),
        ema=(0.998,),
        precision=Precision(compute="float32"),
        checkpoint=Checkpointing(every=500, keep=2),
        log=Logging(every=50, preview_every=500, preview_count=16),
    )


def large() -> Experiment:
    """256 px, for one GPU or more."""
    return experiment(
        "images256",
        256,
        denoiser(256, 0, LARGE),
        steps=100_000,
        batch_size=128,
        optimizer=AdamW(lr=2e-4, warmup=1_000, clip=1.0),
        ema=(0.9995,),
        checkpoint=Checkpointing(every=2_000, keep=2),
        log=Logging(every=100, preview_every=2_000, preview_count=16),
    )


VARIANTS = {"small": small, "256": large}


def get_config(variant: str = "small") -> Experiment:
    """The experiment of one of the two variants, its folder still to be named."""
    return choose_variant(variant, VARIANTS)


def finish(config: Experiment) -> Experiment:
    """The config with its classes counted and its model chosen, once a folder is named.

    Called when all fields are set; says what was found.
    """
    source = config.data.source
    if not isinstance(source, ImageFolder) or not source.path:
        return config
    data, images = _opened(config)
    sizes = LARGE if config.name == "images256" else SMALL
    usual = denoiser(256 if sizes is LARGE else 64, 0, sizes)
    model = config.model
    if all(getattr(model, name) == getattr(usual, name) for name in CHOSEN):
        own = denoiser(config.data.image_size, len(images), sizes)
        model = dataclasses.replace(own, num_classes=model.num_classes)
    if model.num_classes == usual.num_classes:
        model = dataclasses.replace(model, num_classes=len(images.class_names))
    if distributed.is_main():
        print(_found(source.path, images, data.image_size), file=sys.stderr)
    return dataclasses.replace(config, data=data, model=model)


def _opened(config: Experiment) -> tuple[Data, Source]:
    """The training images; without sub-folders all are of one class."""
    try:
        return config.data, config.data.open("train")
    except DataError as error:
        if "has no sub-folders" not in str(error):
            raise
    source = dataclasses.replace(config.data.source, labels=False)
    data = dataclasses.replace(config.data, source=source)
    return data, data.open("train")


def _found(path: str, images: Source, size: int) -> str:
    count, classes = len(images), len(images.class_names)
    text = f"{path}: {count:,} images to train on, of {classes} classes, at {size} px."
    if count < FEW:
        text += (
            f" With fewer than {FEW:,} a model learns them by heart: expect copies, "
            "and stop when previews are good."
        )
    return text
