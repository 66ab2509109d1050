"""Quick start: PixNerd on the emoji that come with the package, a class a category.

pixelflow train --config=emoji --workdir=runs/emoji
"""

from pixelflow_jax.data.emoji.source import DRAWN, EASY, Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.solver import AdamsBashforth
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW


def shipped() -> Experiment:
    """The model in assets/: 64 px, 4.8M parameters, seven minutes on one H100."""
    return Experiment(
        name="emoji",
        steps=20_000,
        batch_size=256,
        data=Data(source=Emoji(categories=DRAWN), image_size=64, flip=False, threads=1),
        model=PixNerd(
            num_classes=len(DRAWN),
            patch=4,
            width=200,
            heads=5,
            depth=6,
            feature_layer=3,
            decoder=NeuralField(width=16, depth=2),
            stack=StackConfig(remat="none", scan=False),
        ),
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.4),
        optimizer=AdamW(lr=1.5e-3, warmup=500, schedule="cosine", clip=1.0),
        ema=(0.999,),
        checkpoint=Checkpointing(every=10_000, keep=2),
        log=Logging(every=250, preview_every=5000, preview_count=72),
        sampling=PRESETS["emoji_heun20"](),
    )


def demo() -> Experiment:
    """Three minutes on two CPU cores: 24 px, three classes, 1.2M parameters."""
    simple = Emoji(
        categories=("Smileys & Emotion", "Flags", "Food & Drink"), subcategories=EASY
    )
    return Experiment(
        name="emoji_demo",
        steps=2200,
        batch_size=32,
        data=Data(source=simple, image_size=24, flip=False, threads=1),
        model=PixNerd(
            num_classes=3,
            patch=6,
            width=128,
            heads=4,
            depth=3,
            feature_layer=1,
            decoder=NeuralField(width=16, depth=2),
            stack=StackConfig(remat="none", scan=False),
        ),
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.4),
        optimizer=AdamW(lr=2e-3, warmup=50, schedule="cosine", clip=1.0),
        ema=(0.995,),
        precision=Precision(compute="float32"),
        checkpoint=Checkpointing(every=500, keep=2),
        log=Logging(every=50, preview_every=500, preview_count=24),
        sampling=Sampling(
            solver=AdamsBashforth(order=2),
            grid=Grid(steps=20),  # no finer than `PredictClean.t_eps`
            guidance=ClassifierFree(scale=2.0, low=0.1, high=1.0),
        ),
    )


VARIANTS = {"demo": demo, "shipped": shipped}


def get_config(variant: str = "demo") -> Experiment:
    """The experiment of one of the two variants."""
    return choose_variant(variant, VARIANTS)
