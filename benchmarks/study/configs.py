"""The small experiments of the study: one data set, one budget, one part changed each.

The drawings at 64 px in patches of 8: 192 numbers a patch for 192 channels, as JiT-B/16
has 768 for 768. Everything that a row does not name is the same in all rows.
"""

import dataclasses
from collections.abc import Callable

from pixelflow_jax.data.emoji.source import DRAWN, EASY, Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.solver import AdamsBashforth
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.context import Term
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.models.deco import DeCo, PixelMLPs
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from pixelflow_jax.nn.kernels.choice import Kernels
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.optimizer import AdamW

HOLDOUT = 0.15
PATCH, CHANNELS = 8, 3
DEPTH = 4
BATCH = 129  # three stages of a cascade share it evenly
FULL = PATCH * PATCH * CHANNELS  # the rank of velocity prediction
EMA = (0.99, 0.998)
SIMPLE = ("Smileys & Emotion", "Flags", "Food & Drink")
SIZES = {
    "num_classes": len(DRAWN),
    "patch": PATCH,
    "width": 192,
    "heads": 3,
    "feature_layer": 2,
    "stack": StackConfig(remat="none", scan=False),
}


def base(name: str, model: DenoiserConfig) -> Experiment:
    """The common experiment: AdamW, a cosine, two averages; see `piece.Budget`."""
    return Experiment(
        name=name,
        steps=2000,
        batch_size=BATCH,
        data=Data(
            source=Emoji(categories=DRAWN, holdout=HOLDOUT),
            image_size=64,
            flip=False,
            threads=1,
        ),
        model=model,
        time=LogitNormal(mean=-0.4),
        optimizer=AdamW(lr=1.5e-3, warmup=200, schedule="cosine", clip=1.0),
        ema=EMA,
        # One compiler for all methods: no row wins by a kernel.
        kernels=Kernels(blocks="xla", field="xla", attention="xla"),
        sampling=Sampling(solver=AdamsBashforth(order=2)),
    )


def easy() -> Emoji:
    """Shapes that minutes on a CPU are enough for, in three classes."""
    return Emoji(categories=SIMPLE, subcategories=EASY, holdout=HOLDOUT)


def plain(name: str) -> Experiment:
    """JiT without its bottleneck, which would cost velocity prediction its input.

    And without its tokens of the class, which reaches the blocks by AdaLN anyway.
    """
    model = PixelGen(
        **SIZES,
        image_size=64,
        depth=DEPTH,
        bottleneck=0,
        context_length=0,
        dropout=0.0,
    )
    return base(name, model)


def asymmetric(rank: int, *terms: Term) -> Experiment:
    """JiT's network with a prediction of the AsymFlow family."""
    changes = with_rank(rank, *terms)
    return dataclasses.replace(plain(f"rank{rank}"), **changes)


def with_rank(rank: int, *terms: Term) -> dict:
    """Fields of a config that predicts asymmetrically and has further terms."""
    prediction = PredictAsymmetric(rank=rank, patch=PATCH, images=2000)
    return {"prediction": prediction, "terms": [FlowMatching(), *terms]}


def decoder(kind: str, **changes: object) -> Experiment:
    """PixNerd's transformer before a neural field, DeCo's decoder or a linear layer.

    Their forward passes cost the same within 3 %: 314, 305 and 311 million operations
    an image, the linear layer behind a fifth block.
    """
    models: dict[str, Callable[[], DenoiserConfig]] = {
        "field": lambda: PixNerd(
            **SIZES, depth=DEPTH, decoder=NeuralField(width=16, depth=2)
        ),
        "deco": lambda: DeCo(
            **SIZES, depth=DEPTH, decoder=PixelMLPs(width=16, depth=3)
        ),
        "linear": lambda: PixNerd(**SIZES, depth=DEPTH + 1, decoder=LinearDecoder()),
    }
    return dataclasses.replace(base(kind, models[kind]()), **changes)


def cascade(stages: int, **changes: object) -> Experiment:
    """PixelFlow's network on 16, 32 and 64 px, or on 64 px alone."""
    config = base(f"stages{stages}", PixelFlow(**SIZES, depth=DEPTH))
    path = Pyramid(num_stages=stages)
    return dataclasses.replace(config, path=path, **changes)
