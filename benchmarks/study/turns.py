"""Who may use the device: many at once, or one alone to be timed.

Processes that share a GPU hold a file's lock together while they compute, and one that
takes a time holds it alone.
"""

import contextlib
import dataclasses
import fcntl
import pathlib
import time
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Turns:
    """Locks in a folder; processes that name the same folder take turns."""

    folder: pathlib.Path

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Beside others."""
        with self._held("gate", fcntl.LOCK_SH):
            device = self._open("device")
            fcntl.flock(device, fcntl.LOCK_SH)
        with device:
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """When all others have finished; who comes later waits at the gate."""
        with self._held("gate", fcntl.LOCK_EX), self._held("device", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def slot(self, count: int, patience: float = 0.2) -> Iterator[None]:
        """One of `count` places; `patience` is the time between two looks for one.

        Who looks more often comes first.
        """
        files = [self._open(f"slot{number}") for number in range(count)]
        while True:
            for file in files:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    try:
                        yield
                    finally:
                        for one in files:
                            one.close()
                    return
            time.sleep(patience)

    @contextlib.contextmanager
    def once(self, name: str) -> Iterator[None]:
        """Alone among those that do the same thing."""
        with self._held(name, fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Alone; BlockingIOError where another process does the same."""
        with self._held(name, fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield

    @contextlib.contextmanager
    def _held(self, name: str, kind: int) -> Iterator[None]:
        with self._open(name) as file:
            fcntl.flock(file, kind)
            yield

    def _open(self, name: str):
        self.folder.mkdir(parents=True, exist_ok=True)
        return (self.folder / f"{name}.lock").open("w")
