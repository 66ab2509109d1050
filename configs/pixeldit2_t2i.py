"""PixelDiT2 on text, which no paper has: PixelDiT2-H's recipe, PixNerd's joint blocks.

pixelflow train --config=pixeldit2_t2i:pretrain_256 \\
    --workdir=runs/t2i_256 --config.data.source.path=/data/pretrain \\
    --config.model.encoder.weights=/data/dinov3-vits16/model.safetensors \\
    --config.conditioner.encoder.weights=/data/Qwen3-1.7B \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth
pixelflow train --config=pixeldit2_t2i:pretrain_512 \\
    --workdir=runs/t2i_512 --config.init_from=runs/t2i_256 ... (the same paths)

| variant      | images | params | steps | batch | lr   | shift | noise |
|--------------|--------|--------|-------|-------|------|-------|-------|
| pretrain_256 | 256    | 1.18B  | 200k  | 1536  | 2e-4 | 1     | 1     |
| pretrain_512 | 512    | 1.18B  | 80k   | 512   | 1e-4 | 1     | 2     |

What a frozen encoder sees of a noisy image says more of it than a class does; a text
says what the encoder cannot see. Clean prediction, times logit-normal (-0.8, 0.8), REPA
at block 6 with its tokens pooled, EMA 0.9999 and clipping at 1.0; text and grounding
are dropped independently, with probability 0.1 each, and guidance drops both. Steps,
batches and learning rates are those of PixNerd's stages, the noise is PixelDiT2's at
512 pixels; 24 heads of 64 channels. Nobody has measured it.
"""

import dataclasses

from pixelflow_jax.conditioning.grounded import GroundedText
from pixelflow_jax.config_files import load_config
from pixelflow_jax.encoders.qwen3 import Qwen3
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.solver import Heun
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.pixeldit2_text import PixelDiT2Text
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.teachers.dinov3 import DinoV3


def stage(variant: str, noise_scale: float) -> Experiment:
    """A stage of PixNerd's training with PixelDiT2's recipe."""
    model = PixelDiT2Text(
        encoder=DinoV3(variant="vits16"), stack=StackConfig(remat="full")
    )
    guidance = ClassifierFree(  # the scale of other models of text
        scale=4.0, low=0.125, high=0.9, interval_time="evaluation"
    )
    encoder = Qwen3(variant="qwen3-1.7b")
    return dataclasses.replace(
        load_config(f"pixnerd_t2i:{variant}"),
        name=f"pixeldit2_t2i_{variant}",
        path=Straight(noise_scale=noise_scale),
        model=model,
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.8, std=0.8),
        terms=[FlowMatching(), Repa(grid="pool")],
        conditioner=GroundedText(encoder=encoder, length=model.text_length),
        sampling=Sampling(solver=Heun(), grid=Grid(steps=50), guidance=guidance),
    )


VARIANTS = {
    "pretrain_256": lambda: stage("pretrain_256", 1.0),
    "pretrain_512": lambda: stage("pretrain_512", 2.0),
}


def get_config(variant: str = "pretrain_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
