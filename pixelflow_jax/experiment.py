"""The typed root of every config: what a run is made of, and how it is written down.

A field's annotation says what it may hold: a value, the class of a part, or a Protocol,
which every config class that names it as its base satisfies (see `registry`). Classes
that can be reached from here are those that a config may hold.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping

from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.config_io import from_dict, to_dict, walk
from pixelflow_jax.config_types import (
    alternatives,
    field_types,
    is_node_type,
    type_errors,
)
from pixelflow_jax.config_versions import FORMAT, VERSION, migrate
from pixelflow_jax.data.loader import Data
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.evaluation.online import OnlineMetric
from pixelflow_jax.flow.path import Path, Straight
from pixelflow_jax.flow.prediction import Prediction, PredictVelocity
from pixelflow_jax.flow.time import LogitNormal, TimeSampler
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.context import Term
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.models.pixnerd import PixNerd
from pixelflow_jax.nn.kernels.choice import Kernels
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.registry import group_of, implementations, is_protocol
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.guard import Guard
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.training.posthoc import PostHocEMA
from pixelflow_jax.values import Batch, Count, Name, Place, Rate, Seed, Title


@dataclasses.dataclass(kw_only=True)
class Experiment:
    """One run: data, model, loss, optimizer, and how to sample from the result.

    `ema` lists the decays of the weight averages; the first one is drawn from. Each
    costs 4 bytes a parameter of memory, and 8 of memory traffic a step. `posthoc` keeps
    what averages of any width are made of once the run is over; `online` measures the
    first average in the course of training, and keeps the best checkpoint.
    `accumulate` splits each batch into that many parts, one after the other.
    `path` leads from noise to data, in one stage or in a cascade. `teachers` are the
    frozen networks that some terms look through, `adaptive_weight` the weight of the
    perceptual terms that is found anew while training. `init_from` names weights to
    begin with instead of random ones: all that `Pipeline.from_pretrained` reads. All
    averages begin there too, at the average `init_ema` of a run ("": its first, "raw":
    none); "both" begins the weights with its weights and every average with its average
    of the same decay. `init_reset` names the kinds of differences from that model that
    may begin anew: see `pretrained.finetune`.
    """

    name: Title
    seed: Seed = 0
    steps: Count = 400_000
    batch_size: Batch = 256
    accumulate: Batch = 1
    init_from: Place = ""
    init_ema: Place = ""
    init_reset: tuple[Name, ...] = ()
    data: Data = dataclasses.field(default_factory=Data)
    path: Path = dataclasses.field(default_factory=Straight)
    model: DenoiserConfig = dataclasses.field(default_factory=PixNerd)
    prediction: Prediction = dataclasses.field(default_factory=PredictVelocity)
    time: TimeSampler = dataclasses.field(default_factory=LogitNormal)
    terms: list[Term] = dataclasses.field(default_factory=lambda: [FlowMatching()])
    teachers: Teachers = dataclasses.field(default_factory=Teachers)
    adaptive_weight: AdaptiveWeight | None = None
    conditioner: Conditioner = dataclasses.field(default_factory=ClassLabels)
    optimizer: AdamW = dataclasses.field(default_factory=AdamW)
    ema: tuple[Rate, ...] = (0.9999,)
    posthoc: PostHocEMA | None = None
    online: OnlineMetric | None = None
    precision: Precision = dataclasses.field(default_factory=Precision)
    kernels: Kernels = dataclasses.field(default_factory=Kernels)
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    guard: Guard = dataclasses.field(default_factory=Guard)
    checkpoint: Checkpointing = dataclasses.field(default_factory=Checkpointing)
    log: Logging = dataclasses.field(default_factory=Logging)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)

    @property
    def average_names(self) -> tuple[str, ...]:
        """What the averages are called, the one to draw from first."""
        posthoc = self.posthoc.names if self.posthoc else ()
        return (*map(str, self.ema), *posthoc)

    def to_dict(self) -> dict:
        """The config as JSON-able dicts, with the version of its words."""
        written = to_dict(self)
        return {"class": written.pop("class"), FORMAT: VERSION, **written}

    @staticmethod
    def from_dict(data: dict) -> "Experiment":
        """The config that `to_dict` of this or an earlier version wrote.

        Raises ConfigError for one of a later version, and for what is no config.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"This is no config, but {str(data)[:100]!r}.")
        config = from_dict(migrate(data), node_classes().values())
        if not isinstance(config, Experiment):
            raise ConfigError(f"This is no Experiment, but a {type(config).__name__}.")
        if problems := type_errors(config):
            raise ConfigError(f"This config cannot be read: {'; '.join(problems[:5])}.")
        return config


def node_classes() -> dict[str, type]:
    """Every class that a config may hold, by its name.

    Those that fields name, from `Experiment` on, and all of the kinds that they name.
    Raises ConfigError for two of one name.
    """
    classes: dict[str, type] = {}
    waiting: list[type] = [Experiment]
    while waiting:
        cls = waiting.pop()
        if is_protocol(cls):
            waiting += implementations(cls).values()
        elif cls.__name__ not in classes:
            classes[cls.__name__] = cls
            for wanted in field_types(cls).values():
                waiting += filter(is_node_type, alternatives(wanted))
        elif classes[cls.__name__] is not cls:
            both = f"{classes[cls.__name__].__module__} and {cls.__module__}"
            raise ConfigError(
                f"Two config classes are called {cls.__name__}, in {both}: rename one."
            )
    return classes


def unreadable(config: Experiment) -> list[str]:
    """Nodes of classes that no checkpoint could be read back into."""
    known, problems = node_classes(), []
    for path, node in walk(config):
        cls = type(node)
        if known.get(cls.__name__) is not cls:
            problems.append(
                f"{path}={cls.__name__}(...) could not be read back from a checkpoint, "
                f"which does not know the class from {cls.__module__}: {_remedy(cls)}"
            )
    return problems


def _remedy(cls: type) -> str:
    """How a user's own class becomes one that a config may hold."""
    kinds = [base for base in cls.__mro__ if is_protocol(base)]
    if not kinds:
        return f"use {cls.__mro__[1].__name__} itself"
    group = group_of(kinds[0])
    return (
        f"put the file that defines it into {group.replace('.', '/')}/, or into a "
        f"package of your own that names it as an entry point of the group {group!r}"
    )


def choose_variant(
    name: str, variants: Mapping[str, Callable[[], Experiment]]
) -> Experiment:
    """A copy of what `variants[name]()` gives, so that variants may share parts.

    A config file keeps them in a dict VARIANTS, from which they are listed. Raises
    ConfigError, naming all variants, where there is none of that name.
    """
    if name not in variants:
        raise ConfigError(f"No variant {name!r}: choose from {', '.join(variants)}.")
    return copy.deepcopy(variants[name]())
