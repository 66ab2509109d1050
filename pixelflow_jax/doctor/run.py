"""The config itself: its data, five steps, and a checkpoint there and back."""

import contextlib
import pathlib
import shutil
import tempfile
import time
from typing import Any

import jax
import numpy as np

from pixelflow_jax import build, distributed, sharding
from pixelflow_jax.doctor.page import Skip
from pixelflow_jax.errors import CheckpointError, ConfigError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.run import TrainingRun
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.training.step import make_step
from pixelflow_jax.training.throughput import utilisation
from pixelflow_jax.training.usage import memory
from pixelflow_jax.validate import validated

STEPS = 5
# How long the loader is measured for, after its first batch, at most.
SECONDS, BATCHES = 10.0, 50
NAME = "doctor"  # of the folder that a checkpoint is written to


class Patient:
    """A config that is examined; what an earlier check made is there for the later.

    `folder` is on a disk that all processes share; None: a temporary one, which several
    hosts do not share.
    """

    def __init__(self, config: Experiment, folder: pathlib.Path | None):
        self._config, self._folder = config, folder
        self._run: TrainingRun | None = None
        self._state: TrainState | None = None

    def built(self) -> list[str]:
        """Whether the config can run on its data; ConfigError or DataError if not."""
        config = self._config
        # Weights to begin with are another matter.
        config.init_from, config.init_ema, config.init_reset = "", "", ()
        validated(config)
        self._run = build.training_run(config)
        shapes = self._run.abstract_state()
        count = sum(int(np.prod(a.shape)) for a in jax.tree.leaves(shapes.params))
        held = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(shapes))
        mine = sum(
            int(np.prod(a.sharding.shard_shape(a.shape))) * a.dtype.itemsize
            for a in jax.tree.leaves(shapes)
        )
        return [
            f"{config.name}: {count / 1e6:.1f}M parameters, batch {config.batch_size}, "
            f"{config.data.image_size} pixels, {config.precision.compute}",
            f"state {held / 1e9:.3g} GB, {mine / 1e9:.3g} GB on each device",
        ]

    def loader(self) -> list[str]:
        """The images a second of the data alone; DataError where it gives none."""
        run = self._ready()
        data = run.open_data(0)
        with contextlib.closing(data):
            batches = iter(data)
            images = len(next(batches)["image"])  # workers have started
            start, count = time.perf_counter(), 0
            while count < 2 or time.perf_counter() - start < SECONDS:
                next(batches)
                count += 1
                if count == BATCHES:
                    break
            rate = images * count / (time.perf_counter() - start)
        return [
            f"{rate:.4g} images/s in this process, {count} batches of {images}, "
            f"workers={self._config.data.workers}"
        ]

    def steps(self) -> list[str]:
        """Five training steps; ValueError where a loss is not finite."""
        run = self._ready()
        with contextlib.closing(run.open_data(0)) as data, jax.set_mesh(run.mesh):
            batches = iter(data)
            state = run.fresh_state()
            layout = jax.tree.map(lambda a: a.sharding, state)
            program = jax.jit(
                make_step(run.objective, run.settings, weight_is_due=False),
                donate_argnums=0,
                out_shardings=(layout, sharding.replicated(run.mesh)),
            )
            frozen = sharding.place(run.frozen_params, run.mesh)
            losses, times = [], [time.perf_counter()]
            for _ in range(STEPS):
                batch = sharding.global_batch(next(batches), run.mesh)
                state, metrics = program(state, batch, frozen)
                losses.append(float(jax.device_get(metrics["loss"])))
                times.append(time.perf_counter())
        if not np.isfinite(losses).all():
            raise ValueError(f"The losses of {STEPS} steps are not finite: {losses}.")
        distributed.agree({"the losses of the first steps": losses})
        self._state = state
        return [
            "losses " + ", ".join(f"{loss:.5g}" for loss in losses),
            f"the first step, with compiling, {times[1] - times[0]:.1f} s",
            self._speed(run, float(min(np.diff(times[1:])))),
            ", ".join(f"{name} {gb:.3g} GB" for name, gb in memory().items()),
        ]

    def _speed(self, run: TrainingRun, seconds: float) -> str:
        work = run.workload
        rate = work.batch_size / seconds
        # Outside the mesh, which would run the product on all its devices.
        shares = utilisation(rate, work.forward_flops, work.dtype)
        names = {"mfu": "MFU", "mfu_measured": "of the measured matmul rate"}
        told = [f"{names[name]} {share:.1%}" for name, share in shares.items()]
        return f"{seconds * 1e3:.4g} ms, {rate:.4g} images/s; {', '.join(told)}"

    def checkpoint(self) -> list[str]:
        """Save the state after the steps, and read it back to the last bit.

        Raises CheckpointError where what is read is not what was written.
        """
        run, state = self._ready(), self._state
        if state is None:
            raise Skip("no state to save: the steps failed")
        with self._place() as folder:
            saved, restored = {}, {}
            times = [time.perf_counter()]
            writer = Checkpointer(folder / "checkpoints", Checkpointing(every=STEPS))
            with contextlib.closing(writer):
                writer.save(STEPS, state, {"next_batch": STEPS}, run.config)
                writer.wait()
                times.append(time.perf_counter())
                saved = _parts(state)
                read, _ = writer.restore(
                    STEPS, run.abstract_state(), run.config, run.read_config
                )
                restored = _parts(read)
            times.append(time.perf_counter())
        wrong = [name for name in saved if saved[name] != restored.get(name)]
        if wrong or len(saved) != len(restored):
            raise CheckpointError(
                f"{len(wrong)} of {len(saved)} arrays are not what was saved, the "
                f"first {wrong[:1]}: run `pixelflow verify` on your runs, and try "
                "another disk."
            )
        size = sum(a.nbytes for a in jax.tree.leaves(state)) / 1e9
        wrote, got = np.diff(times)
        return [
            f"{size:.3g} GB: saved in {wrote:.1f} s ({size / wrote:.2g} GB/s), read in "
            f"{got:.1f} s; equal to the last bit"
        ]

    @contextlib.contextmanager
    def _place(self):
        """A folder for a checkpoint, the same in all processes, which is removed."""
        first = jax.process_index() == 0
        parent = None if self._folder is None else str(self._folder)
        if first and self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f"{NAME}-", dir=parent) if first else ""
        folder = pathlib.Path(distributed.everyones(made)[0])
        try:
            if not all(distributed.everyones(folder.is_dir())):
                raise ConfigError(
                    f"{folder} of process 0 is not there for all processes: give "
                    "--workdir, a folder on a disk that all of them share."
                )
            yield folder
        finally:
            distributed.everyones(None)  # all have read it
            if first:
                shutil.rmtree(folder, ignore_errors=True)

    def _ready(self) -> TrainingRun:
        if self._run is None:
            raise Skip("the config cannot run")
        return self._run


def _parts(state: TrainState) -> dict[str, Any]:
    """The bytes of each array's parts on this process's devices, by their places."""
    found = {}
    for path, a in jax.tree_util.tree_leaves_with_path(state):
        for shard in a.addressable_shards:
            name = f"{jax.tree_util.keystr(path)} {shard.index}"
            found[name] = hash(np.asarray(shard.data).tobytes())
    return found
