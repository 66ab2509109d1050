"""What is wrong with a config, told all at once, before anything is built."""

import functools
import itertools

from pixelflow_jax import build, sharding
from pixelflow_jax.config_io import walk
from pixelflow_jax.config_types import type_errors
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment, unreadable
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.pretrained.finetune import KINDS


def validate(config: Experiment) -> None:
    """Raises ConfigError with all that is wrong, before anything is built."""
    # Each check presumes that those before it passed.
    problems = type_errors(config) or unreadable(config)
    problems = problems or _problems(config) or _term_problems(config)
    if not problems:
        size = config.data.image_size
        guided = config.sampling.guidance.guide_weights() is not None
        # Any network will do to trace with.
        guide = build.network(config) if guided else None
        problems = _message(build.generator(config, size, size, guide).check)
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ConfigError(f"The config {config.name!r} cannot run:\n{listed}")


def validated(config: Experiment) -> Experiment:
    """Return the config where it can run on its data; raises ConfigError else."""
    validate(config)
    validate_data(config)
    return config


def validate_data(config: Experiment) -> None:
    """Raises ConfigError where the model cannot learn from the data set."""
    source = config.data.open("train")
    problems = config.conditioner.data_problems(source, config.model)
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


def _problems(config: Experiment) -> list[str]:
    problems = [
        *(config.path.problems() or _shape_problems(config)),
        *config.optimizer.problems(config.steps),
        *config.checkpoint.problems(),
        *config.log.problems(),
        *(config.posthoc.problems() if config.posthoc else ()),
        *(config.online.problems() if config.online else ()),
        *_own_problems(config),
        *_message(config.precision.check),
        *_message(config.kernels.check),
    ]
    loops = [
        (path, node) for path, node in walk(config) if isinstance(node, StackConfig)
    ]
    for path, loop in loops:
        problems += [f"{path}: {message}" for message in _message(loop.check)]
    return problems


def _own_problems(config: Experiment) -> list[str]:
    problems = []
    if config.steps < 1 or config.accumulate < 1:
        problems.append("steps and accumulate must be at least 1")
    if not 0 <= config.seed < 2**32:
        problems.append("seed must be at least 0 and below 2**32")
    if config.data.image_size < 1:
        problems.append("data.image_size must be at least 1")
    if not config.terms:
        problems.append("terms is empty: there is nothing to learn from")
    if any(not 0 <= decay < 1 for decay in config.ema):
        problems.append(f"ema={config.ema} must hold decays in [0, 1)")
    if len(set(config.ema)) < len(config.ema):
        problems.append(f"ema={config.ema} names a decay twice")
    if not config.init_from and (config.init_ema or config.init_reset):
        problems.append("init_ema and init_reset are set, but init_from is empty")
    if not set(config.init_reset) <= set(KINDS):
        problems.append(f"init_reset={config.init_reset} may hold {', '.join(KINDS)}")
    problems += config.conditioner.problems(config.model)
    if config.sampling.batch_size < 1:
        problems.append("sampling.batch_size must be at least 1")
    try:
        shards = sharding.batch_shards(config.mesh.build())
    except ValueError as error:
        return [*problems, str(error)]
    unit = shards * max(1, config.accumulate)
    if config.batch_size < 1 or config.batch_size % unit:
        problems.append(
            f"batch_size={config.batch_size} must be a multiple of {unit}: data x "
            f"fsdp = {shards} devices take equal parts, accumulate="
            f"{config.accumulate} times"
        )
    return problems


def _shape_problems(config: Experiment) -> list[str]:
    """What is wrong with the shapes of the data's images."""
    buckets, size = config.data.buckets, config.data.image_size
    problems = [] if buckets is None or size < 1 else buckets.problems(size)
    if problems:
        return problems
    by_shape = [size_problems(config, *shape) for shape in config.data.shapes]
    return list(dict.fromkeys(itertools.chain.from_iterable(by_shape)))


def _term_problems(config: Experiment) -> list[str]:
    """What is wrong with the loss terms and the teachers they need."""
    objective = build.objective(config)
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
