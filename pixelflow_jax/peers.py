"""What a process does when another one of its run is lost, or stops answering.

JAX notices by heartbeats, and then aborts: a process that waits in an exchange cannot
be asked to end. What it says is long and names no remedy; this adds a sentence, and an
exit code that launchers understand. Where an exchange fails at once, as it does over
sockets that are closed, the error becomes a `LostError`.
"""

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator

import jax

from pixelflow_jax.errors import LOST, LostError

HEARTBEAT = 100  # seconds: JAX's own default
REMEDY = (
    "All that was saved is whole: start all processes again by the same command, and "
    "see the others' output for what happened to them."
)
ABORTED = (
    "\nLostError: JAX ended this process, as it lost touch with another one of the "
    f"run; its reason stands above. {REMEDY}\n"
)
# What errors of an exchange say, in lower case; of gloo, NCCL and JAX's own service.
SIGNS = (
    *("gloo", "nccl", "connection closed", "connection reset", "connection refused"),
    *("socket closed", "heartbeat", "coordination", "unhealthy", "barrier"),
)
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _aborted(number: int) -> None:
    os.write(2, ABORTED.encode())
    os._exit(LOST)


# Called by the system, from any thread; Python's own handlers wait for the main thread.
_handler = _Handler(_aborted)


def watch() -> None:
    """From now on an abort of this process ends it with a sentence and `LOST`."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, _Handler)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, _handler)


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Turns an error of an exchange between processes into a LostError."""
    try:
        yield
    except Exception as error:
        cause = _of_exchange(error)
        if cause is None or not jax.distributed.is_initialized():
            raise
        line = " ".join(str(cause).split())[:200]
        raise LostError(
            f"An exchange with another process of the run failed: {line}. It was lost, "
            f"or cannot be reached any more. {REMEDY}"
        ) from error


def _of_exchange(error: BaseException | None) -> BaseException | None:
    """The error of an exchange that this one is, or that it was raised from."""
    while error is not None:
        text = str(error).lower()
        is_jax = isinstance(error, jax.errors.JaxRuntimeError)
        if is_jax and any(sign in text for sign in SIGNS):
            return error
        error = error.__cause__ or error.__context__
    return None
