"""The typed root of every config: validates everything, builds everything."""

import copy
import dataclasses

from pixelflow_jax import sharding
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.config_io import from_dict, to_dict
from pixelflow_jax.data.buckets import Buckets
from pixelflow_jax.data.emoji.source import Emoji
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.data.transforms import CenterCrop, RandomCrop
from pixelflow_jax.encoders.bert import Bert, BertGeometry
from pixelflow_jax.encoders.qwen3 import Qwen3, Qwen3Geometry
from pixelflow_jax.encoders.t5 import T5, T5Geometry
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.path import Pyramid, Straight
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun
from pixelflow_jax.flow.time import Grid, LogitNormal, Uniform
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.kernels.choice import Kernels
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.lpips import LpipsNet
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW


@dataclasses.dataclass(kw_only=True)
class Experiment:
    """One run: data, model, loss, optimizer, and how to sample from the result.

    `ema` lists the decays of the weight averages; the first one is drawn from.
    `accumulate` splits each batch into that many parts, one after the other.
    `path` leads from noise to data, in one stage or in a cascade. `teachers` are the
    frozen networks some terms look through, `adaptive_weight` their adaptive weight.
    `init_from` names weights to begin with instead of random ones: all that
    `Pipeline.from_pretrained` reads. All averages begin there too, at the average
    `init_ema` of a run ("": its first, "raw": none); "both" begins the weights with its
    weights and every average with its average of the same decay. `init_reset` names the
    kinds of differences from that model that may begin anew: see `training.initial`.
    """

    name: str
    seed: int = 0
    steps: int = 400_000
    batch_size: int = 256
    accumulate: int = 1
    init_from: str = ""
    init_ema: str = ""
    init_reset: tuple[str, ...] = ()
    data: Data = dataclasses.field(default_factory=Data)
    path: Straight | Pyramid = dataclasses.field(default_factory=Straight)
    model: PixNerd | PixelFlow | PixelGen | PixNerdText | PixelGenText = (
        dataclasses.field(default_factory=PixNerd)
    )
    prediction: PredictVelocity | PredictClean = dataclasses.field(
        default_factory=PredictVelocity
    )
    time: LogitNormal | Uniform = dataclasses.field(default_factory=LogitNormal)
    terms: list[FlowMatching | Repa | Lpips | PDino] = dataclasses.field(
        default_factory=lambda: [FlowMatching()]
    )
    teachers: Teachers = dataclasses.field(default_factory=Teachers)
    adaptive_weight: AdaptiveWeight | None = None
    conditioner: ClassLabels | Text = dataclasses.field(default_factory=ClassLabels)
    optimizer: AdamW = dataclasses.field(default_factory=AdamW)
    ema: tuple[float, ...] = (0.9999,)
    precision: Precision = dataclasses.field(default_factory=Precision)
    kernels: Kernels = dataclasses.field(default_factory=Kernels)
    mesh: sharding.MeshShape = dataclasses.field(default_factory=sharding.MeshShape)
    checkpoint: Checkpointing = dataclasses.field(default_factory=Checkpointing)
    log: Logging = dataclasses.field(default_factory=Logging)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    def to_dict(self) -> dict:
        """The config as JSON-able dicts."""
        return to_dict(self)

    @staticmethod
    def from_dict(data: dict) -> "Experiment":
        """The config that `to_dict` wrote; ConfigError for one of another version."""
        try:
            return from_dict(data, NODES)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def choose_variant(name: str, variants: dict) -> Experiment:
    """A copy of what `variants[name]()` gives, so that variants may share parts.

    Raises ConfigError, naming all variants, where there is none of that name.
    """
    if name not in variants:
        raise ConfigError(f"No variant {name!r}: choose from {', '.join(variants)}.")
    return copy.deepcopy(variants[name]())


# Every class a config may hold: what a config file is read back into.
NODES = (
    *(AdamW, AdamsBashforth, AutoGuidance, AdaptiveWeight, Buckets),
    *(Bert, BertGeometry, Qwen3, Qwen3Geometry),
    *(CenterCrop, Checkpointing),
    *(ClassLabels, ClassifierFree, Data, DinoV2, Dopri5, Emoji, Euler, Experiment),
    *(FlowMatching, Geometry, Grid, Heun, ImageFolder, LinearDecoder, Logging),
    *(Kernels, LogitNormal, StackConfig, Lpips, LpipsNet, NeuralField, PDino),
    *(PixelFlow, PixelGen, PixelGenText, PixNerd, PixNerdText),
    *(Precision, PredictClean, PredictVelocity, Pyramid, RandomCrop, Repa, Sampling),
    *(Shards, Straight, T5, T5Geometry, Teachers, Text, Tfds, Uniform),
    sharding.MeshShape,
)
