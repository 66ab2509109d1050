"""Processes that end with the one that began them, however that ended."""

import os
import threading
import time

PERIOD = 0.5  # seconds between two looks at the parent


def end_with(parent: int) -> None:
    """End this process when `parent`, which began it, is gone.

    A parent that was killed (kill -9, no memory) can tell nobody, and its workers would
    wait for it for ever. Shared memory and semaphores of all are then removed by
    Python's own resource tracker, which waits for the last of them to end.
    """
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PERIOD)
    os._exit(1)
