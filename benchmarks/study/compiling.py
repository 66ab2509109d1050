"""How a process compiles its programs: how many, how long, and with which options."""

import dataclasses

import jax

from pixelflow_jax import backend

COMPILE = "/jax/core/compile/backend_compile_duration"
LARGE = 2.0  # seconds; smaller programs are the evaluator's and NumPy's stand-ins


@dataclasses.dataclass
class Counter:
    """Seconds of every compilation since it was started, those of the cache too."""

    seconds: list[float] = dataclasses.field(default_factory=list)

    @classmethod
    def started(cls) -> "Counter":
        """A counter that JAX tells of every program."""
        counter = cls()
        jax.monitoring.register_event_duration_secs_listener(counter.hear)
        return counter

    def hear(self, name: str, seconds: float, **_: object) -> None:
        """One event of JAX."""
        if name == COMPILE:
            self.seconds.append(seconds)

    def words(self) -> str:
        """Such as 9 programs, 3 of them large, 41 s."""
        large = sum(one >= LARGE for one in self.seconds)
        return (
            f"{len(self.seconds)} programs so far, {large} of them large, "
            f"{sum(self.seconds):.0f} s"
        )


def options(convolutions: bool = False) -> dict[str, str]:
    """XLA's options for programs of a row, which run for seconds.

    On GPUs the fastest kernels are not searched for: that takes longer than it saves.
    Programs with `convolutions`, as networks have that look at images, need the search.
    """
    if jax.default_backend() != "gpu":
        return {}
    if convolutions:
        return backend.loop_options()
    return {**backend.loop_options(), "xla_gpu_autotune_level": "0"}
