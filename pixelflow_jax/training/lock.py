"""One run at a time in a workdir: a lock that the operating system holds.

The lock is on WORKDIR/run.lock, and ends with the process that holds it, however that
ends. The file says in JSON who holds it: for the message of a second run, and for disks
that machines share without sharing their locks.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO

import jax
import numpy as np
from jax.experimental import multihost_utils

from pixelflow_jax.errors import UserError

NAME = "run.lock"
# What a disk says that knows no locks of this kind.
UNSUPPORTED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
LONGEST = 10_000  # bytes that are read of a record


class LockedError(UserError, RuntimeError):
    """This workdir cannot be had: another run is at work in it, mostly."""


@contextlib.contextmanager
def only_run(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the lock of `workdir` inside the block; the first process does it for all.

    Raises LockedError, in every process, where another run holds it or the folder
    cannot be written to.
    """
    problem, file = "", None
    if jax.process_index() == 0:
        try:
            file = acquire(workdir)
        except LockedError as error:
            problem = str(error)
        except OSError as error:
            problem = (
                f"Cannot write checkpoints to {workdir} ({error.strerror}): give a "
                "--workdir that this user may write to, on a disk with room."
            )
    try:
        _agree(problem, workdir)
        yield
    finally:
        if file is not None:
            release(workdir, file)


def acquire(workdir: pathlib.Path) -> IO[str]:
    """The open file of the lock; LockedError where a run that may live holds it."""
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / NAME
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _take(file, path)
            # The one before may have removed the file between opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                _write(file)
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def release(workdir: pathlib.Path, file: IO[str]) -> None:
    """Remove the lock's file and the lock."""
    with contextlib.suppress(OSError):  # a full or lost disk: the lock ends anyway
        (workdir / NAME).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        file.close()


def _take(file: IO[str], path: pathlib.Path) -> None:
    supported = True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise LockedError(_taken(path, _record(file))) from error
        if error.errno not in UNSUPPORTED:
            raise
        supported = False
    holder = _record(file)
    if not holder:
        return
    if holder.get("host") != socket.gethostname():
        # Its lock may not reach this machine, and nobody here can ask its process.
        raise LockedError(
            f"{_taken(path, holder)} If that run has ended without removing its lock "
            f"(killed, or its machine lost), remove it: rm '{path}'"
        )
    if not supported and _lives(holder.get("pid")):
        raise LockedError(_taken(path, holder))


def _taken(path: pathlib.Path, holder: dict) -> str:
    who = "another process"
    if holder:
        who = (
            f"process {holder.get('pid')} of {holder.get('host')} since "
            f"{holder.get('since')}"
        )
    return (
        f"A run is at work in {path.parent}: {who}. Two runs in one folder would "
        "overwrite each other's checkpoints: wait for it, end it, or give another "
        "--workdir."
    )


def _record(file: IO[str]) -> dict:
    """What the file says of its holder; nothing where it is empty or not readable."""
    try:
        file.seek(0)
        record = json.loads(file.read(LONGEST))
    except (ValueError, RecursionError, OSError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(file: IO[str]) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
    record = {"host": socket.gethostname(), "pid": os.getpid(), "since": now}
    file.seek(0)
    file.truncate()
    file.write(json.dumps(record) + "\n")
    file.flush()


def _lives(pid: object) -> bool:
    """Whether a process of this machine has that number."""
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _agree(problem: str, workdir: pathlib.Path) -> None:
    """Raise LockedError in every process where the first one has a problem."""
    if jax.process_count() > 1:
        refused = multihost_utils.broadcast_one_to_all(np.array(bool(problem)))
        if bool(refused) and not problem:
            problem = f"{workdir} cannot be trained in: process 0 says why."
    if problem:
        raise LockedError(problem)
