"""PixelGen and JiT on ImageNet, class-conditional (Ma et al. 2026; Li & He 2025).

pixelflow train --config=pixelgen:xl_256 --workdir=runs/xl \\
    --config.data.source.data_dir=/data/tensorflow_datasets \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth \\
    --config.teachers.lpips.weights=/data/vgg16-397923af.pth

| variant         | params  | steps      | sampler                          | FID   |
|-----------------|---------|------------|----------------------------------|-------|
| jit_l           | 459M    | 200k       | Euler-50, no CFG                 | 23.67 |
| l_256           | 459M    | 200k       | Euler-50, no CFG                 | 7.53  |
| xl_256          | 676M    | 160 epochs | Heun-50, CFG 2.25, shift 2       | 1.83  |
| xl_256_nocfg    | 676M    | 80 epochs  | Heun-50, no CFG, shift 2         | 5.11  |
| jit_{b,l,h}_256 | 131M .. | 600 epochs | Heun-50, CFG 2.9, 2.4, 2.2       |       |
| jit_{b,l,h}_512 | 953M    | 600 epochs | patch 32, noise of deviation 2   |       |
| emoji_clean     | 0.9M    | 3k         | embedded drawings on two CPU     |       |
| emoji_velocity  | 0.9M    | 3k         | cores, with either prediction    |       |

Ablations, all PixelGen-L for 200k steps: Table 5 adds one thing a time: table5_lpips,
table5_pdino, table5_gating. Table 6: lpips_{0.05,0.1,0.5,1.0} (alone),
pdino_{0.005,0.01,0.02,0.04}, layer_{6,9,12,6_9_12} and gate_{0.0,0.1,0.3,0.6}.

All of PixelGen's align block 8 with DINOv2-B (REPA, weight 0.5). Times are logit-normal
(-0.8, 0.8), AdamW 1e-4 without decay, EMA 0.9999. The published code's gate has no
effect on P-DINO; --config.terms[3].gate=paper gates it as the paper says.
"""

import dataclasses
import functools
from typing import Any

from pixelflow_jax.data.emoji.source import EASY, Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.evaluation.paper import PaperRow
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.flow.solver import Heun
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.presets import PRESETS, jit_heun50
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW

IMAGES = 1_281_167
EPOCH = IMAGES // 256
# Layers not scanned: faster, compiles longer. All that the backward pass needs is kept:
# 4 GB more at 32 images a device than what remat="mlp" keeps.
WRITTEN_OUT = StackConfig(remat="none", scan=False)
XL = PixelGen(stack=WRITTEN_OUT)
L = dataclasses.replace(XL, width=1024, depth=24, bottleneck=128, dropout=0.0)
UNGUIDED = Sampling(guidance=ClassifierFree())  # Euler, 50 steps
TERMS = [FlowMatching(), Repa()]

# JiT's width, heads, depth, the block where class tokens enter, bottleneck and dropout.
JIT = {
    "b": (768, 12, 12, 4, 128, 0.0),
    "l": (1024, 16, 24, 8, 128, 0.0),
    "h": (1280, 16, 32, 10, 256, 0.2),
}

GATED = {t: [Lpips(threshold=t), PDino(threshold=t)] for t in (0.0, 0.1, 0.3, 0.6)}
ABLATIONS = {
    "table5_lpips": [Lpips()],
    "table5_pdino": [Lpips(), PDino()],
    "table5_gating": GATED[0.3],
    **{f"lpips_{w}": [Lpips(weight=w)] for w in (0.05, 0.1, 0.5, 1.0)},
    **{f"pdino_{w}": [Lpips(), PDino(weight=w)] for w in (0.005, 0.01, 0.02, 0.04)},
    **{f"layer_{d}": [Lpips(), PDino(layers=(d - 1,))] for d in (6, 9, 12)},
    "layer_6_9_12": [Lpips(), PDino(layers=(5, 8, 11))],
    **{f"gate_{t}": terms for t, terms in GATED.items()},
}


def imagenet(name: str, model: PixelGen, terms: list, steps: int) -> Experiment:
    """A run on ImageNet at the model's training size."""
    source = Tfds(name="imagenet2012", data_dir="/data/tensorflow_datasets")
    return Experiment(
        name=f"pixelgen_{name}",
        steps=steps,
        data=Data(source=source, image_size=model.image_size, workers=16, threads=16),
        model=model,
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.8, std=0.8),
        terms=terms,
        teachers=Teachers(dino=DinoV2(stack=StackConfig(scan=False))),
        sampling=UNGUIDED,
    )


def large(name: str, *perceptual: Lpips | PDino) -> Experiment:
    """L for 200,000 steps; without perceptual terms it is the JiT baseline."""
    return imagenet(name, L, [*TERMS, *perceptual], 200_000)


def xl() -> Experiment:
    """XL for 160 epochs, the terms balanced anew from step 400,000 on."""
    config = imagenet("xl_256", XL, [*TERMS, *GATED[0.3]], 160 * EPOCH)
    heun = PRESETS["pixelgen_heun50"]()
    return dataclasses.replace(config, adaptive_weight=AdaptiveWeight(), sampling=heun)


def xl_unguided() -> Experiment:
    """XL for 80 epochs, sampled without guidance."""
    sampling = PRESETS["pixelgen_heun50_unguided"]()
    return dataclasses.replace(
        xl(), name="pixelgen_xl_256_nocfg", steps=80 * EPOCH, sampling=sampling
    )


def plain_jit(size: str, pixels: int) -> Experiment:
    """JiT as its authors train it: flow matching alone, batch 1024, two averages."""
    width, heads, depth, start, bottleneck, dropout = JIT[size]
    model = PixelGen(
        patch=pixels // 16,
        image_size=pixels,
        width=width,
        heads=heads,
        depth=depth,
        bottleneck=bottleneck,
        context_start=start,
        feature_layer=start,
        dropout=dropout,
        # Many images a device, and up to 32 wide blocks.
        stack=StackConfig(remat="mlp", scan=False),
    )
    epoch = IMAGES // 1024
    return dataclasses.replace(
        imagenet(f"jit_{size}_{pixels}", model, [FlowMatching()], 600 * epoch),
        batch_size=1024,
        path=Straight(noise_scale=pixels / 256),
        optimizer=AdamW(lr=2e-4, b2=0.95, warmup=5 * epoch),
        ema=(0.9999, 0.9996),
        sampling=jit_heun50(model.width),
    )


def emoji(name: str, prediction: PredictClean | PredictVelocity) -> Experiment:
    """A small JiT for two CPU cores: drawings at 32 px, 192 numbers a patch of 8."""
    categories = ("Smileys & Emotion", "Flags", "Food & Drink")
    source = Emoji(categories=categories, subcategories=EASY)
    model = PixelGen(
        num_classes=len(categories),
        image_size=32,
        patch=8,
        width=128,
        heads=4,
        depth=3,
        bottleneck=48,
        context_length=4,
        context_start=1,
        feature_layer=1,
        dropout=0.0,
        stack=StackConfig(remat="none", scan=False),
    )
    return Experiment(
        name=f"pixelgen_emoji_{name}",
        steps=3000,
        batch_size=64,
        data=Data(source=source, image_size=32, flip=False, threads=1),
        model=model,
        prediction=prediction,
        time=LogitNormal(mean=-0.4),
        optimizer=AdamW(lr=2e-3, warmup=100, schedule="cosine", clip=1.0),
        ema=(0.995,),
        precision=Precision(compute="float32"),
        checkpoint=Checkpointing(every=1000, keep=2),
        log=Logging(every=50, preview_every=1000, preview_count=24),
        sampling=Sampling(
            solver=Heun(),
            grid=Grid(steps=25),
            guidance=ClassifierFree(scale=1.5, low=0.1, interval="(]"),
        ),
    )


VARIANTS = {
    "jit_l": lambda: large("jit_l"),
    "l_256": lambda: large("l_256", *ABLATIONS["table5_gating"]),
    "xl_256": xl,
    "xl_256_nocfg": xl_unguided,
    "emoji_clean": lambda: emoji("clean", PredictClean()),
    "emoji_velocity": lambda: emoji("velocity", PredictVelocity()),
    **{
        f"jit_{size}_{pixels}": functools.partial(plain_jit, size, pixels)
        for size in JIT
        for pixels in (256, 512)
    },
    **{name: functools.partial(large, name, *ABLATIONS[name]) for name in ABLATIONS},
}


def _row(source: str, fid: float, sampling: Sampling, **more: Any) -> tuple:
    return (PaperRow(source=source, figures={"fid": fid}, sampling=sampling, **more),)


PIXELGEN, TABLE_5 = "Ma et al. 2026", "Ma et al. 2026, Table 5"
SORTED = ("the paper draws 50 images of each class, class after class",)
# What `pixelflow reproduce` compares with; the first row is the usual one.
PAPER = {
    "xl_256": _row(f"{PIXELGEN}, guided", 1.83, PRESETS["pixelgen_heun50"]()),
    "xl_256_nocfg": _row(
        f"{PIXELGEN}, 80 epochs", 5.11, PRESETS["pixelgen_heun50_unguided"]()
    ),
    "jit_l": _row(TABLE_5, 23.67, UNGUIDED),
    "l_256": _row(TABLE_5, 7.53, UNGUIDED),
    **{
        f"jit_{size}_256": _row(
            "Li & He 2025, JiT/16 at 256",
            fid,
            jit_heun50(JIT[size][0]),
            evaluator="jit",
            notes=SORTED,
        )
        for size, fid in (("b", 3.66), ("h", 1.86))
    },
}


def get_config(variant: str = "xl_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
