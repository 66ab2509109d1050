"""AsymFlow on ImageNet, class-conditional (Chen et al. 2026), and on the emoji.

pixelflow prepare basis /data/imagenet/train imagenet.npz --size=256
pixelflow train --config=asymflow:h16_repa_256 --workdir=runs/asymflow \\
    --config.data.source.data_dir=/data/tensorflow_datasets \\
    --config.prediction.basis=imagenet.npz

| variant         | params | epochs | sampler                  | FID          |
|-----------------|--------|--------|--------------------------|--------------|
| h16_256         | 953M   | 600    | Heun-50, 2.2, [0.12, 1]  | 1.76         |
| h16_repa_256    | 953M   | 600    | the same                 | 1.57         |
| l16_256         | 459M   | 600    | Heun-50, 2.4, [0.12, 1]  | no paper's   |
| b16_256         | 131M   | 600    | Heun-50, 2.9, [0.12, 1]  | no paper's   |
| emoji           | 7.5M   | 20,000 steps of 256                       | ours |

JiT with another prediction: x - P e, for the 8 directions that patches of 10,000
training images fill most; without a file, the run computes them when it begins. Batch
1024 on 8 GPUs, AdamW 2e-4 (0.9, 0.95) without decay, five epochs of warm-up,
logit-normal times (-0.8, 0.8), EMA 0.9999, labels dropped with probability 0.1, dropout
0.2 in H's middle half. REPA: block 8, three layers 2048 wide, weight 0.5, DINOv2-B,
whose weights --config.teachers.dino.weights names. The emoji's model has heads of 64.
"""

import dataclasses

from pixelflow_jax.config_files import load_config
from pixelflow_jax.data.emoji.source import DRAWN, Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.presets import JIT_SCALES, asymflow_heun50
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW


def imagenet(size: str, terms: list) -> Experiment:
    """600 epochs of ImageNet at 256 pixels: the recipe of JiT, and its guidance."""
    config = load_config(f"pixelgen:jit_{size}_256")
    assert isinstance(config.model, PixelGen)
    config.model.feature_layer = 8
    return dataclasses.replace(
        config,
        name=f"asymflow_{size}16_256",
        prediction=PredictAsymmetric(),
        terms=terms,
        ema=(0.9999,),
        sampling=asymflow_heun50(JIT_SCALES[config.model.width]),
    )


def emoji() -> Experiment:
    """All drawn emoji at 64 px, a class a category, 48 numbers a patch of 4."""
    model = PixelGen(
        num_classes=len(DRAWN),
        image_size=64,
        patch=4,
        width=256,
        heads=4,
        depth=6,
        bottleneck=32,
        context_length=4,
        context_start=2,
        feature_layer=3,
        dropout=0.0,
        stack=StackConfig(remat="none", scan=False),
    )
    sampling = asymflow_heun50(1.5)
    sampling.grid.steps = 25
    return Experiment(
        name="asymflow_emoji",
        steps=20_000,
        batch_size=256,
        data=Data(source=Emoji(categories=DRAWN), image_size=64, flip=False, threads=1),
        model=model,
        prediction=PredictAsymmetric(patch=4, images=2000),
        time=LogitNormal(mean=-0.4),
        optimizer=AdamW(lr=1.5e-3, warmup=500, schedule="cosine", clip=1.0),
        ema=(0.999,),
        checkpoint=Checkpointing(every=10_000, keep=2),
        log=Logging(every=250, preview_every=5000, preview_count=72),
        sampling=sampling,
    )


VARIANTS = {
    "h16_256": lambda: imagenet("h", [FlowMatching()]),
    "h16_repa_256": lambda: imagenet("h", [FlowMatching(), Repa(hidden=2048)]),
    "l16_256": lambda: imagenet("l", [FlowMatching()]),
    "b16_256": lambda: imagenet("b", [FlowMatching()]),
    "emoji": emoji,
}


def get_config(variant: str = "h16_repa_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
