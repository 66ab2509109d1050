"""PixelFlow-XL/4 on text through Flan-T5-XL, from 256 to 1024 (Chen et al. 2025, 4.3).

pixelflow train --config=pixelflow_t2i:256 \\
    --workdir=runs/t2i_256 --config.data.source.path=/data/laion \\
    --config.conditioner.encoder.weights=/data/flan-t5-xl \\
    --config.init_from=runs/xl4_256 --config.init_reset="('classes', 'text')"
pixelflow train --config=pixelflow_t2i:512 \\
    --workdir=runs/t2i_512 --config.init_from=runs/t2i_256 ... (and finer data)
pixelflow train --config=pixelflow_t2i:1024 \\
    --workdir=runs/t2i_1024 --config.init_from=runs/t2i_512 ...

| variant | stages     | begins with                              | data               |
|---------|------------|------------------------------------------|--------------------|
| 256     | 32 .. 256  | the ImageNet model, configs/pixelflow.py | a part of LAION    |
| 512     | 32 .. 512  | 256; GenEval 0.64 and DPG 77.93          | of high aesthetics |
| 1024    | 32 .. 1024 | 512                                      |                    |

Cross-attention to 512 tokens, padding masked, in every block; no classes. The first
stage keeps 8 x 8 tokens. The paper leaves steps, batch and learning rate open; they are
those of ImageNet here. Sampling as in the official demo: Euler, 10 steps a stage, CFG 4
on all of them (--preset=euler10_cfg4).
"""

import functools

from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.transforms import RandomCrop
from pixelflow_jax.encoders.t5 import T5
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.time import Uniform
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.training.optimizer import AdamW

FIRST = 32  # pixels of the first stage
STEPS, BATCH = 400_000, 256


def at(image_size: int) -> Experiment:
    """Training on images of that size."""
    encoder = T5(variant="flan-t5-xl")
    return Experiment(
        name=f"pixelflow_t2i_{image_size}",
        steps=STEPS,
        batch_size=BATCH,
        data=Data(
            source=Shards(path="/data/captioned"),
            image_size=image_size,
            crop=RandomCrop(scale=1.125),
            flip=False,
            workers=16,
            threads=16,
        ),
        path=Pyramid(num_stages=(image_size // FIRST).bit_length()),
        model=PixelFlow(num_classes=0, text_width=encoder.width),
        conditioner=Text(encoder=encoder, length=512),
        time=Uniform(levels=1000),
        optimizer=AdamW(lr=1e-4, clip=1.0),
        sampling=PRESETS["euler10_cfg4"](),
    )


VARIANTS = {str(size): functools.partial(at, size) for size in (256, 512, 1024)}


def get_config(variant: str = "256") -> Experiment:
    """The experiment of one variant of the table above."""
    return choose_variant(variant, VARIANTS)
