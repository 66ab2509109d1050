"""PixNerd-XXL/16 on text (Wang et al. 2025, section 4.5): three stages of training.

pixelflow train --config=pixnerd_t2i:pretrain_256 \\
    --workdir=runs/t2i_256 --config.data.source.path=/data/pretrain \\
    --config.conditioner.encoder.weights=/data/Qwen3-1.7B \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth
pixelflow train --config=pixnerd_t2i:pretrain_512 \\
    --workdir=runs/t2i_512 --config.init_from=runs/t2i_256 ... (the same paths)
pixelflow train --config=pixnerd_t2i:sft_512 \\
    --workdir=runs/t2i_sft --config.init_from=runs/t2i_512 ... (and the tuning data)
pixelflow sample --workdir=runs/t2i_sft \\
    --prompt="a photo of a cat" --count=4 --height=768 --width=512

| variant      | images | steps | batch | lr   | betas      | shift | data           |
|--------------|--------|-------|-------|------|------------|-------|----------------|
| pretrain_256 | 256    | 200k  | 1536  | 2e-4 | 0.9, 0.95  | 2     | 45M, captioned |
| pretrain_512 | 512    | 80k   | 512   | 1e-4 | 0.9, 0.95  | 4     | the same       |
| sft_512      | 512    | 60k   | 512   | 1e-5 | 0.9, 0.999 | 4     | BLIP3o-60k     |

1.17B parameters on states of Qwen3-1.7B (128 tokens, padding read as text), 16 A100.
Steps and batch of the first two are the paper's, the rest the official configs'; those
give 400k steps at 512, and no batch for the tuning, which is that of 512 here. Block 6
is aligned with DINOv2-B (REPA, weight 0.5); logit-normal times, clipping at 1.0, EMA
0.9999, texts dropped with probability 0.1. GenEval 0.73 and DPG 80.9 with
Adams-Bashforth 2, 25 steps, CFG 4, shift 3 (--preset=adams25_cfg4).

sft_512 draws any size in multiples of 32 from 32 x 32 tokens (the heavy decoder);
--config.model.canvas="()" lets the tokens grow in number instead. Shards with captions
are written by python -m pixelflow_jax.prepare.
"""

import dataclasses

from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.training.optimizer import AdamW


def pretrain_256() -> Experiment:
    """The first stage, from random weights."""
    model, encoder = PixNerdText(), Qwen3(variant="qwen3-1.7b")
    return Experiment(
        name="pixnerd_t2i_pretrain_256",
        steps=200_000,
        batch_size=1536,
        data=Data(
            source=Shards(path="/data/pretrain"), flip=False, workers=16, threads=16
        ),
        model=model,
        conditioner=Text(encoder=encoder, length=model.text_length),
        time=LogitNormal(shift=2.0),
        terms=[FlowMatching(), Repa(weight=0.5)],
        optimizer=AdamW(lr=2e-4, b2=0.95, clip=1.0),
        sampling=PRESETS["adams25_cfg4"](),
    )


def pretrain_512() -> Experiment:
    """The second stage, from the first one's weights."""
    first = pretrain_256()
    return dataclasses.replace(
        first,
        name="pixnerd_t2i_pretrain_512",
        steps=80_000,
        batch_size=512,
        data=dataclasses.replace(first.data, image_size=512),
        time=LogitNormal(shift=4.0),
        optimizer=AdamW(lr=1e-4, b2=0.95, clip=1.0),
    )


def sft_512() -> Experiment:
    """Tuning on few, good images, from the second stage's weights."""
    second = pretrain_512()
    tuning = dataclasses.replace(second.data, source=Shards(path="/data/blip3o_60k"))
    return dataclasses.replace(
        second,
        name="pixnerd_t2i_sft_512",
        steps=60_000,
        data=tuning,
        model=PixNerdText(canvas=(512, 512)),
        optimizer=AdamW(lr=1e-5, clip=1.0),
    )


VARIANTS = {
    "pretrain_256": pretrain_256,
    "pretrain_512": pretrain_512,
    "sft_512": sft_512,
}


def get_config(variant: str = "pretrain_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
