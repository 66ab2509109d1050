"""Checkpoints: state, data position and config in one Orbax bundle.

The only file that imports Orbax. A checkpoint lies in DIRECTORY/STEP/ and appears there
whole or not at all: an interrupted save leaves only a temporary folder behind.
"""

import contextlib
import dataclasses
import errno
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from pixelflow_jax import remote_runs
from pixelflow_jax.atomic import set_aside
from pixelflow_jax.config_io import differences, is_under
from pixelflow_jax.config_versions import FORMAT, migrate
from pixelflow_jax.errors import CheckpointError
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.paths import PATTERN, PlainAlias, check_writable
from pixelflow_jax.training import integrity
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.training.versions import as_today, as_written
from pixelflow_jax.values import Count, Name, Natural, Several

# What may change between two sittings of the same run: none of it alters a step.
FREE = (
    "name",
    "mesh",
    "guard",
    "checkpoint",
    "log",
    "online",
    "sampling",
    # Where the data lie: what they hold has a fingerprint of its own.
    *("data.source.path", "data.source.test_path", "data.source.data_dir"),
    "data.workers",
    "data.threads",
    "data.prefetch",
    "data.max_corrupt",
    "model.stack",
    "model.decoder.stack",
    "kernels",
    "accumulate",
    *("init_from", "init_ema", "init_reset"),
    *("posthoc.every", "posthoc.keep", "posthoc.dtype"),
    *(f"teachers.dino.{name}" for name in ("weights", "attention", "stack")),
    *(f"teachers.lpips.{name}" for name in ("weights", "linear")),
    *(f"model.encoder.{name}" for name in ("weights", "attention", "stack")),
    *(
        f"conditioner.encoder.{name}"
        for name in ("weights", "tokenizer", "attention", "stack")
    ),
)

# Which arrays a state holds depends on these: no other value can go on from it.
ARRAYS = ("model", "ema", "class")
MOST, SHOWN = 6, 200  # differing fields in a message, and characters of each


@dataclasses.dataclass(kw_only=True)
class Checkpointing:
    """When to save and what to keep.

    A checkpoint is written every `every` steps and at the end; the last `keep` stay,
    and every `keep_period`-th step for good (0: none). At least two stay: where the
    newest is damaged the run goes on from the one before. `allow` names config fields
    that may differ from the checkpoint's when a run resumes, like ("optimizer.lr",).
    """

    every: Count = 5000
    keep: Several = 3
    keep_period: Natural = 0
    allow: tuple[Name, ...] = ()

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        if self.every < 1 or self.keep < 2 or self.keep_period < 0:
            return [
                "checkpoint.every must be at least 1, keep at least 2, keep_period >= 0"
            ]
        return []


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without Orbax's warnings, such as that a folder is only read."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class Checkpointer:
    """Writes and reads the checkpoints of one run, in the background."""

    def __init__(self, directory: pathlib.Path, policy: Checkpointing | None):
        """Without a `policy`, for reading only."""
        self.directory = pathlib.Path(directory).absolute()
        # Of a run in a store: what is looked for here is not there, and does not count.
        self._in_store = remote_runs.in_store(self.directory)
        pattern = PATTERN.search(str(self.directory))
        if pattern and jax.process_count() > 1:  # one alone reads it by a link
            raise CheckpointError(
                f"{self.directory} has {pattern[0]!r} in its name, which the library "
                "that writes checkpoints of several processes takes for a pattern: "
                "rename the folder, or name another --workdir."
            )
        self._allowed = () if policy is None else policy.allow
        options = ocp.CheckpointManagerOptions(
            read_only=True,
            save_interval_steps=0,
            create=False,
            enable_async_checkpointing=False,
        )
        self._writes = policy is not None
        self._checked: set[int] = set()  # steps whose files are as written
        if policy is not None:
            self._check_writable()
            if jax.process_index() == 0:
                integrity.remove_unfinished(self.directory)
                integrity.hidden(self.directory, aside=True)
            if jax.process_count() > 1:  # nobody lists them before that is done
                multihost_utils.sync_global_devices("checkpoints are tidied up")
            options = ocp.CheckpointManagerOptions(
                max_to_keep=policy.keep,
                keep_period=policy.keep_period or None,
                cleanup_tmp_directories=self._in_store is not None,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_digests
                ),
            )
        # Orbax looks for steps with glob, and reads the metadata of each.
        unlisted = integrity.hidden(self.directory, aside=False)
        self._alias = PlainAlias(self.directory, unlisted)
        with _hushed():
            self._manager = ocp.CheckpointManager(
                self._in_store or self._alias.path,
                item_names=("state", "data", "config"),
                options=options,
            )

    def _check_writable(self) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            check_writable(self.directory)
        except OSError as error:
            raise CheckpointError(
                f"Cannot write checkpoints to {self.directory} ({error.strerror}): "
                "give a --workdir that this user may write to, on a disk with room."
            ) from error

    def _check_room(self, state: TrainState) -> None:
        """Raises OSError where the state is larger than what is free on the disk.

        Orbax would find out as well, but half-way and in many words.
        """
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if self._in_store is None and needed > shutil.disk_usage(self.directory).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_digests(self) -> None:
        """In the background, before a complete save takes its place."""
        for folder in integrity.unfinished(self.directory):
            integrity.settle(folder)
            integrity.write(folder)

    def latest(self) -> int | None:
        """The newest complete checkpoint's step, or None; it skips damaged ones.

        One that writes puts those aside, under another name. Raises CheckpointError
        where all are damaged. All processes of a run that writes call it together.
        """
        together = self._writes and jax.process_count() > 1
        step, problem = None, None
        if jax.process_index() == 0 or not together:
            steps = self._manager.all_steps()
            try:
                step = integrity.newest(self.directory, steps, aside=self._writes)
            except CheckpointError as error:
                problem = error
        if together:
            told = -2 if problem else -1 if step is None else step
            told = int(multihost_utils.broadcast_one_to_all(np.array(told)))
            step = None if told < 0 else told
            if told == -2 and problem is None:
                problem = CheckpointError("Process 0 cannot read the checkpoints.")
        if problem:
            raise problem
        self._manager.reload()
        if step is not None:
            self._checked.add(step)
        return step

    def save(self, step: int, state: TrainState, data: dict, config: dict) -> None:
        """Start writing a checkpoint; returns as soon as the arrays are copied.

        Raises CheckpointError when this or the previous save failed (a full disk).
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data),
            config=ocp.args.JsonSave(config),
        )
        with self._writing():
            self._check_room(state)
            self._manager.save(step, args=items, custom_metadata=integrity.MARK)

    def wait(self) -> None:
        """Return when everything is on disk; raises CheckpointError if it is not."""
        with self._writing():
            self._manager.wait_until_finished()

    def has_earlier(self) -> bool:
        """Whether there is a checkpoint before the newest."""
        return len(self._manager.all_steps()) > 1

    def doubt(self, step: int) -> None:
        """Keep a checkpoint as suspect-STEP, from which no run goes on."""
        self.wait()
        if self._in_store is not None:  # where nothing can be renamed
            self._manager.delete(step)
        elif jax.process_index() == 0:
            set_aside(self.directory / str(step), f"{integrity.SUSPECT}{step}")
        self._manager.reload()

    def forget(self, step: int) -> None:
        """Remove the checkpoints of that step and of later ones."""
        later = [saved for saved in self._manager.all_steps() if saved >= step]
        if later:
            self.wait()  # one of them may still be written
        for saved in later:
            self._manager.delete(saved)

    def position(self, step: int) -> dict:
        """The position in the data that a checkpoint was written with."""
        items = ocp.args.Composite(data=ocp.args.JsonRestore())
        with self._reading(step):
            return self._manager.restore(step, args=items)["data"]

    def config(self, step: int) -> dict:
        """The config a checkpoint was written with."""
        items = ocp.args.Composite(config=ocp.args.JsonRestore())
        with self._reading(step):
            return self._manager.restore(step, args=items)["config"]

    def data(self, step: int) -> dict:
        """The data position that a checkpoint was written at."""
        items = ocp.args.Composite(data=ocp.args.JsonRestore())
        with self._reading(step):
            return self._manager.restore(step, args=items)["data"]

    def restore(
        self,
        step: int,
        abstract: TrainState,
        config: dict,
        read_config: Callable[[dict], dict] = migrate,
    ) -> tuple[TrainState, dict]:
        """State, laid out like `abstract` (shapes with shardings), and data position.

        `read_config` puts the config of an earlier version into the words of `config`.
        Raises CheckpointError for a damaged checkpoint, or one of another config, whose
        fields it names.
        """
        saved = self.config(step)
        self._compare(read_config(saved), config, step)
        version = saved.get(FORMAT, 1)
        wanted = as_written(abstract, version)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(wanted), data=ocp.args.JsonRestore()
        )
        with self._reading(step):
            restored = self._manager.restore(step, args=items)
            return as_today(restored["state"], version), restored["data"]

    def restore_weights(self, step: int, abstract: dict, ema: str) -> dict:
        """The denoiser's parameters alone: those of average `ema`, or "raw".

        `abstract` are the parameters as shapes with shardings.
        """
        wanted = {"ema": {ema: abstract}}
        if ema == "raw":
            wanted = {"params": {"denoiser": abstract}}
        restored = self._restore_part(step, wanted)
        return restored["params"]["denoiser"] if ema == "raw" else restored["ema"][ema]

    def restore_constants(self, step: int, abstract: dict) -> dict:
        """The constants of the run's prediction; `abstract` are they as shapes."""
        if not abstract:
            return {}
        wanted = {"carry": {CONSTANTS: abstract}}
        return self._restore_part(step, wanted)["carry"][CONSTANTS]

    def _restore_part(self, step: int, wanted: dict) -> dict:
        """A part of the state, as shapes with shardings."""
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        items = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(
                item=wanted, restore_args=restore_args, partial_restore=True
            )
        )
        with self._reading(step):
            return self._manager.restore(step, args=items)["state"]

    def _compare(self, old: dict, new: dict, step: int) -> None:
        free = (FORMAT, *FREE, *_free_schedule(old, new, step), *self._allowed)
        changed = {
            path: pair
            for path, pair in differences(old, new).items()
            if not is_under(path, free)
        }
        if not changed:
            return
        shown = [f"{p}: {a!r} -> {b!r}"[:SHOWN] for p, (a, b) in changed.items()]
        more = [f"and {len(shown) - MOST} more"] if len(shown) > MOST else []
        listed = "; ".join([*shown[:MOST], *more])
        fixed = [path for path in changed if is_under(path, ARRAYS)]
        names = ", ".join(repr(path) for path in changed)
        remedy = (
            f'if the change is meant, allow it: --config.checkpoint.allow="({names},)".'
        )
        if fixed:
            remedy = (
                f"begin there with these weights: --config.init_from="
                f"{self.directory.parent}. {fixed[0]} decides which arrays there are."
            )
        raise CheckpointError(
            f"{self.directory}/{step} was written by a run with another config. These "
            f"fields differ (checkpoint -> now):\n  {listed}\n"
            f"  Use another --workdir for a new run, or {remedy}"
        )

    def close(self) -> None:
        """Finish pending writes and release the manager."""
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a failed write into a CheckpointError that says what to do."""
        try:
            yield
        except Exception as error:
            full = getattr(error, "errno", None) == errno.ENOSPC or any(
                sign in str(error) for sign in ("No space left", "RESOURCE_EXHAUSTED")
            )
            reason = "the disk is full" if full else _brief(error)
            raise CheckpointError(
                f"Could not write a checkpoint to {self.directory}: {reason}. Earlier "
                "checkpoints there are complete; make room (or lower "
                "--config.checkpoint.keep) and start again with the same --workdir to "
                "go on from the last one."
            ) from error

    @contextlib.contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        """Turns a failed read into a CheckpointError that says what to do."""
        earlier = [s for s in self._manager.all_steps() if s < step]
        if step not in self._checked:
            folder = self.directory / str(step)
            finding = integrity.examined(folder)
            if finding.state == "damaged":
                raise CheckpointError(integrity.unreadable(folder, finding, earlier))
            self._checked.add(step)
        try:
            yield
        except Exception as error:
            instead = f"go on from step {max(earlier)}" if earlier else "begin anew"
            cause = "it is damaged or incomplete"
            if self._allowed:
                cause += ", or a field in checkpoint.allow changes the model's arrays"
            raise CheckpointError(
                f"The checkpoint {self.directory}/{step} cannot be read: {cause}. If "
                f"it is damaged, delete that folder to {instead}."
            ) from error


def _free_schedule(old: dict, new: dict, step: int) -> tuple[str, ...]:
    """The fields of the schedule that may differ from those of a checkpoint at `step`.

    A learning rate that decays depends on the last step, unless an extension takes over
    from the checkpoint on.
    """
    before, now = (config["optimizer"].get("extended", []) for config in (old, new))
    if now == before:
        constant = new["optimizer"]["schedule"] == "constant"
        return ("steps",) if constant or _ends_constant(now) else ()
    following = now[len(before) : len(before) + 1]
    takes_over = all(
        one["planned"] == old["steps"] and one["step"] >= step for one in following
    )
    if following and now[: len(before)] == before and takes_over:
        return "steps", "optimizer.extended"
    return ()


def _ends_constant(extended: list[dict]) -> bool:
    return bool(extended) and extended[-1]["kind"] == "constant"


def _brief(error: Exception) -> str:
    """An error in one line of bearable length."""
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return line if len(line) <= 300 else line[:300] + " ..."
