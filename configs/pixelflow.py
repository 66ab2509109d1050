"""PixelFlow on ImageNet (Chen et al. 2025, Tables 1, 2 and 3).

pixelflow train --config=pixelflow:xl4_256 --workdir=runs/xl \\
    --config.data.source.data_dir=/data/tensorflow_datasets

| variant               | stages       | steps | sampler                       | FID   |
|-----------------------|--------------|-------|-------------------------------|-------|
| xl4_256 (677M)        | 32 .. 256    | 1600k | Euler, 4 x 30, CFG 1.5        | 2.51  |
|                       |              |       | Dopri5, CFG 1.5               | 2.43  |
|                       |              |       | Dopri5, stage-wise up to 2.4  | 1.98  |
| kickoff_2x2           | 4 .. 64      | 600k  | Table 1: patch 2, first stage | 3.49  |
| kickoff_8x8           | 16 .. 64     | 600k  | of 2x2, 8x8 and 32x32 tokens  | 3.21  |
| kickoff_32x32         | 64           | 600k  |                               | 3.34  |
| patch2_64             | 4 .. 64      | 600k  | Table 2, top: first stage of  | 3.49  |
| patch4_64             | 8 .. 64      | 600k  | 2x2 tokens                    | 3.41  |
| patch{2,4,8}_256      | 4, 8, 16 ..  | 100k  | Table 2, middle               | 28 .. |
| patch{4,8}_256_long   | 256          | 1600k | Table 2, bottom               | 2.81, |
|                       |              |       |                               | 4.65  |
| emoji                 | 16 .. 64     | 25k   | the embedded drawings         |       |

The samplers of Table 3 are presets of `pixelflow sample`: --preset=euler30_cfg1.5,
dopri5_cfg1.5 and dopri5_stagewise2.4. AdamW 1e-4 without decay, clipping at 1.0, EMA
0.9999, batch 256 (the paper does not say), times on 1000 levels a stage, labels dropped
with probability 0.1, Lanczos resize to 1.125 x, random crop, flip.
"""

import dataclasses
import functools

from pixelflow_jax.data.emoji.source import DRAWN, Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.data.transforms import RandomCrop
from pixelflow_jax.evaluation.paper import PaperRow
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.guidance import ClassifierFree, stage_ramp
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.time import Grid, Uniform
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW

# Layers not scanned, all kept that the backward pass needs: a third faster, compiles
# longer, 9 GB more at 16 images a device than remat="branches".
XL = PixelFlow(stack=StackConfig(remat="none", scan=False))
# Patch, size and steps; the first stage has 2x2 tokens.
PATCHES = {
    "patch2_64": (2, 64, 600_000),
    "patch4_64": (4, 64, 600_000),
    "patch2_256": (2, 256, 100_000),
    "patch4_256": (4, 256, 100_000),
    "patch8_256": (8, 256, 100_000),
    "patch4_256_long": (4, 256, 1_600_000),
    "patch8_256_long": (8, 256, 1_600_000),
}
KICKOFFS = {"kickoff_2x2": 2, "kickoff_8x8": 8, "kickoff_32x32": 32}


def imagenet(
    name: str, patch: int, image_size: int, steps: int, kickoff: int
) -> Experiment:
    """PixelFlow-XL whose first stage has `kickoff` x `kickoff` tokens."""
    source = Tfds(name="imagenet2012", data_dir="/data/tensorflow_datasets")
    num_stages = (image_size // (patch * kickoff)).bit_length()
    sampling = PRESETS["dopri5_stagewise2.4"]()
    sampling.guidance.ramp = stage_ramp(num_stages)
    return Experiment(
        name=f"pixelflow_{name}",
        steps=steps,
        batch_size=256,
        data=Data(
            source=source,
            image_size=image_size,
            crop=RandomCrop(scale=1.125),
            workers=16,
            threads=16,
        ),
        path=Pyramid(num_stages=num_stages),
        model=dataclasses.replace(XL, patch=patch),
        time=Uniform(levels=1000),
        optimizer=AdamW(lr=1e-4, clip=1.0),
        sampling=sampling,
    )


def emoji() -> Experiment:
    """Nine classes of drawings at 64 px in minutes on one GPU; 15M parameters."""
    source = Emoji(categories=DRAWN)
    return Experiment(
        name="pixelflow_emoji",
        steps=25_000,
        batch_size=192,
        data=Data(source=source, image_size=64, flip=False, threads=1),
        path=Pyramid(num_stages=3),
        model=PixelFlow(
            num_classes=len(DRAWN),
            width=320,
            heads=8,
            depth=8,
            feature_layer=4,
            stack=StackConfig(remat="none", scan=False),
        ),
        time=Uniform(),
        optimizer=AdamW(lr=1e-3, warmup=500, schedule="cosine", clip=1.0),
        ema=(0.999,),
        checkpoint=Checkpointing(every=5000, keep=2),
        log=Logging(every=250, preview_every=5000, preview_count=72),
        sampling=Sampling(
            grid=Grid(steps=20, last_step=0.001),
            guidance=ClassifierFree(scale=2.0, ramp=stage_ramp(3)),
        ),
    )


VARIANTS = {
    "xl4_256": lambda: imagenet("xl4_256", 4, 256, 1_600_000, kickoff=8),
    **{
        name: functools.partial(imagenet, name, 2, 64, 600_000, kickoff)
        for name, kickoff in KICKOFFS.items()
    },
    **{
        name: functools.partial(imagenet, name, *row, kickoff=2)
        for name, row in PATCHES.items()
    },
    "emoji": emoji,
}


# What `pixelflow reproduce` compares with; the first row is the usual one.
PAPER = {
    "xl4_256": tuple(
        PaperRow(
            source="Chen et al. 2025, Table 3",
            figures={"fid": fid},
            sampling=PRESETS[preset](),
        )
        for preset, fid in (
            ("dopri5_stagewise2.4", 1.98),
            ("dopri5_cfg1.5", 2.43),
            ("euler30_cfg1.5", 2.51),
        )
    )
}


def get_config(variant: str = "xl4_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
