"""How long a run will take, said once it is known: after its first ten timed steps."""

import dataclasses
import time

STEPS = 10


@dataclasses.dataclass
class Pace:
    """Times the first steps of a sitting that compile nothing.

    `begin` is told the step after which nothing is compiled any more, `is_due` whether
    ten more are done, and `words` then says what the run's `steps` steps will take.
    """

    steps: int
    batch_size: int
    checkpoint_every: int
    preview_every: int
    _since: tuple[int, float] | None = None
    _told: bool = False

    def begin(self, step: int) -> None:
        """`step` steps are done, and what they computed is there."""
        self._since = (step, time.perf_counter())

    def is_due(self, step: int) -> bool:
        """Whether there is something to say after `step` steps, for the first time."""
        if self._told or self._since is None or step < self._since[0] + STEPS:
            return False
        self._told = True
        return True

    def words(self, step: int) -> str:
        """What a step takes, and what to expect when; `step` steps are done."""
        begun, then = self._since or (step - 1, time.perf_counter())
        seconds = (time.perf_counter() - then) / (step - begun)
        left = (self.steps - step) * seconds
        rate = f"{self.batch_size / seconds:.3g} images/s"
        told = [
            f"A step takes {spoken(seconds)} ({rate}): the {self.steps - step:,} steps "
            f"left take about {spoken(left)}."
        ]
        kinds = {
            "A preview, in previews/,": self.preview_every,
            "A checkpoint": self.checkpoint_every,
        }
        for what, every in kinds.items():
            if 0 < every < self.steps:
                told.append(
                    f"{what} comes every {every:,} steps, {spoken(every * seconds)}."
                )
        return " ".join(told)


def spoken(seconds: float) -> str:
    """A time in words, to two digits."""
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{_two_digits(seconds / size)} {unit}"
    if seconds < 0.1:
        return f"{_two_digits(1000 * seconds)} ms"
    return f"{_two_digits(seconds)} seconds"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
