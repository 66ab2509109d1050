"""What one sees of a run: progress line, TensorBoard, metrics.jsonl, pictures."""

import contextlib
import dataclasses
import json
import pathlib
import time

import numpy as np
from tqdm import tqdm

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.images import save_png
from pixelflow_jax.training.events import Events
from pixelflow_jax.training.throughput import Workload, matmul_rate, utilisation
from pixelflow_jax.values import Batch, Count, Natural

ODD = "metrics.odd"  # what was found in metrics.jsonl and is none


@dataclasses.dataclass(kw_only=True)
class Logging:
    """How often to report.

    Metrics of every step are read back from the device each `every` steps; a grid of
    `preview_count` samples of the first average is drawn every `preview_every` steps
    (0: never) from fixed noise.
    """

    every: Count = 100
    preview_every: Natural = 10_000
    preview_count: Batch = 32

    def problems(self) -> list[str]:
        """What is wrong with these fields."""
        if self.every < 1 or self.preview_every < 0 or self.preview_count < 1:
            return [
                "log.every and preview_count must be at least 1, preview_every >= 0"
            ]
        return []


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
        self._events = Events(workdir / "tensorboard", start + 1)
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True)
        self._since = (start, time.perf_counter())

    def metrics(self, step: int, history: list[tuple[int, dict[str, float]]]) -> None:
        """Report `history`: the metrics of every step since the last report."""
        if not self._main:
            return
        for at, values in history:
            self._file.write(json.dumps({"step": at, **values}) + "\n")
        self._file.flush()
        names = history[-1][1]
        mean = {k: float(np.mean([v[k] for _, v in history])) for k in names}
        mean |= self._speed(step)
        for name, value in mean.items():
            self._events.scalar(name, value, step)
        self._bar.set_postfix_str(
            f"loss {mean['loss']:.4f}, {mean['images_per_second']:.4g} images/s, "
            f"MFU {mean['mfu']:.1%}"
        )
        self._bar.update(step - self._bar.n)

    def values(self, step: int, values: dict[str, float], remark: str = "") -> None:
        """Report what was measured after `step` steps, beside the metrics."""
        if not self._main:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.scalar(name, value, step)
        shown = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
        self.say(f"step {step}: {shown}{remark}")

    def _speed(self, step: int) -> dict[str, float]:
        before, then = self._since
        now = time.perf_counter()
        self._since = (step, now)
        work = self._workload
        rate = work.batch_size * (step - before) / (now - then)
        mfu = utilisation(rate, work.forward_flops, work.dtype)
        return {"images_per_second": rate, "mfu": mfu}

    def pause(self) -> None:
        """Leave the time since the last report out of the next one's speed."""
        if self._main:
            self._since = (self._since[0], time.perf_counter())

    def picture(self, step: int, image: np.ndarray) -> None:
        """Keep a preview, uint8 [h, w, 3], as WORKDIR/previews/STEP.png."""
        if not self._main:
            return
        save_png(self._workdir / "previews" / f"{step:08d}.png", image)
        self._events.image("samples", image, step)

    def text(self, name: str, text: str) -> None:
        """Keep a text (config, parameter table) beside the curves."""
        if self._main:
            indented = "\n".join("    " + line for line in text.splitlines())
            self._events.text(name, indented, self._start)

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
            self._events.close()


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
