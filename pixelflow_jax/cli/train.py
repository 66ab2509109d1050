"""`pixelflow train`: a run, from its newest checkpoint if it has one."""

import dataclasses
import functools
import pathlib

import jax
from absl import flags

from pixelflow_jax import backend, build
from pixelflow_jax.cli import estimate, extending, shared
from pixelflow_jax.errors import ConfigError, UserError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.pretrained.initial import initial_weights
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.profile import Window
from pixelflow_jax.validate import validate, validate_data

EXTEND = flags.DEFINE_enum(
    "extend",
    None,
    ["constant", "restart"],
    "How a decaying learning rate goes on where --config.steps of a run that has begun "
    "is changed: constant at what it is, or the whole schedule anew.",
)

PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "START:STOP, steps counted from 1: trace these for XProf, into the run's profile/.",
)


def run_training(
    config: Experiment,
    workdir: pathlib.Path,
    extend: extending.Kind | None = None,
    yes: bool = False,
    profile: str = "",
) -> bool:
    """Train `config` in `workdir` to its end, or to the next signal.

    Returns whether it came to its end. `extend` is for a run that has begun
    (`extending.resumed`); `yes` lets what is enormous begin; `profile` are steps to
    trace, as START:STOP.
    """
    window = Window.parse(profile) if profile else None
    config = extending.resumed(config, workdir, extend)
    start = functools.partial(initial_weights, config) if config.init_from else None
    validate(config)
    estimate.of_training(config).check(yes, workdir)
    _check_data(config)
    run = dataclasses.replace(build.training_run(config, start), profile=window)
    shared.writable(workdir)
    backend.keep_programs()
    state = train(run, workdir)
    if int(state.step) < config.steps:
        return False
    if jax.process_index() == 0:
        print(f"Checkpoints, curves and previews are in {workdir}.")
    return True


def _check_data(config: Experiment) -> None:
    """Raises a UserError where data cannot be used, with what else is missing."""
    try:
        validate_data(config)
    except UserError as error:
        try:  # what would be found missing next
            build.objective(config).load_frozen()
        except UserError as missing:
            raise ConfigError(f"{error}\n  {missing}") from error
        raise
