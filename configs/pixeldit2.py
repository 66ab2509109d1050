"""PixelDiT2 on ImageNet, class-conditional (Yu et al. 2026).

pixelflow train --config=pixeldit2:h16_256 --workdir=runs/pixeldit2 \\
    --config.data.source.data_dir=/data/tensorflow_datasets \\
    --config.model.encoder.weights=/data/dinov3-vits16/model.safetensors \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth

| variant | params | epochs | hardware | sampler | CFG, interval     | FID (JiT's way) |
|---------|--------|--------|----------|---------|-------------------|-----------------|
| h16_256 | 986M   | 600    | 32 GPUs  | Heun-50 | 2.4, (0.125, 0.9) | 1.46            |

It looks at its noisy images through DINOv3-S, whose weights, and their licence, are the
user's to get; any DINOv2 serves as well, with figures of its own. Batch 1024, AdamW
2e-4 (0.9, 0.95) without decay, 6255 steps of warm-up, EMA 0.9999, logit-normal times
(-0.8, 0.8), REPA at block 8 with DINOv2-B. Class and grounding are dropped
independently, with probability 0.1 each; guidance drops both. The paper's dropout of
0.2 is left out.
"""

from pixelflow_jax.conditioning.grounded import GroundedLabels
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.pixeldit2 import PixelDiT2
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.presets import pixeldit2_heun50
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


VARIANTS = {"h16_256": h16_256}


def get_config(variant: str = "h16_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
