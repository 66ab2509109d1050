"""Tasks spread over processes that end with the one that began them."""

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pixelflow_jax.data.parent import end_with
from pixelflow_jax.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")
_work: Callable | None = None  # what this worker does; sent once, not with every task


def run_tasks(
    work: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    """What `work` returns for each task, in the order in which they are done.

    With one worker, or one task, all is done in this process. `work` is sent to others
    and must be picklable. Raises DataError where one of them dies.
    """
    if workers <= 1 or len(tasks) <= 1:
        yield from map(work, tasks)
        return
    executor = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(os.getpid(), work),
    )
    try:
        futures = [executor.submit(_do, task) for task in tasks]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise DataError(
            "A worker process ended early, most likely for want of memory: run the "
            "same command again with fewer --workers; it continues where it stopped."
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _begin_worker(parent: int, work: Callable) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us in good order
    end_with(parent)


def _do(task: Any) -> Any:
    assert _work is not None
    return _work(task)
