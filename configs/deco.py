"""DeCo on ImageNet, class-conditional (Ma et al. 2025), and on the emoji.

pixelflow train --config=deco:xl16_256 --workdir=runs/deco \\
    --config.data.source.data_dir=/data/tensorflow_datasets

| variant  | params | batch | epochs        | sampler   | CFG, interval | FID         |
|----------|--------|-------|---------------|-----------|---------------|-------------|
| l16_256  | 426M   | 256   | 200,000 steps | Euler-50  | none          | (ablations) |
| xl16_256 | 682M   | 256   | 320 (800)     | Euler-100 | 3.2, (0.1, 1) | 1.90 (1.62) |
| xl16_512 | 682M   | 256   | tuned         | Euler-100 | 5.0, (0.1, 1) | 2.22        |
| emoji    | 7.3M   | 256   | 20,000 steps  | Adams-2, 40 | 1.5, (0.1, 1) | ours      |

AdamW 1e-4 without decay, warm-up or clipping, logit-normal times, EMA 0.9999, labels
dropped with probability 0.2 (L: 0.1). The loss is flow matching, as much of
FrequencyMatching (JPEG's tables at quality 85), and half of REPA at block 8 with
DINOv2-B, whose weights --config.teachers.dino.weights names. The emoji's model is no
paper's: it has heads of 64 channels, no REPA, and trains on one GPU in minutes.
"""

import dataclasses

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.data.emoji.source import DRAWN, Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.solver import AdamsBashforth
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.deco import DeCo, PixelMLPs
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.presets import deco_euler100, deco_euler100_512
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW

EPOCH = 1_281_167 // 256
# Layers not scanned, all gated branches kept, as in pixnerd.py.
WRITTEN_OUT = StackConfig(remat="branches", scan=False)
XL = DeCo(stack=WRITTEN_OUT)
L = DeCo(width=1024, depth=22, stack=WRITTEN_OUT)


def imagenet(name: str, model: DeCo, image_size: int = 256) -> Experiment:
    """320 epochs of ImageNet; sampling defaults are Euler-100, CFG 3.2 on (0.1, 1)."""
    source = Tfds(name="imagenet2012", data_dir="/data/tensorflow_datasets")
    return Experiment(
        name=name,
        steps=320 * EPOCH,
        data=Data(source=source, image_size=image_size, workers=16, threads=16),
        model=model,
        terms=[FlowMatching(), FrequencyMatching(), Repa(weight=0.5)],
        conditioner=ClassLabels(drop=0.2),
        sampling=deco_euler100(),
    )


def l16_256() -> Experiment:
    """The size of the paper's ablations, drawn from without guidance."""
    return dataclasses.replace(
        imagenet("deco_l16_256", L),
        steps=200_000,
        conditioner=ClassLabels(drop=0.1),
        sampling=Sampling(guidance=ClassifierFree(scale=1.0)),
    )


def xl16_512() -> Experiment:
    """Fine-tuned at 512: --config.init_from=WORKDIR of xl16_256."""
    return dataclasses.replace(
        imagenet("deco_xl16_512", XL, 512),
        steps=100_000,
        accumulate=2,
        sampling=deco_euler100_512(),
    )


def emoji() -> Experiment:
    """All drawn emoji at 64 px, a class a category."""
    return Experiment(
        name="deco_emoji",
        steps=20_000,
        batch_size=256,
        data=Data(source=Emoji(categories=DRAWN), image_size=64, flip=False, threads=1),
        model=DeCo(
            num_classes=len(DRAWN),
            patch=4,
            width=256,
            heads=4,
            depth=6,
            feature_layer=3,
            decoder=PixelMLPs(width=16, depth=3),
            stack=StackConfig(remat="none", scan=False),
        ),
        terms=[FlowMatching(), FrequencyMatching()],
        optimizer=AdamW(lr=1.5e-3, warmup=500, schedule="cosine", clip=1.0),
        ema=(0.999,),
        checkpoint=Checkpointing(every=10_000, keep=2),
        log=Logging(every=250, preview_every=5000, preview_count=72),
        sampling=Sampling(
            solver=AdamsBashforth(order=2),
            grid=Grid(steps=40),
            guidance=ClassifierFree(scale=1.5, low=0.1, high=1.0),
        ),
    )


VARIANTS = {
    "xl16_256": lambda: imagenet("deco_xl16_256", XL),
    "l16_256": l16_256,
    "xl16_512": xl16_512,
    "emoji": emoji,
}


def get_config(variant: str = "xl16_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
