"""What a config builds: networks, samplers, losses and whole training runs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from pixelflow_jax import distributed, sharding
from pixelflow_jax.data.loader import BatchLoader
from pixelflow_jax.data.plan import Batching
from pixelflow_jax.data.source import spread_captions
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.evaluation.extractors import open_extractor
from pixelflow_jax.evaluation.heldout import HeldoutLoss
from pixelflow_jax.evaluation.online import OnlineEvaluation, first_of, reference_of
from pixelflow_jax.evaluation.references import Reference, load_reference
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Stage
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.models import interface as models
from pixelflow_jax.models.interface import Network
from pixelflow_jax.sampling.batches import Generator
from pixelflow_jax.sampling.preview import Preview
from pixelflow_jax.sampling.sampler import Sampler
from pixelflow_jax.training.observe import Observer
from pixelflow_jax.training.run import TrainingRun
from pixelflow_jax.training.state import Initial
from pixelflow_jax.training.step import StepSettings
from pixelflow_jax.training.throughput import Workload


def network(config: Experiment) -> Network:
    """The denoiser as functions."""
    return models.network(
        config.model, config.precision, config.kernels, config.mesh.reduce_dtype
    )


def stages(config: Experiment) -> tuple[Stage, ...]:
    """The path from noise to data, the coarsest stage first."""
    return config.path.stages()


def sampler(config: Experiment) -> Sampler:
    """How this config's networks draw."""
    return Sampler(
        stages=stages(config),
        prediction=config.prediction,
        guidance=config.sampling.guidance,
        solver=config.sampling.solver,
        grid=config.sampling.grid,
    )


def generator(
    config: Experiment,
    height: int,
    width: int,
    guide: Network | None = None,
    own: Network | None = None,
) -> Generator:
    """Draws images of that size with this config's sampling settings.

    `guide` is the second network of guidance that needs one, `own` the config's where
    it is there already.
    """
    return Generator(
        sampler=sampler(config),
        network=own or network(config),
        conditioner=config.conditioner,
        model=config.model,
        size=(height, width),
        batch_size=config.sampling.batch_size,
        mesh=config.mesh.build(),
        guide=guide,
    )


def objective(config: Experiment, own: Network | None = None) -> Objective:
    """What a network is to learn from a batch: `own`, or else the config's anew."""
    return Objective(
        model=config.model,
        network=own or network(config),
        conditioner=config.conditioner,
        stages=stages(config),
        prediction=config.prediction,
        time=config.time,
        terms=WeightedTerms(
            terms=config.terms,
            teachers=config.teachers,
            adaptive_weight=config.adaptive_weight,
        ),
    )


def step_settings(config: Experiment) -> StepSettings:
    """What a training step needs besides the objective."""
    return StepSettings(
        optimizer=config.optimizer.build(config.steps),
        learning_rate=config.optimizer.learning_rate(config.steps),
        seed=config.seed,
        accumulate=config.accumulate,
        ema=config.ema,
        posthoc=config.posthoc.sigma_rel if config.posthoc else (),
        rules=config.mesh.rules,
    )


def training_run(
    config: Experiment, initial: Callable[[], Initial] | None = None
) -> TrainingRun:
    """Return a run of a config that `validate.validated` let through.

    `initial` reads the weights that `init_from` names (`pretrained.initial`
    does); it is called where the run has no checkpoint yet.
    """
    if bool(config.init_from) != (initial is not None):
        raise ConfigError("init_from and the initial parameters go together.")
    loss = objective(config)
    return TrainingRun(
        objective=loss,
        settings=step_settings(config),
        mesh=config.mesh.build(),
        open_data=functools.partial(open_data, config),
        preview=_preview(config, loss.network),
        steps=config.steps,
        workload=_workload(config, loss),
        checkpointing=config.checkpoint,
        logging=config.log,
        posthoc=config.posthoc,
        online=online_evaluation(config, loss.network),
        guard=config.guard,
        config=config.to_dict(),
        read_config=lambda saved: Experiment.from_dict(saved).to_dict(),
        initial=initial,
        constants=functools.partial(constants, config),
        frozen_params=loss.load_frozen(),
        observer=Observer(optimizer=config.optimizer, steps=config.steps),
    )


def open_data(config: Experiment, start: int) -> BatchLoader:
    """Return the training batches from number `start` on."""
    parts, part_count = sharding.batch_parts(config.mesh.build())
    batching = Batching(
        split="train",
        batch_size=config.batch_size,
        seed=config.seed,
        parts=parts,
        part_count=part_count,
    )
    return config.data.loader(
        batching, start=start, caption_encoder=config.conditioner.caption_encoder()
    )


def constants(config: Experiment) -> dict:
    """The prediction's constants, the same on every process: the first computes them.

    Another machine's linear algebra might round otherwise.
    """

    def images() -> Iterator[np.ndarray]:
        batching = Batching(
            split="train", batch_size=config.batch_size, seed=config.seed
        )
        with config.data.loader(batching) as batches:
            for batch in batches:
                yield batch["image"]

    def compute() -> dict[str, list]:
        made = config.prediction.constants(images())
        return {name: array.tolist() for name, array in made.items()}

    shapes = config.prediction.constant_shapes(config.model.channels)
    found = distributed.of_first(compute)
    return {name: np.asarray(found[name], s.dtype) for name, s in shapes.items()}


def _workload(config: Experiment, objective: Objective) -> Workload:
    """What a step computes, in the mean over the data."""
    buckets = config.data.open_buckets("train")
    counts = [len(bucket.records) for bucket in buckets]
    flops = [objective.forward_flops(*bucket.shape) for bucket in buckets]
    return Workload(
        batch_size=config.batch_size,
        forward_flops=float(np.average(flops, weights=counts)),
        dtype=config.precision.compute,
    )


def _preview(config: Experiment, own: Network) -> Preview:
    """Draws `log.preview_count` images: classes in turn, or held-out captions.

    Without guidance where it would need a second model.
    """
    size, count = config.data.image_size, config.log.preview_count
    config = _without_guide(config)
    reader, prompts = config.conditioner.caption_encoder(), ()
    if reader is None:
        labels = np.arange(count, dtype=np.int32) % config.model.num_classes
        given = {"label": labels}
    else:
        prompts = spread_captions(config.data.held_out(), count)
        given = reader(prompts)
    return Preview(
        generator=generator(config, size, size, own=own),
        given=given,
        prompts=prompts,
        seed=config.seed,
    )


def _without_guide(config: Experiment) -> Experiment:
    """The config without guidance where that would need a second model."""
    if config.sampling.guidance.guide_weights() is None:
        return config
    plain = dataclasses.replace(config.sampling, guidance=ClassifierFree())
    return dataclasses.replace(config, sampling=plain)


def online_evaluation(config: Experiment, own: Network) -> OnlineEvaluation | None:
    """What `config.online` measures in training; its network is read here and now.

    It draws for the classes or captions of training images. Raises EvaluationError or
    WeightsError for a reference or a network that is absent or does not fit.
    """
    policy, size = config.online, config.data.image_size
    if policy is None:
        return None
    extractor = open_extractor(policy.extractor, policy.weights)
    if policy.reference:
        known = load_reference(policy.reference)
        known.check_images(size, size)
        known.check_extractor(extractor)

    def compared() -> Reference:
        if policy.reference:
            return load_reference(policy.reference)
        with _one_pass(config) as batches:
            return reference_of(batches, policy.metric, extractor)

    read = config.conditioner.example(1)
    with _one_pass(config) as batches:
        given = first_of(batches, read, policy.num_samples)
    return OnlineEvaluation(
        policy=policy,
        generator=generator(_without_guide(config), size, size, own=own),
        given=given,
        seed=config.seed,
        extractor=extractor,
        compared=compared,
    )


def _one_pass(config: Experiment) -> BatchLoader:
    """All training images once, in an order of their own, on every process."""
    batching = Batching(
        split="train", batch_size=config.batch_size, seed=config.seed, repeat=False
    )
    captions = config.conditioner.caption_encoder()
    return config.data.loader(batching, caption_encoder=captions)


def heldout_loss(
    config: Experiment, params: dict, batch_size: int, constants: dict | None = None
) -> dict[str, float]:
    """Loss on the test split (`evaluation.heldout`); `constants` of the prediction."""
    loss = HeldoutLoss(
        network=network(config),
        stages=stages(config),
        prediction=config.prediction,
        conditioner=config.conditioner,
        seed=config.seed,
    )
    mesh = config.mesh.build()
    parts, part_count = sharding.batch_parts(mesh)
    batching = Batching(
        split="test",
        batch_size=batch_size,
        seed=config.seed,
        shuffle=False,
        repeat=False,
        parts=parts,
        part_count=part_count,
    )
    captions = config.conditioner.caption_encoder()
    with config.data.loader(batching, caption_encoder=captions) as batches:
        frozen_params = config.conditioner.load() | models.load_frozen(config.model)
        frozen_params |= {CONSTANTS: constants} if constants else {}
        return loss(params, batches, mesh, frozen_params)
