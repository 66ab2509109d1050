"""When a run must turn back: losses that are not finite, or far above the usual."""

import collections
import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Annotated

from pixelflow_jax.values import Natural, Range

LOSS = "loss"
SHOWN = 5  # losses before the fault, in an event
MOST = 8  # metrics in a message

Factor = Annotated[float, Range(low=1, high=1e6, interval="(]", also=(0,))]
Window = Annotated[int, Range(low=2, high=10_000)]


@dataclasses.dataclass(kw_only=True)
class Guard:
    """When a run goes back to its last checkpoint, and how often.

    It does where a metric is not finite, or the loss is more than `spike` times the
    median of the last `window` steps, once half of these have been seen (0: however
    high). It then passes over the batches up to the one at fault, and goes on with the
    next. After `rollbacks` times without a new checkpoint it ends (0: at once).
    """

    spike: Factor = 0.0
    window: Window = 100
    rollbacks: Natural = 3


class Trouble(Exception):
    """A step that must not be built upon, and why."""

    def __init__(self, step: int, reason: str, facts: dict[str, object]):
        super().__init__(reason)
        self.step, self.reason, self.facts = step, reason, facts


class Watch:
    """Looks at the metrics of every step, as a `Guard` says.

    `losses` are those of the last steps, from before the run was started again.
    """

    def __init__(self, guard: Guard, losses: Iterable[float] = ()):
        self._guard = guard
        self._losses = collections.deque(losses, guard.window)

    @property
    def losses(self) -> list[float]:
        """The last good ones, for a checkpoint; empty where nothing depends on them."""
        return list(self._losses) if self._guard.spike else []

    def examine(self, history: list[tuple[int, dict[str, float]]]) -> Trouble | None:
        """The first step of `history` that is at fault; the ones before are noted."""
        for step, values in history:
            if reason := self._reason(step, values):
                before = list(self._losses)[-SHOWN:]
                told = {k: v if math.isfinite(v) else str(v) for k, v in values.items()}
                facts = {"reason": reason, "losses_before": before, "metrics": told}
                return Trouble(step, reason, facts)
            self._losses.append(values[LOSS])
        return None

    def _reason(self, step: int, values: dict[str, float]) -> str:
        """Why a step is at fault; "" if it is not."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            shown = list(values.items())[:MOST]
            terms = ", ".join(f"{name}={value:g}" for name, value in shown)
            return f"Step {step} is not finite in {', '.join(bad[:MOST])} ({terms})."
        spike, loss = self._guard.spike, values[LOSS]
        if not spike or len(self._losses) < self._guard.window // 2:
            return ""
        usual = statistics.median(self._losses)
        if loss <= spike * usual:
            return ""
        return (
            f"The loss of step {step} is {loss:.4g}, more than {spike:g} times the "
            f"{usual:.4g} before it."
        )
