"""PixelGen-XXL/16 on text (Ma et al. 2026, section 4.3, Table 7): three stages.

pixelflow train --config=pixelgen_t2i:pretrain_256 \\
    --workdir=runs/t2i_256 --config.data.source.path=/data/pretrain \\
    --config.conditioner.encoder.weights=/data/Qwen3-1.7B \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth \\
    --config.teachers.lpips.weights=/data/vgg16-397923af.pth
pixelflow train --config=pixelgen_t2i:pretrain_512 \\
    --workdir=runs/t2i_512 --config.init_from=runs/t2i_256 ... (the same paths)
pixelflow train --config=pixelgen_t2i:sft_512 \\
    --workdir=runs/t2i_sft --config.init_from=runs/t2i_512 ... (and the tuning data)

| variant      | images | steps | batch | lr   | data                     |
|--------------|--------|-------|-------|------|--------------------------|
| pretrain_256 | 256    | 200k  | 1536  | 1e-4 | 36M captioned images     |
| pretrain_512 | 512    | 80k   | 512   | 1e-4 | the same                 |
| sft_512      | 512    | 40k   | 512   | 1e-5 | BLIP3o-60k               |

1.12B parameters on states of Qwen3-1.7B (128 tokens, padding read as text), 6 days on 8
H800. The paper follows PixNerd where it says nothing: its learning rate of the tuning,
the aligned block, 6, and clipping at 1.0. Clean prediction; REPA (0.5), LPIPS (0.1) and
P-DINO (0.01) of images with at least 0.3 of data; times logit-normal (-0.8, 0.8),
unshifted, EMA 0.9999. GenEval 0.79 with Adams-Bashforth 2, 25 steps, CFG 4, shift 3
(--preset=adams25_cfg4). Positions are a table of the training size: a stage at another
one computes them anew, which is all it does not take over.
"""

import dataclasses

from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.training.optimizer import AdamW

PRETRAIN = "/data/pretrain"


def stage(
    name: str, image_size: int, steps: int, batch_size: int, data: str
) -> Experiment:
    """A stage of training on the captioned shards `data`."""
    model = PixelGenText(image_size=image_size)
    encoder = Qwen3(variant="qwen3-1.7b")
    return Experiment(
        name=f"pixelgen_t2i_{name}",
        steps=steps,
        batch_size=batch_size,
        data=Data(
            source=Shards(path=data),
            image_size=image_size,
            flip=False,
            workers=16,
            threads=16,
        ),
        model=model,
        conditioner=Text(encoder=encoder, length=model.text_length),
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.8, std=0.8),
        terms=[FlowMatching(), Repa(), Lpips(threshold=0.3), PDino(threshold=0.3)],
        optimizer=AdamW(lr=1e-4, clip=1.0),
        sampling=PRESETS["adams25_cfg4"](),
    )


def sft_512() -> Experiment:
    """Tuning on few, good images, from the second stage's weights."""
    config = stage("sft_512", 512, 40_000, 512, "/data/blip3o_60k")
    return dataclasses.replace(config, optimizer=AdamW(lr=1e-5, clip=1.0))


VARIANTS = {
    "pretrain_256": lambda: stage("pretrain_256", 256, 200_000, 1536, PRETRAIN),
    "pretrain_512": lambda: stage("pretrain_512", 512, 80_000, 512, PRETRAIN),
    "sft_512": sft_512,
}


def get_config(variant: str = "pretrain_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
