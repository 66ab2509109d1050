"""ColorWriter on the emoji that come with the package, described by their names.

pixelflow train --config=configs/color_writer.py --workdir=runs/writer
"""

from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.emoji.source import Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.encoders.bert import Bert
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.color_writer import ColorWriter
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging


def get_config() -> Experiment:
    """The experiment."""
    encoder = Bert()
    return Experiment(
        name="color_writer",
        steps=2,
        batch_size=4,
        data=Data(source=Emoji(categories=("Flags",)), image_size=16, threads=1),
        model=ColorWriter(text_width=encoder.width),
        conditioner=Text(encoder=encoder, length=16),
        ema=(0.9,),
        precision=Precision(compute="float32"),
        checkpoint=Checkpointing(every=2),
        log=Logging(every=1, preview_every=2, preview_count=2),
        sampling=Sampling(
            grid=Grid(steps=2), guidance=ClassifierFree(scale=2.0), batch_size=4
        ),
    )
