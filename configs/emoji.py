"""Quick start: PixNerd on the emoji that come with the package, a class a category.

pixelflow train --config=emoji --workdir=runs/emoji

| variant   | images | classes          | params | hardware     | time          |
|-----------|--------|------------------|--------|--------------|---------------|
| demo      | 24     | 3                | 1.2M   | 2 CPU cores  | three minutes |
| shipped   | 64     | 9                | 4.8M   | one H200     | seven minutes |
| styles    | 64     | 9                | 7.8M   | one GPU      | not run       |
| styles256 | 256    | 9 in four styles | 43M    | half an H200 | eight minutes |

The last two take the shards of four drawing styles that `pixelflow prepare
emoji-styles` writes (docs/emoji.md): data/styles64, and with --size 256 --classes style
data/styles256. They learn by one recipe, whose rank of the prediction and weight of the
second term are flags: --config.prediction.rank=8, --config.terms[1].weight=0.
"""

from pixelflow_jax.data.emoji.source import DRAWN, EASY, Emoji
from pixelflow_jax.data.emoji.styles import STYLES
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.solver import AdamsBashforth
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW


def shipped() -> Experiment:
    """The model in assets/: 64 px, 4.8M parameters, seven minutes on one H200.

    By the recipe of docs/evidence.md: clean prediction, FrequencyMatching, and small
    batches at a learning rate that is not scaled down with them. FD-lite0 of 2,000
    images: 25.6; of the same network after 20,000 steps of 256 without the second term
    26.0.
    """
    return Experiment(
        name="emoji",
        steps=60_000,
        batch_size=96,
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
        terms=[FlowMatching(), FrequencyMatching()],
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
        terms=[FlowMatching(), FrequencyMatching()],
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


def styles() -> Experiment:
    """Four drawing styles at 64 px; 15.6 MB as bfloat16, to be shipped."""
    config = shipped()
    config.name = "emoji_styles"
    config.data.source = Shards(path="data/styles64")
    # Heads of 64 channels, as attention kernels are made for.
    config.model.width, config.model.heads = 256, 4
    # Clean prediction, but any rank of AsymFlow's is a flag away.
    config.prediction = PredictAsymmetric(rank=0, patch=config.model.patch)
    # No finer than `PredictAsymmetric.sampling_tau`: see `PRESETS["emoji_heun20"]`.
    config.sampling.grid = Grid(steps=25)
    return config


def styles256() -> Experiment:
    """Four drawing styles at 256 px, a class a category in a style."""
    config = styles()
    config.name = "emoji_styles256"
    config.data.source, config.data.image_size = Shards(path="data/styles256"), 256
    config.model.num_classes = len(DRAWN) * len(STYLES)  # rows of one style each
    config.model.patch = config.prediction.patch = 16  # the papers': 256 tokens
    config.model.width, config.model.heads = 512, 8  # for 768 numbers a patch
    config.model.depth, config.model.feature_layer = 8, 4
    config.model.decoder.width = 32  # a field of 256 pixels, not of 16
    config.time = LogitNormal(mean=-0.8)  # JiT's at 256 px: noise hides less of it
    config.optimizer.lr = 8e-4  # the network is twice as wide
    config.steps, config.batch_size = 10_000, 64
    return config


VARIANTS = {
    "demo": demo,
    "shipped": shipped,
    "styles": styles,
    "styles256": styles256,
}


def get_config(variant: str = "demo") -> Experiment:
    """The experiment of one of the variants."""
    return choose_variant(variant, VARIANTS)
