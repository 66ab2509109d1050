"""PixelDiT2 on ImageNet, class-conditional (Yu et al. 2026).

pixelflow train --config=pixeldit2:h16_256 --workdir=runs/pixeldit2 \\
    --config.data.source.data_dir=/data/tensorflow_datasets \\
    --config.model.encoder.weights=/data/dinov3-vits16/model.safetensors \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth

| variant | params | epochs | hardware | sampler | CFG, interval     | FID (JiT's way) |
|---------|--------|--------|----------|---------|-------------------|-----------------|
| h16_256 | 986M   | 600    | 32 GPUs  | Heun-50 | 2.4, (0.125, 0.9) | 1.46            |
| h16_512 | 987M   | 680    | 64 GPUs  | Heun-50 | 2.1, (0.1, 0.925) | 1.48            |

It looks at its noisy images through DINOv3-S, at 512 pixels through DINOv3-B, whose
weights, and their licence, are the user's to get; any DINOv2 serves as well, with
figures of its own. Batch 1024, AdamW 2e-4 (0.9, 0.95) without decay, 6255 steps of
warm-up, EMA 0.9999, logit-normal times (-0.8, 0.8), REPA at block 8 with DINOv2-B.
Dropout of 0.2 in the middle half. Class and grounding are dropped independently, with
probability 0.1 each; guidance drops both.

h16_512 is trained from random weights, on noise that is twice as large, as JiT's. It
differs in three more ways: the MLPs are rounded up to multiples of 32, one SiLU less
stands before modulation, and class and grounding are also dropped at once (0.05).
"""

import dataclasses

from pixelflow_jax.conditioning.grounded import GroundedLabels
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.presets import pixeldit2_heun50, pixeldit2_heun50_512
from pixelflow_jax.teachers.dinov3 import DinoV3
from pixelflow_jax.training.optimizer import AdamW


def h16_256() -> Experiment:
    """600 epochs of ImageNet at 256 pixels."""
    source = Tfds(name="imagenet2012", data_dir="/data/tensorflow_datasets")
    return Experiment(
        name="pixeldit2_h16_256",
        steps=750_000,
        batch_size=1024,
        data=Data(source=source, image_size=256, workers=16, threads=16),
        model=PixelDiT2(
            dropout=0.2,
            encoder=DinoV3(variant="vits16"),
            stack=StackConfig(remat="full"),
        ),
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.8, std=0.8),
        terms=[FlowMatching(), Repa(grid="pool")],
        conditioner=GroundedLabels(),
        optimizer=AdamW(lr=2e-4, b2=0.95, warmup=6255),
        sampling=pixeldit2_heun50(),
    )


def h16_512() -> Experiment:
    """680 epochs of ImageNet at 512 pixels."""
    base = h16_256()
    return dataclasses.replace(
        base,
        name="pixeldit2_h16_512",
        steps=850_000,
        data=dataclasses.replace(base.data, image_size=512),
        path=Straight(noise_scale=2.0),
        model=PixelDiT2(
            mlp_multiple=32,
            single_silu=True,
            dropout=0.2,
            encoder=DinoV3(variant="vitb16"),
            stack=StackConfig(remat="full"),
        ),
        conditioner=GroundedLabels(joint_drop=0.05),
        sampling=pixeldit2_heun50_512(),
    )


VARIANTS = {"h16_256": h16_256, "h16_512": h16_512}


def get_config(variant: str = "h16_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
