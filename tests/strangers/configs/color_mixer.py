"""ColorMixer on pictures of a folder, with a perceptual term under an adaptive weight.

pixelflow train --config=configs/color_mixer.py --workdir=runs/mixer
"""

import dataclasses

from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import PDino
from pixelflow_jax.models.color_mixer import ColorMixer
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging


def get_config(variant: str = "images") -> Experiment:
    """One of the two variants."""
    return choose_variant(variant, {"images": images, "cascade": cascade})


def images() -> Experiment:
    """One resolution; the terms' balance begins to move at step 1."""
    return Experiment(
        name="color_mixer",
        steps=4,
        batch_size=4,
        data=Data(
            source=ImageFolder(path="images", holdout=0.25), image_size=32, threads=1
        ),
        model=ColorMixer(num_classes=3, patch=4),
        terms=[FlowMatching(), PDino(weight=0.1)],
        teachers=Teachers(
            dino=DinoV2(
                weights="teacher.safetensors",
                geometry=Geometry(width=24, heads=3, depth=2, grid=3),
            )
        ),
        adaptive_weight=AdaptiveWeight(start=1, every=1),
        ema=(0.9, 0.99),
        precision=Precision(compute="float32"),
        checkpoint=Checkpointing(every=2),
        log=Logging(every=1, preview_every=2, preview_count=2),
        sampling=Sampling(
            grid=Grid(steps=3), guidance=ClassifierFree(scale=2.0), batch_size=4
        ),
    )


def cascade() -> Experiment:
    """Two resolutions, with PixelFlow's path."""
    sampling = Sampling(
        grid=Grid(steps=2), guidance=ClassifierFree(scale=2.0), batch_size=4
    )
    return dataclasses.replace(
        images(),
        name="color_mixer_cascade",
        path=Pyramid(num_stages=2),
        terms=[FlowMatching()],
        adaptive_weight=None,
        sampling=sampling,
    )
