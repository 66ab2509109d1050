"""Runs made longer or shorter after they began: what becomes of the learning rate."""

import contextlib
import dataclasses
import json
import pathlib
from typing import Literal, NamedTuple

import jax
import numpy as np

from pixelflow_jax.cli.shared import SAVED
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.optimizer import Extension, shrunk_warmup

Kind = Literal["constant", "restart"]
FADED = 1e-3  # the share of the full learning rate below which nothing is learnt


class Begun(NamedTuple):
    """A run that has saved something: its newest step, and its config."""

    step: int
    config: Experiment


def with_steps(config: Experiment, steps: int) -> Experiment:
    """A config of another number of steps; its warm-up shrinks where it must."""
    return shrunk(dataclasses.replace(config, steps=steps))


def shrunk(config: Experiment) -> Experiment:
    """A config whose warm-up leaves some of its steps; says so where it shrinks."""
    full = config.optimizer.warmup
    warmup = shrunk_warmup(full, config.steps)
    if warmup == full or config.steps < 1:
        return config
    _say(f"steps={config.steps}: the warm-up takes {warmup} of them, not {full}.")
    optimizer = dataclasses.replace(config.optimizer, warmup=warmup)
    return dataclasses.replace(config, optimizer=optimizer)


def begun(workdir: pathlib.Path) -> Begun | None:
    """The run in a workdir; None where nothing is saved, or nothing that can be read.

    Extensions are taken from its config.json as well: the newest checkpoint may be
    older than the last of them.
    """
    if not (workdir / SAVED).is_dir():
        return None
    with contextlib.closing(Checkpointer(workdir / SAVED, None)) as saved:
        step = saved.latest()
        if step is None:
            return None
        with contextlib.suppress(ConfigError):
            config = Experiment.from_dict(saved.config(step))
            return Begun(step, _last_sitting(workdir) or config)
    return None


def resumed(
    config: Experiment, workdir: pathlib.Path, extend: Kind | None
) -> Experiment:
    """The config with which the run in `workdir` goes on as `config` asks.

    Extensions of earlier sittings stay. Raises ConfigError where another number of
    steps would change the learning rate at once and `extend` does not say how.
    """
    run = begun(workdir)
    if run is None:
        if extend:
            raise ConfigError(
                f"--extend={extend} is for a run that has begun, and {workdir} holds "
                "no checkpoint: leave it away."
            )
        return config
    before = run.config
    known, given = before.optimizer.extended, config.optimizer.extended
    if known[: len(given)] == given:
        config = _extended(config, known)
    if config.steps == before.steps:
        return config
    if config.steps <= run.step:
        raise ConfigError(
            f"The run in {workdir} is at step {run.step:,}, so that nothing is left to "
            f"train with steps={config.steps:,}: give a higher --config.steps (it was "
            f"last {before.steps:,})."
        )
    full = before.optimizer.warmup
    if config.optimizer.warmup == shrunk_warmup(full, config.steps):
        optimizer = dataclasses.replace(config.optimizer, warmup=full)
        config = dataclasses.replace(config, optimizer=optimizer)
    if not config.optimizer.depends_on_steps or "steps" in config.checkpoint.allow:
        return config
    if extend is None:
        raise ConfigError(_offer(config, run, workdir))
    return _taken_over(config, run, extend)


def _last_sitting(workdir: pathlib.Path) -> Experiment | None:
    """The config in a workdir, if it is whole."""
    try:
        text = (workdir / "config.json").read_text("utf-8")
        return Experiment.from_dict(json.loads(text))
    except (OSError, ValueError, RecursionError):
        return None


def _extended(config: Experiment, extended: tuple[Extension, ...]) -> Experiment:
    optimizer = dataclasses.replace(config.optimizer, extended=extended)
    return dataclasses.replace(config, optimizer=optimizer)


def _taken_over(config: Experiment, run: Begun, kind: Kind) -> Experiment:
    """The config whose learning rate goes on from the newest checkpoint by `kind`."""
    rate = _rate(run.config, run.step)
    if kind == "constant" and rate < FADED * config.optimizer.lr:
        raise ConfigError(
            f"--extend=constant would go on with a learning rate of {rate:.3g}, which "
            f"is what the {config.optimizer.schedule} schedule has come to at step "
            f"{run.step:,}: nothing would be learnt. Take --extend=restart."
        )
    following = Extension(step=run.step, planned=run.config.steps, kind=kind)
    config = _extended(config, (*run.config.optimizer.extended, following))
    left = config.steps - run.step
    how = f"stays at {rate:.3g}"
    if kind == "restart":
        warmup = shrunk_warmup(config.optimizer.warmup, left)
        how = f"begins anew, with {warmup:,} steps of warm-up"
    _say(
        f"From step {run.step:,} on, for {left:,} steps, the learning rate {how}. This "
        "is kept in the run's config: the next time no flag is needed."
    )
    return config


def _offer(config: Experiment, run: Begun, workdir: pathlib.Path) -> str:
    """What another number of steps would do to the learning rate, and what to do."""
    schedule, step = config.optimizer.schedule, run.step
    now, then = _rate(run.config, step), _rate(config, step)
    constant = f"--extend=constant keeps it at {now:.3g}"
    if now < FADED * config.optimizer.lr:
        constant = f"--extend=constant would leave it at {now:.3g}, for nothing"
    return (
        f"The run in {workdir} is at step {step:,} of {run.config.steps:,}, where its "
        f"{schedule} schedule has a learning rate of {now:.3g}; with steps="
        f"{config.steps:,} it would jump to {then:.3g}.\n"
        f"  --extend=restart begins the schedule anew for the {config.steps - step:,} "
        f"steps that are left; {constant};\n"
        "  --config.checkpoint.allow=\"('steps',)\" takes the jump; and a new "
        "--workdir begins at step 0."
    )


def _rate(config: Experiment, step: int) -> float:
    """The learning rate of a step."""
    return float(np.asarray(config.optimizer.learning_rate(config.steps)(step)))


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
