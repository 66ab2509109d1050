"""Signals that end a run after its current step, with everything saved."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator

import jax
from jax.experimental import multihost_utils

HANGUP = getattr(signal, "SIGHUP", 0)  # 0: this system has none


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or Ctrl-C into a wish to stop; the second one kills.

    So does the SIGHUP of a terminal that is closed, but a second one does not kill: it
    comes from the shell and from the terminal at once. Where it is ignored, as under
    nohup, it stays so. Gives a function that tells whether to stop, to be called once
    after every step.

    With several processes all stop after the same step, whichever was told. JAX's own
    notice of SIGTERM sees to that, without an exchange in every step; its handler stays
    where it is, the other signals are handed on to it, and a second SIGTERM does not
    kill.
    """
    wish = [False]
    before = {}
    together = jax.process_count() > 1

    def restore(numbers: Iterable[int]) -> None:
        for number in numbers:
            handler = before[number]
            # None: the handler was not set from Python and cannot be from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number: int, frame: object) -> None:
        wish[0] = True
        restore(before.keys() - {HANGUP})
        # Not print: a handler may run in the middle of another print.
        name = signal.Signals(number).name
        more = "" if number == HANGUP else "; again to kill"
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"\n{name}: saving after this step{more}\n".encode())
        if together:
            os.kill(os.getpid(), signal.SIGTERM)

    calls = itertools.count()

    def stop() -> bool:
        if not together:
            return wish[0]
        # Counted here: steps are taken again after a rollback, and the service may be
        # asked only for numbers that grow.
        return multihost_utils.reached_preemption_sync_point(next(calls))

    own = (signal.SIGINT,) if together else (signal.SIGTERM, signal.SIGINT)
    for number in (*own, HANGUP):
        handler = signal.getsignal(number) if number else signal.SIG_IGN
        if number == HANGUP and handler == signal.SIG_IGN:
            continue
        before[number] = handler
        signal.signal(number, note)
    try:
        yield stop
    finally:
        restore(before)
