"""A trace of some steps, for XProf: what the devices and the host did, and when."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator

import jax

from pixelflow_jax.errors import ConfigError

FOLDER = "profile"  # within the run's
NAME = "train"  # of a step in the trace, beside its number


@dataclasses.dataclass(frozen=True)
class Window:
    """The steps `start` to `stop`, both included; the first step of a run is 1."""

    start: int
    stop: int

    @staticmethod
    def parse(text: str) -> "Window":
        """Read "start:stop"; ConfigError for what is none, or holds no step."""
        match = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", text)
        start, stop = map(int, match.groups()) if match else (0, 0)
        if not 1 <= start <= stop:
            raise ConfigError(
                f"--profile={text:.40} is no window of steps: give the first and the "
                "last, counted from 1, such as --profile=20:25."
            )
        return Window(start, stop)


class Profiler:
    """Traces the steps of `window` into `folder`, on this process alone.

    Use it in a `with` statement: a trace is written when its last step is done, or when
    the run ends before. Nothing is traced without a window.
    """

    def __init__(self, folder: pathlib.Path, window: Window | None):
        self._folder, self._window = folder, window
        self._tracing = False

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """What is called inside is step `number`."""
        window = self._window
        if window is None or not window.start <= number <= window.stop:
            yield
            return
        if not self._tracing:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every Python call: large, and slow
            jax.profiler.start_trace(self._folder, profiler_options=options)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation(NAME, step_num=number):
            yield

    def ended(self, number: int, results: object) -> bool:
        """Whether a trace was written, as step `number` was its last.

        `results` are that step's: the devices are waited for.
        """
        if not self._tracing or self._window is None or number < self._window.stop:
            return False
        jax.block_until_ready(results)
        self._stop()
        return True

    def _stop(self) -> None:
        self._tracing, self._window = False, None
        jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracing:
            self._stop()
