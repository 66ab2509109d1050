"""What is wrong with a config, told all at once, before anything is built."""

import functools
import itertools
import re
from collections.abc import Callable, Set

from pixelflow_jax import build, sharding
from pixelflow_jax.config_types import type_errors
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment, unreadable
from pixelflow_jax.models.interface import Network
from pixelflow_jax.pretrained.finetune import KINDS

CHANNELS = 3  # of the images of every data source


def validate(config: Experiment) -> None:
    """Raises ConfigError with all that is wrong, before anything is built."""
    problems = type_errors(config) or unreadable(config)
    # A part is asked how it fits the others only where each value is one it may have.
    unsound = {re.split(r"\W", problem)[0] for problem in problems}
    problems += _problems(config, unsound)
    if not problems:
        network = build.network(config)
        problems = _term_problems(config, network)
    if not problems:
        size = config.data.image_size
        guided = config.sampling.guidance.guide_weights() is not None
        guide = network if guided else None  # any will do to trace with
        drawing = build.generator(config, size, size, guide, network)
        problems = _message(drawing.check)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"The config {config.name!r:.100} cannot run:\n{listed}")


def validate_settings(config: Experiment) -> None:
    """Raises ConfigError for fields that can be set after training, such as sampling's.

    What the weights were trained with is not asked again.
    """
    problems = type_errors(config)
    if not problems:
        checks = (config.precision.check, config.kernels.check, config.mesh.build)
        problems = [problem for check in checks for problem in _message(check)]
    if problems:
        listed = "; ".join(problem.rstrip(".") for problem in problems)
        raise ConfigError(f"The config {config.name!r:.100} cannot be used: {listed}.")


def validated(config: Experiment) -> Experiment:
    """Return the config where it can run on its data; raises ConfigError else."""
    validate(config)
    validate_data(config)
    return config


def validate_data(config: Experiment) -> None:
    """Raises ConfigError where the model cannot learn from the data set."""
    source = config.data.open("train")
    problems = config.conditioner.data_problems(source, config.model)
    if config.model.channels != CHANNELS:
        problems.append(
            f"model.channels={config.model.channels} must be {CHANNELS}: images are "
            "read in colour"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def size_problems(config: Experiment, height: int, width: int) -> list[str]:
    """Why the model cannot see or draw images of `height` x `width`."""
    stages = build.stages(config)
    smallest = 2 ** max(stage.log2_downscale for stage in stages)
    unit = config.model.patch * smallest
    if len(stages) > 1 and (height % unit or width % unit):
        return [
            f"the image size {height} x {width} must be a multiple of {unit}: "
            f"model.patch={config.model.patch} times 2 for each of the "
            f"{len(stages) - 1} halvings of path.num_stages={len(stages)}"
        ]
    return config.model.problems(height // smallest, width // smallest)


def _problems(config: Experiment, unsound: Set[str]) -> list[str]:
    """What is wrong with the fields together; none of the `unsound` ones is asked."""
    checks: list[tuple[str, Callable[[], list[str]]]] = [
        (
            "path model data",
            lambda: config.path.problems() or _shape_problems(config),
        ),
        ("optimizer steps", lambda: config.optimizer.problems(config.steps)),
        ("checkpoint", lambda: config.checkpoint.problems()),
        ("log", lambda: config.log.problems()),
        ("posthoc", lambda: config.posthoc.problems() if config.posthoc else []),
        ("terms ema init_from init_ema init_reset", lambda: _own_problems(config)),
        ("conditioner model", lambda: config.conditioner.problems(config.model)),
        ("mesh batch_size accumulate", lambda: _batch_problems(config)),
        ("precision", lambda: _message(config.precision.check)),
        ("kernels", lambda: _message(config.kernels.check)),
    ]
    problems = []
    for fields, check in checks:
        if unsound.isdisjoint(fields.split()):
            problems += check()
    return problems


def _own_problems(config: Experiment) -> list[str]:
    problems = []
    if not config.terms:
        problems.append("terms is empty: there is nothing to learn from")
    if len(set(config.ema)) < len(config.ema):
        problems.append(f"ema={config.ema} names a decay twice")
    if not config.init_from and (config.init_ema or config.init_reset):
        problems.append("init_ema and init_reset are set, but init_from is empty")
    if not set(config.init_reset) <= set(KINDS):
        problems.append(f"init_reset={config.init_reset} may hold {', '.join(KINDS)}")
    return problems


def _batch_problems(config: Experiment) -> list[str]:
    """Why a batch cannot be split evenly, over devices and over time."""
    try:
        shards = sharding.batch_shards(config.mesh.build())
    except ValueError as error:
        return [str(error)]
    unit = shards * config.accumulate
    if config.batch_size % unit == 0:
        return []
    return [
        f"batch_size={config.batch_size} must be a multiple of {unit}: data x "
        f"fsdp = {shards} devices take equal parts, accumulate="
        f"{config.accumulate} times"
    ]


def _shape_problems(config: Experiment) -> list[str]:
    """What is wrong with the shapes of the data's images."""
    buckets, size = config.data.buckets, config.data.image_size
    problems = [] if buckets is None else buckets.problems(size)
    if problems:
        return problems
    by_shape = [size_problems(config, *shape) for shape in config.data.shapes]
    return list(dict.fromkeys(itertools.chain.from_iterable(by_shape)))


def _term_problems(config: Experiment, network: Network) -> list[str]:
    """What is wrong with the loss terms and the teachers they need."""
    objective = build.objective(config, network)
    problems = objective.terms.problems()
    required = objective.terms.required_features
    for shape in config.data.shapes:
        of_teachers = config.teachers.problems(required, *shape)
        problems += [problem for problem in of_teachers if problem not in problems]
    trace = functools.partial(objective.check, *config.data.shapes[0])
    return problems or _message(trace)


def _message(check) -> list[str]:
    """The message of the ValueError that `check` raises, as a list; else nothing."""
    try:
        check()
    except ValueError as error:
        return [str(error)]
    return []
