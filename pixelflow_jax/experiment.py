"""The typed root of every config: validates everything, builds everything."""

import copy
import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from pixelflow_jax import sharding
from pixelflow_jax.conditioning.conditioner import ClassLabels, Text
from pixelflow_jax.config_io import from_dict, to_dict, type_errors, walk
from pixelflow_jax.data.buckets import Buckets
from pixelflow_jax.data.emoji.source import Emoji
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import BatchLoader, Data
from pixelflow_jax.data.shards import Shards
from pixelflow_jax.data.source import spread_captions
from pixelflow_jax.data.tfds import Tfds
from pixelflow_jax.data.transforms import CenterCrop, RandomCrop
from pixelflow_jax.encoders.bert import Bert, BertGeometry
from pixelflow_jax.encoders.qwen3 import Qwen3, Qwen3Geometry
from pixelflow_jax.encoders.t5 import T5, T5Geometry
from pixelflow_jax.evaluation.heldout import HeldoutLoss
from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.path import Pyramid, Stage, Straight
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun
from pixelflow_jax.flow.time import Grid, LogitNormal, Uniform
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.objective import FlowMatching, term_name
from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa
from pixelflow_jax.models.interface import Network, network
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixelgen_text import PixelGenText
from pixelflow_jax.models.pixnerd import LinearDecoder, NeuralField, PixNerd
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.pretrained.finetune import KINDS, Initial
from pixelflow_jax.sampling.batches import Generator
from pixelflow_jax.sampling.preview import Preview
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.lpips import LpipsNet
from pixelflow_jax.teachers.suite import Teachers, union
from pixelflow_jax.training.checkpoint import Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.loop import TrainingRun
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.training.step import Objective


class ConfigError(ValueError):
    """Fields that do not make sense, alone or together; lists all of them."""


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

    def validate(self) -> None:
        """Raises ConfigError with all that is wrong, before anything is built."""
        # Each check presumes that those before it found nothing.
        problems = type_errors(self) or self._problems() or self._term_problems()
        if not problems:
            size = self.data.image_size
            automatic = isinstance(self.sampling.guidance, AutoGuidance)
            guide = self.network() if automatic else None  # any network, to trace with
            problems = _message(self.generator(size, size, guide).check)
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise ConfigError(f"The config {self.name!r} cannot run:\n{listed}")

    def _problems(self) -> list[str]:
        found = [
            *(self.path.problems() or self._shape_problems()),
            *self.optimizer.problems(self.steps),
            *self.checkpoint.problems(),
            *self.log.problems(),
            *self._own_problems(),
            *_message(self.precision.check),
        ]
        loops = [
            (path, node) for path, node in walk(self) if isinstance(node, StackConfig)
        ]
        for path, loop in loops:
            found += [f"{path}: {message}" for message in _message(loop.check)]
        return found

    def _own_problems(self) -> list[str]:
        found = []
        if self.steps < 1 or self.accumulate < 1:
            found.append("steps and accumulate must be at least 1")
        if not 0 <= self.seed < 2**32:
            found.append("seed must be at least 0 and below 2**32")
        if self.data.image_size < 1:
            found.append("data.image_size must be at least 1")
        if not self.terms:
            found.append("terms is empty: there is nothing to learn from")
        if any(not 0 <= decay < 1 for decay in self.ema):
            found.append(f"ema={self.ema} must hold decays in [0, 1)")
        if len(set(self.ema)) < len(self.ema):
            found.append(f"ema={self.ema} names a decay twice")
        if not self.init_from and (self.init_ema or self.init_reset):
            found.append("init_ema and init_reset are set, but init_from is empty")
        if not set(self.init_reset) <= set(KINDS):
            found.append(f"init_reset={self.init_reset} may hold {', '.join(KINDS)}")
        found += self.conditioner.problems(self.model)
        if self.sampling.batch_size < 1:
            found.append("sampling.batch_size must be at least 1")
        try:
            shards = sharding.batch_shards(self.mesh.build())
        except ValueError as error:
            return [*found, str(error)]
        unit = shards * max(1, self.accumulate)
        if self.batch_size < 1 or self.batch_size % unit:
            found.append(
                f"batch_size={self.batch_size} must be a multiple of {unit}: data x "
                f"fsdp = {shards} devices take equal parts, accumulate="
                f"{self.accumulate} times"
            )
        return found

    def _shape_problems(self) -> list[str]:
        """What is wrong with the shapes of the data's images."""
        buckets, size = self.data.buckets, self.data.image_size
        found = [] if buckets is None or size < 1 else buckets.problems(size)
        if found:
            return found
        by_shape = [self.size_problems(*shape) for shape in self.data.shapes]
        return list(dict.fromkeys(problem for found in by_shape for problem in found))

    def size_problems(self, height: int, width: int) -> list[str]:
        """Why the model cannot see or draw images of `height` x `width`."""
        stages = self.stages()
        smallest = 2 ** max(stage.log2_downscale for stage in stages)
        unit = self.model.patch * smallest
        if len(stages) > 1 and (height % unit or width % unit):
            return [
                f"the image size {height} x {width} must be a multiple of {unit}: "
                f"model.patch={self.model.patch} times 2 for each of the "
                f"{len(stages) - 1} log2_downscale of path.num_stages={len(stages)}"
            ]
        return self.model.problems(height // smallest, width // smallest)

    def _term_problems(self) -> list[str]:
        """What is wrong with the loss terms and the teachers they need."""
        found = [problem for term in self.terms for problem in term.problems()]
        names = [term_name(term) for term in self.terms]
        if len(set(names)) < len(names):
            found.append(f"terms {names}: each kind may be there once")
        required = union(term.required_features() for term in self.terms)
        for shape in self.data.shapes:
            seen = self.teachers.problems(required, *shape)
            found += [problem for problem in seen if problem not in found]
        if self.adaptive_weight is not None:
            found += self.adaptive_weight.problems()
            if not any(term.perceptual for term in self.terms):
                found.append("balance is set but no term is perceptual: remove it")
        return found or _message(self._trace_loss)

    def _trace_loss(self) -> None:
        """Trace the loss without compiling it; raises what it would raise."""
        objective = self.objective()
        count = len(objective.stages)
        shape = (count, *self.data.shapes[0], self.model.channels)
        image = jax.ShapeDtypeStruct(shape, "float32")
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))

        def loss(
            params: dict, batch: dict, keys: jax.Array, frozen_params: dict
        ) -> jax.Array:
            drawn = objective.draw(batch, keys, frozen_params)
            return objective.loss(params, drawn, frozen_params, objective.carry())[0]

        params = jax.eval_shape(objective.init, jax.random.key(0))
        batch = {"image": image, **self.conditioner.example(count)}
        jax.eval_shape(loss, params, batch, keys, objective.frozen_shapes())

    def validate_data(self) -> None:
        """Raises ConfigError where the model cannot learn from the data set."""
        source = self.data.open("train")
        problems = self.conditioner.data_problems(source, self.model)
        if problems:
            raise ConfigError("\n".join(problems))

    def stages(self) -> tuple[Stage, ...]:
        """The path from noise to data, the coarsest stage first."""
        return self.path.stages()

    def network(self) -> Network:
        """The denoiser as functions."""
        return network(self.model, self.precision)

    def generator(
        self, height: int, width: int, guide: Network | None = None
    ) -> Generator:
        """Draws images of that size with this config's sampling settings.

        `guide` is the weaker network of `AutoGuidance`.
        """
        return Generator(
            model=self.model,
            network=self.network(),
            guide=guide,
            conditioner=self.conditioner,
            stages=self.stages(),
            prediction=self.prediction,
            guidance=self.sampling.guidance,
            solver=self.sampling.solver,
            grid=self.sampling.grid,
            size=(height, width),
            batch_size=self.sampling.batch_size,
            doubled=self.sampling.doubled,
            mesh=self.mesh.build(),
        )

    def objective(self) -> Objective:
        """What a training step is made of."""
        return Objective(
            model=self.model,
            network=self.network(),
            stages=self.stages(),
            prediction=self.prediction,
            time=self.time,
            terms=self.terms,
            conditioner=self.conditioner,
            optimizer=self.optimizer.build(self.steps),
            learning_rate=self.optimizer.learning_rate(self.steps),
            seed=self.seed,
            accumulate=self.accumulate,
            teachers=self.teachers,
            adaptive_weight=self.adaptive_weight,
        )

    def run(self, initial: Callable[[], Initial] | None = None) -> TrainingRun:
        """A training run, ready for `training.loop.train`; validates first.

        `initial` reads what `init_from` names (`published.initial` does); it is called
        where the run has no checkpoint yet.
        """
        self.validate()
        self.validate_data()
        if bool(self.init_from) != (initial is not None):
            raise ConfigError("init_from and the initial parameters go together.")
        objective = self.objective()
        return TrainingRun(
            objective=objective,
            ema=self.ema,
            mesh=self.mesh.build(),
            open_data=self._open_data,
            preview=self._preview(),
            steps=self.steps,
            batch_size=self.batch_size,
            forward_flops=self._forward_flops(objective),
            precision=self.precision.compute,
            checkpointing=self.checkpoint,
            logging=self.log,
            config=self.to_dict(),
            initial=initial,
            frozen_params=objective.load_frozen(),
        )

    def _open_data(self, start: int) -> BatchLoader:
        return self.data.loader(
            split="train",
            batch_size=self.batch_size,
            seed=self.seed,
            start=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            reader=self.conditioner.reader(),
        )

    def _forward_flops(self, objective: Objective) -> float:
        """Operations of a forward pass for one image, in the mean over the data."""
        streams = self.data.streams("train")
        counts = [len(stream.records) for stream in streams]
        flops = [objective.forward_flops(*stream.shape) for stream in streams]
        return float(np.average(flops, weights=counts))

    def _preview(self) -> Preview:
        """Draws `log.preview_count` images: classes in turn, or held-out captions.

        Without guidance where it would need a second model.
        """
        size, count = self.data.image_size, self.log.preview_count
        config = self
        if isinstance(self.sampling.guidance, AutoGuidance):
            plain = dataclasses.replace(self.sampling, guidance=ClassifierFree())
            config = dataclasses.replace(self, sampling=plain)
        reader, prompts = self.conditioner.reader(), ()
        if reader is None:
            labels = np.arange(count, dtype=np.int32) % self.model.num_classes
            given = {"label": labels}
        else:
            prompts = spread_captions(self.data.held_out(), count)
            given = reader(prompts)
        return Preview(
            generator=config.generator(size, size),
            given=given,
            prompts=prompts,
            seed=self.seed,
        )

    def heldout_loss(self, params: dict, batch_size: int) -> dict[str, float]:
        """Loss on the test split; see `evaluation.heldout`."""
        self.validate_data()
        loss = HeldoutLoss(
            network=self.network(),
            stages=self.stages(),
            prediction=self.prediction,
            conditioner=self.conditioner,
            seed=self.seed,
        )
        with self.data.loader(
            split="test",
            batch_size=batch_size,
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            shuffle=False,
            repeat=False,
            reader=self.conditioner.reader(),
        ) as batches:
            frozen_params = self.conditioner.load()
            return loss(params, batches, self.mesh.build(), frozen_params)


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
    *(LogitNormal, StackConfig, Lpips, LpipsNet, NeuralField, PDino),
    *(PixelFlow, PixelGen, PixelGenText, PixNerd, PixNerdText),
    *(Precision, PredictClean, PredictVelocity, Pyramid, RandomCrop, Repa, Sampling),
    *(Shards, Straight, T5, T5Geometry, Teachers, Text, Tfds, Uniform),
    sharding.MeshShape,
)


def _message(check) -> list[str]:
    """The message of the ValueError that `check` raises, as a list; else nothing."""
    try:
        check()
    except ValueError as error:
        return [str(error)]
    return []
