"""DeCo-XXL/16 on text (Ma et al. 2025): three stages of training, and a small one.

pixelflow train --config=deco_t2i:pretrain_256 \\
    --workdir=runs/t2i_256 --config.data.source.path=/data/pretrain \\
    --config.conditioner.encoder.weights=/data/Qwen3-1.7B \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth
pixelflow train --config=deco_t2i:pretrain_512 \\
    --workdir=runs/t2i_512 --config.init_from=runs/t2i_256 ... (the same paths)
pixelflow train --config=deco_t2i:sft_512 \\
    --workdir=runs/t2i_sft --config.init_from=runs/t2i_512 ... (and the tuning data)
pixelflow train --config=deco_t2i:emoji --workdir=runs/deco_t2i_emoji

| variant      | images | steps | batch | lr     | betas      | shift | data         |
|--------------|--------|-------|-------|--------|------------|-------|--------------|
| pretrain_256 | 256    | 200k  | 1536  | 2e-4   | 0.9, 0.95  | 2     | BLIP3o       |
| pretrain_512 | 512    | 100k  | 512   | 1e-4   | 0.9, 0.95  | 4     | the same     |
| sft_512      | 512    | 60k   | 512   | 1e-5   | 0.9, 0.999 | 4     | BLIP3o-60k   |
| emoji        | 64     | 20k   | 256   | 1.5e-3 | 0.9, 0.999 | 1     | drawn emoji  |

1.13B parameters: PixNerd's joint transformer on states of Qwen3-1.7B (128 tokens,
padding read as text) before DeCo's decoder. The figures are those of the official
configs, batches on 8 GPUs; the rest is PixNerd's recipe. Flow matching, as much of
FrequencyMatching, and half of REPA at block 6 with DINOv2-B; logit-normal times,
clipping at 1.0, EMA 0.9999. GenEval 0.86 and DPG 81.4 with Adams-Bashforth 2, 25 steps,
CFG 4, shift 3 (--preset=adams25_cfg4).

The emoji's model is no paper's: emoji_t2i's data and encoder, which come as packages,
heads of 64 channels, no REPA.
"""

import dataclasses

from pixelflow_jax.config_files import load_config
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.prediction import PredictVelocity
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.deco import PixelMLPs
from pixelflow_jax.models.deco_text import DeCoText
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.stack import StackConfig


def stage(variant: str, steps: int) -> Experiment:
    """A stage of PixNerd's recipe with DeCo's model and loss."""
    return dataclasses.replace(
        load_config(f"pixnerd_t2i:{variant}"),
        name=f"deco_t2i_{variant}",
        steps=steps,
        model=DeCoText(),
        terms=[FlowMatching(), FrequencyMatching(), Repa(weight=0.5)],
    )


def emoji() -> Experiment:
    """The drawn emoji at 64 px with their names."""
    config = load_config("emoji_t2i:demo")
    assert isinstance(config.model, PixNerdText)
    model = DeCoText(
        patch=4,
        width=256,
        heads=4,
        depth=6,
        text_depth=1,
        text_width=config.model.text_width,
        text_length=config.model.text_length,
        mask_text=True,
        feature_layer=3,
        decoder=PixelMLPs(width=16, depth=3),
        stack=StackConfig(remat="none", scan=False),
    )
    return dataclasses.replace(
        config,
        name="deco_t2i_emoji",
        model=model,
        prediction=PredictVelocity(),
        time=LogitNormal(),
        terms=[FlowMatching(), FrequencyMatching()],
    )


VARIANTS = {
    "pretrain_256": lambda: stage("pretrain_256", 200_000),
    "pretrain_512": lambda: stage("pretrain_512", 100_000),
    "sft_512": lambda: stage("sft_512", 60_000),
    "emoji": emoji,
}


def get_config(variant: str = "pretrain_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
