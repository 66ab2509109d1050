"""The small experiments of the study: one data set, one budget, one part changed each.

The drawings at 64 px in patches of 8: 192 numbers a patch for 192 channels, as JiT-B/16
has 768 for 768. Everything that a row does not name is the same in all rows.

Rows whose programs are the same but for numbers are a family: which directions the
prediction takes out of the noise, and the weights of the loss terms. Its programs
are compiled once; see `training.Setting`.
"""

import dataclasses
import functools
from collections.abc import Callable

from pixelflow_jax.data.emoji.source import DRAWN, EASY, Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.prediction import PredictClean, Prediction, PredictVelocity
from pixelflow_jax.flow.solver import AdamsBashforth
from pixelflow_jax.flow.time import LogitNormal
from pixelflow_jax.losses.context import Term
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching
from pixelflow_jax.losses.packaged import Lite0Distance, StLpips
from pixelflow_jax.models.deco import DeCo, PixelMLPs
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from pixelflow_jax.nn.kernels.choice import Kernels
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.optimizer import AdamW

HOLDOUT = 0.15
PATCH, CHANNELS = 8, 3
DEPTH = 4
WIDTH = 192
BATCH = 129  # three stages of a cascade share it evenly
FULL = PATCH * PATCH * CHANNELS  # the rank of velocity prediction
IMAGES = 2000  # whose patches tell the directions
EMA = (0.99, 0.998)
SIMPLE = ("Smileys & Emotion", "Flags", "Food & Drink")
SIZES = {
    "num_classes": len(DRAWN),
    "patch": PATCH,
    "width": WIDTH,
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


def asymmetric(rank: int, terms: list[Term]) -> Experiment:
    """JiT with a prediction of the AsymFlow family.

    Without its bottleneck, which would cost velocity prediction its input, and without
    its tokens of the class, which reaches the blocks by AdaLN anyway.
    """
    model = PixelGen(
        **SIZES,
        image_size=64,
        depth=DEPTH,
        bottleneck=0,
        context_length=0,
        dropout=0.0,
    )
    config = base(f"jit_rank{rank}", model)
    return dataclasses.replace(config, **with_rank(rank, terms))


def with_rank(rank: int, terms: list[Term]) -> dict:
    """Fields of a config that predicts asymmetrically and has further terms.

    Rank 0 is clean prediction, full rank velocity prediction.
    """
    prediction = PredictAsymmetric(rank=rank, patch=PATCH, images=IMAGES)
    return {"prediction": prediction, "terms": [FlowMatching(), *terms]}


def _field(**parts) -> PixNerd:
    """PixNerd whose field has 16 channels and two MLPs where `parts` name no others."""
    own = NeuralField(**{"width": 16, "depth": 2, **parts})
    return PixNerd(**SIZES, depth=DEPTH, decoder=own)


# The field, and what PixNerd's ablations change of it.
FIELDS: dict[str, dict] = {
    "field": {},
    "field_narrow": {"width": 8},
    "field_wide": {"width": 32},
    "field_shallow": {"depth": 1},
    "field_deep": {"depth": 4},
    "field_sincos": {"encoding": "sincos"},
    "field_first": {"normalised": ("first",), "output_norm": False},
}


def decoder(kind: str, rank: int, terms: list[Term]) -> Experiment:
    """PixNerd's transformer before a neural field, DeCo's decoder or a linear layer.

    Their forward passes cost the same within 3 %: 314, 305 and 311 million operations
    an image, the linear layer behind a fifth block.
    """
    models: dict[str, Callable[[], DenoiserConfig]] = {
        **{name: functools.partial(_field, **parts) for name, parts in FIELDS.items()},
        "deco": lambda: DeCo(
            **SIZES, depth=DEPTH, decoder=PixelMLPs(width=16, depth=3)
        ),
        "linear": lambda: PixNerd(**SIZES, depth=DEPTH + 1, decoder=LinearDecoder()),
    }
    config = base(kind, models[kind]())
    return dataclasses.replace(config, **with_rank(rank, terms))


def cascade(
    stages: int, prediction: Prediction, terms: list[Term], patch: int = PATCH
) -> Experiment:
    """PixelFlow's network on 16, 32 and 64 px, on the last two, or on 64 px alone."""
    model = PixelFlow(**{**SIZES, "patch": patch}, depth=DEPTH)
    config = base(f"stages{stages}", model)
    return dataclasses.replace(
        config,
        path=Pyramid(num_stages=stages),
        prediction=prediction,
        terms=[FlowMatching(), *terms],
    )


def sized(width: int, depth: int) -> Experiment:
    """Clean prediction by a network of another size, with heads of 64 channels."""
    config = asymmetric(0, [])
    sizes = {"width": width, "heads": width // 64, "depth": depth}
    model = dataclasses.replace(config.model, **sizes, feature_layer=depth // 2)
    return dataclasses.replace(config, name=f"jit_{width}x{depth}", model=model)


def in_float32() -> Experiment:
    """Clean prediction without bfloat16, nor the shorter floats of matrix units."""
    exact = Precision(compute="float32", matmul="highest")
    return dataclasses.replace(asymmetric(0, []), name="jit_float32", precision=exact)


def in_batches(times: float, rate: float) -> Experiment:
    """Clean prediction with a batch and a learning rate so many times the usual.

    It sees as many images: see `budgets.Budget`.
    """
    config = asymmetric(0, [])
    optimizer = dataclasses.replace(config.optimizer, lr=rate * config.optimizer.lr)
    return dataclasses.replace(
        config,
        name=f"jit_batch{times:.2g}_rate{rate:.2g}",
        batch_size=round(times * BATCH),
        optimizer=optimizer,
    )


@dataclasses.dataclass(frozen=True)
class Family:
    """Rows that share programs: `build(rank, terms)` makes the config of one of them.

    `terms` are all that its rows may have beside flow matching; where it is `ranked`
    the rank is that of asymmetric prediction, and says nothing elsewhere. Of rows that
    are `denoised` the loss of both splits is measured as well, for which they compile
    one program more.
    """

    build: Callable[[int, list[Term]], Experiment]
    terms: tuple[Term, ...] = ()
    ranked: bool = True
    denoised: bool = False

    def program(self) -> Experiment:
        """The config that its programs are traced with: all terms, any rank."""
        return self.build(FULL - 1, list(self.terms))


def _cascade(
    stages: int, prediction: Prediction, *terms: Term, patch: int = PATCH
) -> Family:
    build = lambda rank, terms: cascade(stages, prediction, terms, patch)
    return Family(build, terms, ranked=False)


def _alone(make: Callable[[], Experiment]) -> Family:
    """A family of one row, with nothing beside flow matching."""
    return Family(lambda rank, terms: make(), ranked=False, denoised=True)


# Width and depth; parameters and operations grow about fourfold from one to the next.
NETWORKS = {"small": (128, 2), "medium": (WIDTH, DEPTH), "large": (320, 6)}
# Of batch and learning rate: how many times the usual.
BATCHES = {
    "batch387": (3, 1),
    "batch387_root": (3, 3**0.5),
    "batch387_linear": (3, 3),
    "batch43": (1 / 3, 1),
    "batch43_root": (1 / 3, 3**-0.5),
}
# PixelGen's gate and weights; 64 px are shown as 128 to a network of 224.
PERCEPTUAL = (
    StLpips(weight=0.1, threshold=0.3),
    Lite0Distance(weight=0.1, threshold=0.3, patch=8),
)
GATES = (0.0, 0.1, 0.6)  # beside the usual 0.3
FAMILIES = {
    "jit": Family(asymmetric, (FrequencyMatching(),)),
    "perceptual": Family(asymmetric, (FrequencyMatching(), *PERCEPTUAL)),
    **{
        f"gate{threshold}": Family(
            asymmetric, (StLpips(weight=0.1, threshold=threshold),)
        )
        for threshold in GATES
    },
    **{
        kind: Family(functools.partial(decoder, kind), (FrequencyMatching(),))
        for kind in (*FIELDS, "deco", "linear")
    },
    "stages3": _cascade(3, PredictVelocity()),
    "stages2": _cascade(2, PredictVelocity()),
    "stages1": _cascade(1, PredictVelocity()),
    "stages3_patch4": _cascade(3, PredictVelocity(), patch=4),
    "stages3_clean": _cascade(3, PredictClean(), FrequencyMatching()),
    **{
        f"size_{name}": _alone(functools.partial(sized, *size))
        for name, size in NETWORKS.items()
    },
    "float32": _alone(in_float32),
    **{
        name: _alone(functools.partial(in_batches, *times))
        for name, times in BATCHES.items()
    },
}
