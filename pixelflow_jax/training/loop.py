"""A training run from its first or last saved step to its end."""

import contextlib
import dataclasses
import math
import os
import pathlib
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
from clu import parameter_overview
from flax import traverse_util
from jax import Array
from jax.experimental import multihost_utils

from pixelflow_jax import sharding
from pixelflow_jax.data.loader import BatchLoader
from pixelflow_jax.errors import DataError, DivergedError
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.log import Logging, RunLog
from pixelflow_jax.training.state import Initial, TrainState
from pixelflow_jax.training.step import (
    StepSettings,
    abstract_state,
    fresh_state,
    make_step,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """A run, ready to go: built by the experiment, carried out by `train`.

    `open_data(k)` is the batches from number k on; `preview(ema, frozen_params)` draws a
    picture, uint8 [h, w, 3], from an average of the denoiser. `forward_flops` are the
    denoiser's operations for an image, in the mean over the data. A run without
    checkpoints begins with the parameters that `initial` reads, or with random ones.
    `frozen_params` are the parameters of frozen networks, arrays of the host.
    """

    objective: Objective
    settings: StepSettings
    mesh: jax.sharding.Mesh
    open_data: Callable[[int], BatchLoader]
    preview: Callable[[dict, dict], np.ndarray]
    steps: int
    batch_size: int
    forward_flops: float
    precision: str
    checkpointing: Checkpointing
    logging: Logging
    config: dict
    initial: Callable[[], Initial] | None = None
    frozen_params: dict = dataclasses.field(default_factory=dict)

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the state; allocates nothing."""
        return abstract_state(self.objective, self.settings, self.mesh)

    def fresh_state(self, initial: Initial | None = None) -> TrainState:
        """The state before the first step, laid out where it will live."""
        state = fresh_state(self.objective, self.settings, self.mesh)
        if initial is None:
            return state
        denoiser = _placed(state.params["denoiser"], initial.params)
        ema = {d: _placed(state.ema[d], initial.ema[d]) for d in state.ema}
        return state.replace(params={**state.params, "denoiser": denoiser}, ema=ema)


def _placed(fresh: dict, given: dict) -> dict:
    """Fresh parameters, with copies of those that are given in their places."""
    flat = traverse_util.flatten_dict(fresh)
    for path, a in traverse_util.flatten_dict(given).items():
        # A copy each: the step gives its inputs away.
        flat[path] = jax.device_put(np.array(a), flat[path].sharding)
    return traverse_util.unflatten_dict(flat)


def train(run: TrainingRun, workdir: pathlib.Path) -> TrainState:
    """Carry out `run` in `workdir`, going on from its newest checkpoint if any.

    Returns the last state. SIGTERM and Ctrl-C save and return at the next step. Raises
    DivergedError when a loss is not finite, CheckpointError when saving fails,
    DataError for a label the model does not know, OSError when the log cannot be
    written.
    """
    checkpointer = Checkpointer(workdir / "checkpoints", run.checkpointing)
    with contextlib.ExitStack() as closing:
        closing.callback(checkpointer.close)
        state, data = _begin(run, checkpointer, workdir)
        closing.callback(data.close)
        log = closing.enter_context(_open_log(run, workdir, int(state.step)))
        stop = closing.enter_context(_stop_signals())
        with jax.set_mesh(run.mesh):
            return _steps(run, state, data, checkpointer, log, stop)


def _begin(
    run: TrainingRun, checkpointer: Checkpointer, workdir: pathlib.Path
) -> tuple[TrainState, BatchLoader]:
    latest = checkpointer.latest()
    if latest is None:
        initial = run.initial and run.initial()
        if initial and jax.process_index() == 0:
            print(initial.report)
            (workdir / "init_from.txt").write_text(initial.report + "\n")
        return run.fresh_state(initial), run.open_data(0)
    state, position = checkpointer.restore(latest, run.abstract_state(), run.config)
    data = run.open_data(position["next_batch"])
    data.check(position)
    return state, data


def _open_log(run: TrainingRun, workdir: pathlib.Path, start: int) -> RunLog:
    log = RunLog(
        workdir,
        start=start,
        steps=run.steps,
        batch_size=run.batch_size,
        forward_flops=run.forward_flops,
        dtype=run.precision,
        config=run.config,
        main=jax.process_index() == 0,
    )
    shapes = run.abstract_state().params["denoiser"]
    table = parameter_overview.get_parameter_overview(shapes, include_stats=False)
    log.text("parameters", table)
    if start:
        log.say(f"Going on from step {start} of {run.steps} in {workdir}")
    else:
        log.say(table)
    return log


def _steps(
    run: TrainingRun,
    state: TrainState,
    data: BatchLoader,
    checkpointer: Checkpointer,
    log: RunLog,
    stop: Callable[[], bool],
) -> TrainState:
    """The loop itself: step, watch, draw, save."""
    steps = _programs(run, state)
    batches = _on_device(data, run)
    frozen_params = sharding.place(run.frozen_params, run.mesh)
    pending: list[tuple[int, dict[str, Array]]] = []
    step = int(state.step)
    seen: set[tuple] = set()

    def report() -> None:
        history = [(at, _as_floats(values)) for at, values in jax.device_get(pending)]
        pending.clear()
        _check_finite(history)
        if history:
            log.metrics(step, history)

    def save() -> None:
        report()  # only a state whose metrics were finite is worth keeping
        # The loader has read ahead; the k-th step always takes the k-th batch.
        position = data.state() | {"next_batch": step}
        checkpointer.save(step, state, position, run.config)

    while step < run.steps:
        batch = next(batches)
        weight_is_due = run.objective.terms.weight_is_due(step)
        state, metrics = steps[weight_is_due](state, batch, frozen_params)
        step += 1
        pending.append((step, metrics))
        program = batch["image"].shape, weight_is_due
        if program not in seen:
            seen.add(program)
            jax.block_until_ready(metrics)
            log.pause()  # compiling is not speed
        if step % run.logging.every == 0 or step == run.steps:
            report()
        if step % run.checkpointing.every == 0 or step == run.steps:
            save()
        if run.logging.preview_every and step % run.logging.preview_every == 0:
            report()
            first = next(iter(state.ema.values()), state.params["denoiser"])
            log.picture(step, run.preview(first, frozen_params))
            log.pause()
        if stop():
            save()
            log.say(f"Stopped after step {step}; the same command goes on from there.")
            break
    checkpointer.wait()
    return state


def _programs(run: TrainingRun, state: TrainState) -> dict[bool, Callable]:
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


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGTERM or Ctrl-C into a wish to stop; the second one kills.

    With several processes all stop after the same step.
    """
    wish = [False]
    before = {}

    def restore() -> None:
        for number, handler in before.items():
            # None: the handler was not set from Python and cannot be from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: object) -> None:
        wish[0] = True
        restore()
        # Not print: a handler may run in the middle of another print.
        name = signal.Signals(number).name
        os.write(2, f"\n{name}: saving after this step; again to kill\n".encode())

    def stop() -> bool:
        if jax.process_count() == 1:
            return wish[0]
        return bool(multihost_utils.process_allgather(np.array(wish[0])).any())

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.getsignal(number)
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore()
