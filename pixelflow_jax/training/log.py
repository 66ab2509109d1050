"""What one sees of a run: progress line, curves, metrics.jsonl, events, pictures.

docs/observe.md lists the metrics with their units.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from tqdm import tqdm

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.images import save_png
from pixelflow_jax.training import wandb_events
from pixelflow_jax.training.events import Events
from pixelflow_jax.training.throughput import Workload, matmul_rate, utilisation
from pixelflow_jax.training.usage import memory
from pixelflow_jax.values import Batch, Count, Natural, OptionalTitle

ODD = "metrics.odd"  # what was found in metrics.jsonl and is none
EVENTS = "events.jsonl"
# What the host waits for: batches, and steps that are still on the devices.
WAITS = ("data_wait", "device_wait")
LEAST, SHOWN = 1e-3, 0.05  # parts of the time: the others, and waits worth a word


@dataclasses.dataclass(kw_only=True)
class Logging:
    """How often to report.

    Metrics of every step are read back from the device each `every` steps; a grid of
    `preview_count` samples of the first average is drawn every `preview_every` steps
    (0: never) from fixed noise. `wandb` names a project of Weights & Biases, which is
    then shown what TensorBoard is (extra "wandb"; WANDB_MODE=offline keeps it here).
    """

    every: Count = 100
    preview_every: Natural = 10_000
    preview_count: Batch = 32
    wandb: OptionalTitle = ""

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        problems = wandb_events.problems(self.wandb)
        if self.every < 1 or self.preview_every < 0 or self.preview_count < 1:
            problems.append(
                "log.every and preview_count must be at least 1, preview_every >= 0"
            )
        return problems


class Curves(Protocol):
    """Where a run is looked at: TensorBoard's files, or a service."""

    def scalars(self, values: dict[str, float], step: int) -> None:
        """A point of each curve."""

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """A picture, uint8 [h, w, 3]."""

    def text(self, name: str, text: str, step: int) -> None:
        """A text in Markdown."""

    def turn_back(self, step: int) -> None:
        """What follows replaces all after `step`."""

    def close(self) -> None:
        """Write what is still in memory."""


class RunLog:
    """Writes to WORKDIR and the terminal; silent on all processes but the first.

    Use it in a `with` statement. Raises OSError where it cannot write.
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        start: int,
        steps: int,
        workload: Workload,
        config: dict,
        main: bool,
        wandb: str = "",
    ):
        self._main = main
        if not main:
            return
        matmul_rate(workload.dtype)  # measured before the run, not in the middle of it
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(config, indent=1))
        self._workdir = workdir
        self._start = start
        self._workload = workload
        self._history = workdir / "metrics.jsonl"
        if odd := _truncate(self._history, start):
            self.say(
                f"{self._history} had {odd} lines that are no metrics, now kept "
                f"in {ODD} beside it."
            )
        self._file = self._history.open("a")
        self._curves: list[Curves] = [Events(workdir / "tensorboard", start + 1)]
        if wandb:
            self._curves.append(wandb_events.WandbEvents(workdir, wandb, config))
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True)
        self._waits: dict[str, float] = {}
        self.pause(start)

    def metrics(self, step: int, history: list[tuple[int, dict[str, float]]]) -> None:
        """Report `history`: the metrics of every step since the last report."""
        if not self._main:
            return
        for at, values in history:
            self._file.write(json.dumps({"step": at, **_as_json(values)}) + "\n")
        self._file.flush()
        mean = _means([values for _, values in history])
        mean |= self._speed(step) | memory()
        self._scalars(mean, step)
        shown = [f"loss {mean['loss']:.4f}"]
        if "images_per_second" in mean:
            shown.append(f"{mean['images_per_second']:.4g} images/s")
        if mean.get("data_wait", 0) > SHOWN:
            shown.append(
                f"waits for data {mean['data_wait']:.0%} of the time "
                f"({mean['images_wanted']:.4g} images/s wanted)"
            )
        for name, text in {"mfu": "MFU", "mfu_measured": "of the matmul rate"}.items():
            if name in mean:
                shown.append(f"{text} {mean[name]:.1%}")
                break
        self._bar.set_postfix_str(", ".join(shown))
        self._bar.update(step - self._bar.n)

    def values(self, step: int, values: dict[str, float], remark: str = "") -> None:
        """Report what was measured after `step` steps, beside the metrics."""
        if not self._main:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        self._scalars(values, step)
        shown = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
        self.say(f"step {step}: {shown}{remark}")

    def event(self, step: int, kind: str, **facts: object) -> None:
        """Keep what happened to the run after `step` steps, such as "resume".

        A line of events.jsonl in the workdir with the time (UTC), and a text beside the
        curves. `facts` are what JSON can hold.
        """
        if not self._main:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "step": step, "event": kind, **facts})
        with (self._workdir / EVENTS).open("a") as file:
            file.write(line + "\n")
        for curves in self._curves:
            curves.text("events", f"    {line}", step)

    def turn_back(self, step: int) -> None:
        """Go on from `step`, which lies before what was reported.

        Lines of metrics stay as they are; those that follow take their steps again.
        """
        if self._main:
            self._bar.n = step
            self.pause(step)
            for curves in self._curves:
                curves.turn_back(step)

    def _scalars(self, values: dict[str, float], step: int) -> None:
        values = {
            k: v for k, v in values.items() if math.isfinite(v)
        }  # as far as drawn
        for curves in self._curves:
            curves.scalars(values, step)

    def _speed(self, step: int) -> dict[str, float]:
        """Rates and waits since the last report; empty where no step was timed."""
        before, then = self._since
        waits = dict(self._waits)
        seconds = time.perf_counter() - then
        self.pause(step)
        if step <= before or seconds <= 0:
            return {}
        work = self._workload
        rate = work.batch_size * (step - before) / seconds
        shares = {name: waits.get(name, 0.0) / seconds for name in WAITS}
        # What the devices would take if no step waited for its batch.
        wanted = rate / max(1 - shares["data_wait"], LEAST)
        speeds = {"images_per_second": rate, "images_wanted": wanted, **shares}
        return speeds | utilisation(rate, work.forward_flops, work.dtype)

    @contextlib.contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """The time inside is one of WAITS, told as a part of all in the next report."""
        start = time.perf_counter()
        yield
        if self._main:
            spent = time.perf_counter() - start
            self._waits[name] = self._waits.get(name, 0.0) + spent

    def pause(self, step: int) -> None:
        """Leave time and steps since the last report out of the next one's speed.

        `step` steps are done.
        """
        if self._main:
            self._waits.clear()
            self._since = (step, time.perf_counter())

    def picture(self, step: int, image: np.ndarray) -> None:
        """Keep a preview, uint8 [h, w, 3], as WORKDIR/previews/STEP.png."""
        if not self._main:
            return
        save_png(self._workdir / "previews" / f"{step:08d}.png", image)
        for curves in self._curves:
            curves.image("samples", image, step)

    def text(self, name: str, text: str) -> None:
        """Keep a text (config, parameter table) beside the curves."""
        if self._main:
            indented = "\n".join("    " + line for line in text.splitlines())
            for curves in self._curves:
                curves.text(name, indented, self._start)

    def say(self, line: str) -> None:
        """Print a line without breaking the progress bar, if anybody is there."""
        if self._main:
            with contextlib.suppress(OSError):  # the terminal may be gone
                tqdm.write(line)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: object,
    ) -> None:
        if not self._main:
            return
        self._bar.close()
        # What ended the run matters more than that its log cannot be closed either.
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self._file.close()
            for curves in self._curves:
                curves.close()


def _means(history: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the steps that have it."""
    names = {name: None for values in history for name in values}
    return {
        name: float(np.mean([values[name] for values in history if name in values]))
        for name in names
    }


def _as_json(values: dict[str, float]) -> dict[str, float | str]:
    """What is not finite as text, which JSON has no number for."""
    return {k: v if math.isfinite(v) else str(v) for k, v in values.items()}


def _truncate(history: pathlib.Path, start: int) -> int:
    """Drop the lines of steps that will be run again; the rest stays as it is.

    Lines that no run has written go to metrics.odd beside it; returns their number.
    """
    if not history.exists():
        return 0
    kept, odd = [], []
    lines = history.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        step = _step(line)
        if step is not None and step <= start:
            kept.append(line + b"\n")
        elif step is None and line and number < len(lines):  # a kill cuts the last one
            odd.append(line + b"\n")
    if odd:
        with history.with_name(ODD).open("ab") as file:
            file.writelines(odd)
    with atomic_write(history) as partial:
        partial.write_bytes(b"".join(kept))
    return len(odd)


def _step(line: bytes) -> int | None:
    """The step of a line of metrics; None where it is none."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if type(step) is int else None
