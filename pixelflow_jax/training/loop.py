"""A training run from its first or last saved step to its end."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from clu import parameter_overview
from flax import traverse_util
from jax import Array

from pixelflow_jax import sharding
from pixelflow_jax.config_versions import migrate
from pixelflow_jax.data.loader import BatchLoader
from pixelflow_jax.errors import DataError, DivergedError
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.training.best import BestCheckpoint, OnlineCheck
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.lock import only_run
from pixelflow_jax.training.log import Logging, RunLog
from pixelflow_jax.training.observe import Observer
from pixelflow_jax.training.posthoc import PostHocEMA, Snapshots
from pixelflow_jax.training.profile import FOLDER, Profiler, Window
from pixelflow_jax.training.signals import stop_signals
from pixelflow_jax.training.state import Initial, TrainState
from pixelflow_jax.training.step import (
    Step,
    StepSettings,
    abstract_state,
    fresh_state,
    make_step,
)
from pixelflow_jax.training.throughput import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run, ready to go: built from a config, carried out by `train`.

    `open_data(k)` gives the batches from number k on; `preview(ema, frozen_params)`
    draws a picture, uint8 [h, w, 3], from an average of the denoiser, and `online`
    measures one. A run without checkpoints begins with the parameters that `initial`
    reads, or with random ones, and with what `constants` computes for the prediction
    from the training images. `frozen_params` are the parameters of frozen networks,
    arrays of the host. `config` is written down with every checkpoint; `read_config`
    makes one that was written before, perhaps by an earlier version, comparable.
    `observer` computes what every report shows of the state; the steps of `profile` are
    traced.
    """

    objective: Objective
    settings: StepSettings
    mesh: jax.sharding.Mesh
    open_data: Callable[[int], BatchLoader]
    preview: Callable[[dict, dict], np.ndarray]
    steps: int
    workload: Workload
    checkpointing: Checkpointing
    logging: Logging
    config: dict
    posthoc: PostHocEMA | None = None
    online: OnlineCheck | None = None
    read_config: Callable[[dict], dict] = migrate
    initial: Callable[[], Initial] | None = None
    constants: Callable[[], dict] = dict
    frozen_params: dict = dataclasses.field(default_factory=dict)
    observer: Observer | None = None
    profile: Window | None = None

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state; allocates nothing."""
        return abstract_state(self.objective, self.settings, self.mesh)

    def fresh_state(self, initial: Initial | None = None) -> TrainState:
        """The state before the first step, laid out where it will live."""
        constants = (initial and initial.constants) or self.constants()
        state = fresh_state(self.objective, self.settings, self.mesh, constants)
        if initial is None:
            return state
        denoiser = _overlaid(state.params["denoiser"], initial.params)
        # Those of growing width forget how they began.
        begun = {name: initial.ema.get(name, initial.params) for name in state.ema}
        ema = {name: _overlaid(state.ema[name], begun[name]) for name in begun}
        params = {**state.params, "denoiser": denoiser}
        return dataclasses.replace(state, params=params, ema=ema)


def _overlaid(fresh: dict, given: dict) -> dict:
    """Fresh parameters, with copies of those that are given in their places."""
    flat: dict = traverse_util.flatten_dict(fresh)
    for path, a in traverse_util.flatten_dict(given).items():
        # A copy each: the step gives its inputs away.
        flat[path] = jax.device_put(np.array(a), flat[path].sharding)
    return traverse_util.unflatten_dict(flat)


def train(run: TrainingRun, workdir: str | pathlib.Path) -> TrainState:
    """Carry out `run` in `workdir`, going on from its newest checkpoint if any.

    Returns the last state. SIGTERM and Ctrl-C save and return at the next step. Raises
    DivergedError when a loss is not finite, CheckpointError when saving fails,
    DataError for a batch the model cannot learn from, LockedError where another run is
    at work in `workdir`, OSError when the log cannot be written.
    """
    workdir = pathlib.Path(workdir)
    with contextlib.ExitStack() as closing:
        closing.enter_context(only_run(workdir))
        checkpointer = Checkpointer(workdir / "checkpoints", run.checkpointing)
        closing.callback(checkpointer.close)
        state, data = _begin(run, checkpointer, workdir)
        closing.callback(data.close)
        log = closing.enter_context(_open_log(run, workdir, int(state.step)))
        stop = closing.enter_context(stop_signals())
        profiler = closing.enter_context(_profiler(run, workdir))
        sitting = _Sitting(run, data, checkpointer, log, profiler)
        if run.posthoc:
            sitting.snapshots = Snapshots(workdir, run.posthoc)
            sitting.snapshots.begin(int(state.step))
        if run.online:
            sitting.best = BestCheckpoint(workdir)
            closing.callback(sitting.best.close)
        with jax.set_mesh(run.mesh):
            return sitting.train(state, stop)


def _begin(
    run: TrainingRun, checkpointer: Checkpointer, workdir: pathlib.Path
) -> tuple[TrainState, BatchLoader]:
    """The state to go on from, and the data from there on."""
    latest = checkpointer.latest()
    if latest is None:
        initial = run.initial and run.initial()
        if initial and jax.process_index() == 0:
            print(initial.report)
            (workdir / "init_from.txt").write_text(initial.report + "\n")
        return run.fresh_state(initial), run.open_data(0)
    state, position = checkpointer.restore(
        latest, run.abstract_state(), run.config, run.read_config
    )
    data = run.open_data(position["next_batch"])
    data.check(position, run.checkpointing.allow)
    return state, data


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


@dataclasses.dataclass
class _Sitting:
    """A run between two starts: steps, and what happens in between.

    `pending` holds metrics that are still on the devices, with their steps' numbers.
    """

    run: TrainingRun
    data: BatchLoader
    checkpointer: Checkpointer
    log: RunLog
    profiler: Profiler
    pending: list[tuple[int, dict[str, Array]]] = dataclasses.field(
        default_factory=list
    )
    snapshots: Snapshots | None = None
    best: BestCheckpoint | None = None

    def train(self, state: TrainState, stop: Callable[[], bool]) -> TrainState:
        """Step, report, save and draw until the end, or until `stop` says so."""
        run, log = self.run, self.log
        programs = _programs(run, state)
        batches = _on_device(self.data, run)
        frozen_params = sharding.place(run.frozen_params, run.mesh)
        step = int(state.step)
        observe = _observer(run, state)
        compiled: set[tuple] = set()
        while step < run.steps:
            with log.waiting("data_wait"):
                batch = next(batches)
            weight_is_due = run.objective.terms.weight_is_due(step)
            with self.profiler.step(step + 1):
                state, metrics = programs[weight_is_due](state, batch, frozen_params)
            step += 1
            if step % run.logging.every == 0:
                metrics |= observe(state)
            self.pending.append((step, metrics))
            if self.profiler.ended(step, metrics):
                log.pause(step)
                log.say(f"Traced up to step {step}: see {FOLDER}/ of the run.")
            program = batch["image"].shape, weight_is_due
            if program not in compiled:
                compiled.add(program)
                jax.block_until_ready(metrics)
                log.pause(step)  # compiling is not speed
            if step % run.logging.every == 0 or step == run.steps:
                self.report(step)
            # Before it is saved: a run that goes on from there has measured it.
            if run.online and step % run.online.every == 0:
                self.measure(step, state, frozen_params)
            if step % run.checkpointing.every == 0 or step == run.steps:
                self.save(step, state)
            if run.posthoc and step % run.posthoc.every == 0:
                self.store(step, state)
            if run.logging.preview_every and step % run.logging.preview_every == 0:
                self.draw(step, state, frozen_params)
            if stop():
                self.save(step, state)
                log.say(
                    f"Stopped after step {step}; the same command goes on from there."
                )
                break
        self.checkpointer.wait()
        return state

    def report(self, step: int) -> None:
        """Read the pending metrics back; DivergedError where one is not finite."""
        with self.log.waiting("device_wait"):
            metrics = jax.device_get(self.pending)
        history = [(number, _as_floats(values)) for number, values in metrics]
        self.pending.clear()
        _check_finite(history)
        if history:
            self.log.metrics(step, history)

    def save(self, step: int, state: TrainState) -> None:
        """Start writing a checkpoint, of a state whose metrics were finite."""
        self.report(step)
        self.checkpointer.save(step, state, self.position(step), self.run.config)

    def position(self, step: int) -> dict:
        """Where in the data the run is after `step` steps."""
        # The loader has read ahead; the k-th step always takes the k-th batch.
        return self.data.state() | {"next_batch": step}

    def measure(self, step: int, state: TrainState, frozen_params: dict) -> None:
        """Measure the average that is drawn from, and keep the best state."""
        if self.run.online is None or self.best is None:
            return
        self.report(step)
        values = self.run.online(*self.drawn_from(state, frozen_params))
        config = self.run.config
        kept = self.best.offer(step, values, state, self.position(step), config)
        self.log.values(step, values, ", the best so far" if kept else "")
        self.log.pause(step)

    def store(self, step: int, state: TrainState) -> None:
        """Store the averages that others are reconstructed from."""
        if self.snapshots is not None:
            self.report(step)
            self.snapshots.write(step, state.ema)
            self.log.pause(step)

    def draw(self, step: int, state: TrainState, frozen_params: dict) -> None:
        """Keep a picture of what the first average draws, or else the weights."""
        self.report(step)
        self.log.picture(step, self.run.preview(*self.drawn_from(state, frozen_params)))
        self.log.pause(step)

    def drawn_from(self, state: TrainState, frozen_params: dict) -> tuple[dict, dict]:
        """The first average, or else the weights, and what is beside them."""
        names = self.run.settings.averages
        first = state.ema[names[0]] if names else state.params["denoiser"]
        constants = {k: v for k, v in state.carry.items() if k == CONSTANTS}
        return first, frozen_params | constants


def _programs(run: TrainingRun, state: TrainState) -> dict[bool, Step]:
    """The step that moves the adaptive weight and the one that does not."""
    layout = jax.tree.map(lambda a: a.sharding, state)
    shardings = (layout, sharding.replicated(run.mesh))
    return {
        weight_is_due: jax.jit(
            make_step(run.objective, run.settings, weight_is_due),
            donate_argnums=0,
            out_shardings=shardings,
        )
        for weight_is_due in (False, True)
    }


def _observer(
    run: TrainingRun, state: TrainState
) -> Callable[[TrainState], dict[str, Array]]:
    """What a report shows of the state, on every device alike; compiled here."""
    if run.observer is None:
        return lambda state: {}
    program = jax.jit(run.observer, out_shardings=sharding.replicated(run.mesh))
    return program.lower(state).compile()


def _on_device(data: BatchLoader, run: TrainingRun) -> Iterator[dict]:
    """Batches as global arrays, each sent on its way one step before it is needed."""
    conditioner, model = run.objective.conditioner, run.objective.model

    def send(batch: dict) -> dict:
        for problem in conditioner.batch_problems(batch, model):
            raise DataError(problem)
        return sharding.global_batch(batch, run.mesh)

    batches = iter(data)
    ahead = send(next(batches))
    for batch in batches:
        following = send(batch)
        yield ahead
        ahead = following


def _as_floats(metrics: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def _check_finite(history: list[tuple[int, dict[str, float]]]) -> None:
    for step, values in history:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            terms = ", ".join(f"{name}={value:g}" for name, value in values.items())
            raise DivergedError(
                f"Step {step} is not finite in {', '.join(bad)} ({terms}). Nothing was "
                "saved after it: the same command goes on from the last checkpoint. "
                "Lower --config.optimizer.lr, set --config.optimizer.clip=1.0, or add "
                "--config.optimizer.warmup."
            )
