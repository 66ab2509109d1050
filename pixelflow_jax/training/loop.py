"""A training run from its first or last saved step to its end."""

import contextlib
import pathlib

import jax
from clu import parameter_overview

from pixelflow_jax import sharding
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.lock import only_run
from pixelflow_jax.training.log import RunLog
from pixelflow_jax.training.profile import FOLDER, Profiler
from pixelflow_jax.training.run import TrainingRun
from pixelflow_jax.training.signals import stop_signals
from pixelflow_jax.training.sitting import Sitting, begin
from pixelflow_jax.training.state import TrainState


def train(run: TrainingRun, workdir: str | pathlib.Path) -> TrainState:
    """Carry out `run` in `workdir`, going on from its newest checkpoint if any.

    Returns the last state. SIGTERM and Ctrl-C save and return at the next step. Raises
    DivergedError where the run's guard gives up, CheckpointError when saving fails,
    DataError for a batch the model cannot learn from, LockedError where another run is
    at work in `workdir`, OSError when the log cannot be written.
    """
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as closing:
        closing.enter_context(only_run(workdir))
        sharding.connect(run.mesh)
        checkpointer = Checkpointer(workdir / "checkpoints", run.checkpointing)
        closing.callback(checkpointer.close)
        begun = begin(run, checkpointer, workdir)
        closing.callback(begun.data.close)
        log = closing.enter_context(_open_log(run, workdir, begun.step))
        stop = closing.enter_context(stop_signals())
        profiler = closing.enter_context(_profiler(run, workdir))
        sitting = Sitting(run, begun, checkpointer, log, profiler, workdir)
        closing.callback(sitting.close)
        with jax.set_mesh(run.mesh):
            return sitting.train(stop)


def _open_log(run: TrainingRun, workdir: pathlib.Path, start: int) -> RunLog:
    log = RunLog(
        workdir,
        start=start,
        steps=run.steps,
        workload=run.workload,
        config=run.config,
        main=jax.process_index() == 0,
        wandb=run.logging.wandb,
    )
    shapes = run.abstract_state().params["denoiser"]
    table = parameter_overview.get_parameter_overview(shapes, include_stats=False)
    log.text("parameters", table)
    if start:
        devices = {"devices": jax.device_count(), "processes": jax.process_count()}
        log.event(start, "resume", **devices)
        log.say(f"Going on from step {start} of {run.steps} in {workdir}")
    else:
        log.say(table)
    return log


def _profiler(run: TrainingRun, workdir: pathlib.Path) -> Profiler:
    """The trace of the first process, which is as the others' are."""
    window = run.profile if jax.process_index() == 0 else None
    return Profiler(workdir / FOLDER, window)
