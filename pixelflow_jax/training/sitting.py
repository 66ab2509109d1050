"""What happens between two starts of a run: steps, reports, saves, and turning back."""

import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from pixelflow_jax import sharding
from pixelflow_jax.data.loader import BatchLoader
from pixelflow_jax.errors import DataError, DivergedError
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.training.best import BestCheckpoint
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.guard import Trouble, Watch
from pixelflow_jax.training.log import RunLog
from pixelflow_jax.training.pace import Pace
from pixelflow_jax.training.posthoc import Snapshots
from pixelflow_jax.training.profile import FOLDER, Profiler
from pixelflow_jax.training.run import TrainingRun
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.training.step import Step, make_step

LOSSES = "losses"  # their place in a checkpoint's position in the data


class Begun(NamedTuple):
    """Where a run stands: its state, the batches from there on, and the last losses."""

    state: TrainState
    data: BatchLoader
    step: int
    next_batch: int
    losses: tuple[float, ...] = ()


def begin(run: TrainingRun, checkpointer: Checkpointer, workdir: pathlib.Path) -> Begun:
    """The newest checkpoint, or the beginning, and the data from there on."""
    latest = checkpointer.latest()
    if latest is None:
        return _anew(run, workdir, 0)
    state, position = checkpointer.restore(
        latest, run.abstract_state(), run.config, run.read_config
    )
    data = run.open_data(position["next_batch"])
    data.check(position, run.checkpointing.allow)
    losses = tuple(position.get(LOSSES, ()))
    return Begun(state, data, int(state.step), position["next_batch"], losses)


def _anew(run: TrainingRun, workdir: pathlib.Path, next_batch: int) -> Begun:
    initial = run.initial and run.initial()
    if initial and jax.process_index() == 0:
        print(initial.report)
        (workdir / "init_from.txt").write_text(initial.report + "\n")
    return Begun(run.fresh_state(initial), run.open_data(next_batch), 0, next_batch)


class Sitting:
    """A run between two starts: steps, and what happens in between.

    `pending` holds metrics that are still on the devices, with their steps' numbers;
    `passed` is how many batches were passed over so far, and `turned` how often the run
    has turned back to `to` since its last checkpoint.
    """

    def __init__(
        self,
        run: TrainingRun,
        begun: Begun,
        checkpointer: Checkpointer,
        log: RunLog,
        profiler: Profiler,
        workdir: pathlib.Path,
    ):
        self.run, self.checkpointer = run, checkpointer
        self.log, self.profiler, self.workdir = log, profiler, workdir
        self.turned, self.to, self.fault = 0, -1, 0
        self.snapshots = Snapshots(workdir, run.posthoc) if run.posthoc else None
        self.best = BestCheckpoint(workdir) if run.online else None
        self.frozen_params: dict = {}
        self.pace = Pace(
            steps=run.steps,
            batch_size=run.workload.batch_size,
            checkpoint_every=run.checkpointing.every,
            preview_every=run.logging.preview_every,
        )
        self._go_on_from(begun)

    def _go_on_from(self, begun: Begun) -> None:
        self.state, self.data, self.step = begun.state, begun.data, begun.step
        self.passed = begun.next_batch - begun.step
        self.watch = Watch(self.run.guard, begun.losses)
        self.pending: list[tuple[int, dict[str, Array]]] = []
        self.batches = _on_device(self.data, self.run)
        if self.snapshots:
            self.snapshots.begin(self.step)

    def close(self) -> None:
        """End the data's workers, and finish writing the best checkpoint."""
        try:
            self.data.close()
        finally:
            if self.best:
                self.best.close()

    def train(self, stop: Callable[[], bool]) -> TrainState:
        """Step, report, save and draw until the end, or until `stop` says so."""
        run, stopping = self.run, False
        self.frozen_params = sharding.place(run.frozen_params, run.mesh)
        self.programs = _programs(run, self.state)
        self.observe = _observer(run, self.state)
        self.compiled: set[tuple] = set()
        while self.step < run.steps and not stopping:
            try:
                self._take_step()
                self._after_step()
                if stopping := stop():
                    self.save()
            except Trouble as trouble:
                self._turn_back(trouble)
        self.checkpointer.wait()
        if stopping:
            self.log.event(self.step, "stop")
            self.log.say(
                f"Stopped after step {self.step}; the same command goes on from there."
            )
        return self.state

    def _take_step(self) -> None:
        """One step, which is queued; the first of a program is waited for."""
        log, step = self.log, self.step
        with log.waiting("data_wait"):
            batch = next(self.batches)
        weight_is_due = self.run.objective.terms.weight_is_due(step)
        program = self.programs[weight_is_due]
        with self.profiler.step(step + 1):
            self.state, metrics = program(self.state, batch, self.frozen_params)
        self.step = step = step + 1
        if step % self.run.logging.every == 0:
            metrics |= self.observe(self.state)
        self.pending.append((step, metrics))
        if self.profiler.ended(step, metrics):
            log.pause(step)
            log.say(f"Traced up to step {step}: see {FOLDER}/ of the run.")
        compiled = batch["image"].shape, weight_is_due
        if compiled not in self.compiled:
            self.compiled.add(compiled)
            jax.block_until_ready(metrics)
            log.pause(step)  # compiling is not speed
            self.pace.begin(step)
        elif self.pace.is_due(step):
            jax.block_until_ready(metrics)
            log.say(self.pace.words(step))

    def _after_step(self) -> None:
        """What is due after this step; Trouble where its metrics are at fault."""
        run, step = self.run, self.step
        last = step == run.steps
        if step % run.logging.every == 0 or last:
            self.report()
        # Before it is saved: a run that goes on from there has measured it.
        if run.online and step % run.online.every == 0:
            self.measure()
        if step % run.checkpointing.every == 0 or last:
            self.save()
        if run.posthoc and step % run.posthoc.every == 0:
            self.store()
        if run.logging.preview_every and step % run.logging.preview_every == 0:
            self.draw()

    def report(self) -> None:
        """Read the pending metrics back and write them; raises Trouble at a fault."""
        with self.log.waiting("device_wait"):
            metrics = jax.device_get(self.pending)
        history = [(number, _as_floats(values)) for number, values in metrics]
        self.pending.clear()
        trouble = self.watch.examine(history)
        if trouble is not None:
            history = [line for line in history if line[0] <= trouble.step]
        if history:
            self.log.metrics(history[-1][0], history)
        if trouble is not None:
            raise trouble

    def save(self) -> None:
        """Start writing a checkpoint, of a state whose metrics the guard lets pass."""
        self.report()
        place = self.position(self.step)
        self.checkpointer.save(self.step, self.state, place, self.run.config)
        if self.step > self.fault:
            self.turned, self.to = 0, -1

    def _turn_back(self, trouble: Trouble) -> None:
        """Go back to a good state, past the batches that led to the fault.

        Raises DivergedError where that was done too often.
        """
        log, fault, turned = self.log, trouble.step, self.turned
        if turned >= self.run.guard.rollbacks:
            log.event(fault, "diverged", rollbacks=turned, **trouble.facts)
            raise DivergedError(_given_up(trouble, turned))
        self.turned, self.fault = turned + 1, max(fault, self.fault)
        next_batch = fault + self.passed
        self.checkpointer.wait()
        self.data.close()
        jax.tree.map(lambda a: a.delete(), self.state)  # there is room for one
        self._go_on_from(self._before(next_batch))
        first = next_batch - (fault - self.step)
        skipped = [first, next_batch - 1]
        log.event(fault, "rollback", to=self.step, skipped=skipped, **trouble.facts)
        log.turn_back(self.step)
        log.say(
            f"{trouble.reason} Back to step {self.step}, without the batches {first} "
            f"to {next_batch - 1} (time {self.turned} of {self.run.guard.rollbacks})."
        )

    def _before(self, next_batch: int) -> Begun:
        """The newest checkpoint, or the one before if that one failed already."""
        run, latest = self.run, self.checkpointer.latest()
        if latest is not None and latest == self.to and self.checkpointer.has_earlier():
            # Its loss was seen before its last update: that may have been the fault.
            self.checkpointer.doubt(latest)
            latest = self.checkpointer.latest()
        self.to = -1 if latest is None else latest
        if latest is None:
            return _anew(run, self.workdir, next_batch)
        state, position = self.checkpointer.restore(
            latest, run.abstract_state(), run.config, run.read_config
        )
        losses = tuple(position.get(LOSSES, ()))
        return Begun(state, run.open_data(next_batch), latest, next_batch, losses)

    def position(self, step: int) -> dict:
        """Where in the data the run is after `step` steps."""
        # The loader has read ahead; the k-th step takes the k-th batch after those
        # that were passed over.
        place = {"next_batch": step + self.passed}
        losses = self.watch.losses
        return self.data.state() | place | ({LOSSES: losses} if losses else {})

    def measure(self) -> None:
        """Measure the average that is drawn from, and keep the best state."""
        if self.run.online is None or self.best is None:
            return
        self.report()
        step, config = self.step, self.run.config
        values = self.run.online(*self.drawn_from())
        kept = self.best.offer(step, values, self.state, self.position(step), config)
        self.log.values(step, values, ", the best so far" if kept else "")
        self.log.pause(step)

    def store(self) -> None:
        """Store the averages that others are reconstructed from."""
        if self.snapshots is not None:
            self.report()
            self.snapshots.write(self.step, self.state.ema)
            self.log.pause(self.step)

    def draw(self) -> None:
        """Keep a picture of what the first average draws, or else the weights."""
        self.report()
        self.log.picture(self.step, self.run.preview(*self.drawn_from()))
        self.log.pause(self.step)

    def drawn_from(self) -> tuple[dict, dict]:
        """The first average, or else the weights, and what is beside them."""
        names, state = self.run.settings.averages, self.state
        first = state.ema[names[0]] if names else state.params["denoiser"]
        constants = {k: v for k, v in state.carry.items() if k == CONSTANTS}
        return first, self.frozen_params | constants


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


def _given_up(trouble: Trouble, turned: int) -> str:
    """Why a run ends, and what to change."""
    after = f" It turned back {turned} times." if turned else ""
    return (
        f"{trouble.reason}{after} Nothing was saved after it: the same command goes on "
        "from the last checkpoint. Lower --config.optimizer.lr, set "
        "--config.optimizer.clip=1.0, or add --config.optimizer.warmup."
    )
