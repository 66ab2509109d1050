"""PixelREPA on ImageNet, class-conditional (Shin et al. 2026): JiT, aligned otherwise.

pixelflow train --config=pixelrepa:b16_256 --workdir=runs/pixelrepa \\
    --config.data.source.data_dir=/data/tensorflow_datasets \\
    --config.teachers.dino.weights=/data/dinov2_vitb14_pretrain.pth

| variant | params | epochs | behind block | sampler        | FID, JiT's | FID  |
|---------|--------|--------|--------------|----------------|------------|------|
| b16_256 | 131M   | 600    | 4            | Heun-50, 3.1   | 3.66       | 3.17 |
| l16_256 | 459M   | 600    | 8            | Heun-50, 2.8   |            |      |
| h16_256 | 953M   | 600    | 10           | Heun-50, 2.4   | 1.86       | 1.81 |

JiT's recipe with one term more, of weight 0.1: two blocks that see four fifths of the
tokens predict DINOv2-B's, where REPA has an MLP. The official DINOv2 sees 256 pixels
through a patch resampled to 16, ours an image resized for its patches of 14. Guidance
on (0.1, 1), tested at each evaluation's own time.
"""

import dataclasses
import functools

from pixelflow_jax.config_files import load_config
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.losses.adapter import MaskedAdapter
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.models.pixelgen import PixelGen

SCALES = {"b": 3.1, "l": 2.8, "h": 2.4}  # of guidance


def imagenet(size: str) -> Experiment:
    """JiT of that size with the masked adapter."""
    config = load_config(f"pixelgen:jit_{size}_256")
    assert isinstance(config.model, PixelGen)
    adapter = MaskedAdapter(heads=config.model.heads)
    guidance = ClassifierFree(
        scale=SCALES[size],
        low=0.1,
        high=1.0,
        interval_time="evaluation",
    )
    return dataclasses.replace(
        config,
        name=f"pixelrepa_{size}16_256",
        terms=[FlowMatching(), Repa(weight=0.1, projector=adapter)],
        sampling=dataclasses.replace(config.sampling, guidance=guidance),
    )


VARIANTS = {f"{size}16_256": functools.partial(imagenet, size) for size in SCALES}


def get_config(variant: str = "b16_256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
