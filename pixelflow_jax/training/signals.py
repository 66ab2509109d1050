"""Signals that end a run after its current step, with everything saved."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or Ctrl-C into a wish to stop; the second one kills.

    Gives a function that tells whether to stop. With several processes all stop after
    the same step.
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
