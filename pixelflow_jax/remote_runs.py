"""Runs whose folder lies on gs://: checkpoints are written there, all else is copied.

Orbax writes and reads the checkpoints in the store itself, through epath and
TensorStore, from all processes. What else a run writes (metrics, config, curves,
pictures) grows line by line, which nothing in a store can: it lies in a folder of this
machine, and the first process copies what changed to the store twice a minute and at
the end, and what others have written there to this machine before it begins.
"""

import contextlib
import datetime
import importlib.util
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from pixelflow_jax import remote
from pixelflow_jax.atomic import PARTIAL, atomic_write
from pixelflow_jax.errors import UserError
from pixelflow_jax.remote import Located

MARK = ".remote"  # in the folder here: the address of the one in the store
COPIED = ".copied"  # there: what is known of files that are the same in both
LOCK = "run.lock"
IN_STORE = ("checkpoints", "best")  # what Orbax writes
PERIOD = 30.0  # seconds between two copies, which also say that the run lives
STALE = 300.0  # seconds without a word, after which a run is thought to be dead
FORBIDDEN = ("s3",)


def folder(name: str | Path | None, what: str, error: type[UserError]) -> Path | None:
    """The folder here of a run whose own is gs://BUCKET/NAME; None for other names.

    Raises `error` for a store that runs cannot write to, or where gcsfs is missing.
    """
    place = None if name is None else remote.located(name)
    if place is None:
        return None
    if place.scheme in FORBIDDEN or not place.key:
        raise error(
            f"{what} is {str(name)!r}: the folder of a run is one of this machine, or "
            "of a bucket of gs://, as in gs://bucket/runs/mine."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise error(
            f"{what} is {str(name)!r}, for which the package gcsfs is needed: pip "
            "install 'pixelflow_jax[gcs]'."
        )
    here = remote.cache() / "runs" / place.scheme / place.bucket / place.key
    for inside in IN_STORE[:1]:
        (here / inside).mkdir(parents=True, exist_ok=True)
    with atomic_write(here / MARK, shared=True) as partial:
        partial.write_text(str(place))
    return here


def address(run: Path) -> Located | None:
    """Where the folder of a run lies in a store; None where it lies here."""
    mark = run / MARK
    return remote.located(mark.read_text()) if mark.is_file() else None


def in_store(checkpoints: Path) -> Path | None:
    """A run's folder of checkpoints as Orbax takes it; None where it lies here."""
    place = address(checkpoints.parent)
    if place is None:
        return None
    from etils import epath

    return cast(Path, epath.Path(f"{place}/{checkpoints.name}"))


@contextlib.contextmanager
def copied(run: Path | None, *, alone: bool) -> Iterator[None]:
    """Keep the folder of a run and that in its store in step, inside the block.

    `alone`: no other run may be at work there. Nothing happens for folders that lie
    here. Raises UserError where another run is at work, or the store cannot be reached.
    """
    place = None if run is None else address(run)
    if run is None or place is None:
        yield
        return
    try:
        copier = _Copier(run, place)
        if alone:
            copier.lock()
        copier.fetch()
    except ValueError as failure:  # TensorStore's, for all
        raise remote.unreachable("--workdir", place, failure, UserError) from failure
    stop = threading.Event()
    thread = threading.Thread(target=copier.follow, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        copier.push()
        copier.unlock()


class _Copier:
    """Copies files between the folder of a run here and its own in a store."""

    def __init__(self, run: Path, place: Located):
        self._run, self._place = run, place
        self._store: Any = remote.open_store(place)
        self._lock: bytes | None = None  # what the store calls our record
        self._known: dict[str, list] = {}
        with contextlib.suppress(OSError, ValueError):
            self._known = dict(json.loads((run / COPIED).read_text()))

    def lock(self) -> None:
        """Take the run; UserError where another lives in it."""
        found = self._store.read(self._key(LOCK)).result()
        if found.state == "value":
            self._check_dead(found.value)
        stamp = self._write(LOCK, self._record(), found.stamp.generation)
        if stamp is None:
            raise UserError(
                f"Another run began in {self._place} just now: wait for it."
            )
        self._lock = stamp

    def _check_dead(self, content: bytes) -> None:
        try:
            record = json.loads(content)
            host, pid = str(record["host"]), int(record["pid"])
            then = datetime.datetime.fromisoformat(record["seen"])
        except (ValueError, TypeError, KeyError):
            return
        age = (datetime.datetime.now(datetime.UTC) - then).total_seconds()
        here = host == socket.gethostname()
        if age > STALE or (here and not _lives(pid)):
            line = f"The run of process {pid} of {host} in {self._place} has ended."
            print(line, file=sys.stderr)
            return
        raise UserError(
            f"A run is at work in {self._place}: process {pid} of {host}, {age:.0f} "
            f"seconds ago. If it has ended, wait {STALE:.0f} seconds, or remove its "
            f"lock: gcloud storage rm {self._place}/{LOCK}"
        )

    def unlock(self) -> None:
        """Give the run back."""
        if self._lock is not None:
            self._write(LOCK, None, self._lock)

    def fetch(self) -> None:
        """Bring what is in the store and not the same here."""
        for key in remote.keys_below(self._store, self._place.key):
            name = key.removeprefix(f"{self._place.key}/")
            if name.split("/")[0] in (*IN_STORE, LOCK):
                continue
            path, known = self._run / name, self._known.get(name)
            ours = known is not None and path.is_file()
            options = (
                {"if_not_equal": bytes.fromhex(known[0])} if ours and known else {}
            )
            found = self._store.read(key, **options).result()
            if found.state == "value":
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as partial:
                    partial.write_bytes(found.value)
                self._remember(name, path, bytes(found.stamp.generation))
        self._save()

    def follow(self, stop: threading.Event) -> None:
        """Copy what changed every PERIOD, until told to stop."""
        while not stop.wait(PERIOD):
            try:
                self.push()
                if self._lock is not None:
                    self._lock = self._write(LOCK, self._record(), self._lock)
            except Exception as failure:  # the next time may be better
                print(f"Copying to {self._place}: {failure}"[:200], file=sys.stderr)

    def push(self) -> None:
        """Copy what changed here to the store."""
        for path in sorted(self._run.rglob("*")):
            name = path.relative_to(self._run).as_posix()
            parts = name.split("/")
            hidden = any(part.startswith(".") for part in parts)
            if parts[0] in (*IN_STORE, LOCK) or hidden or name.endswith(PARTIAL):
                continue
            with contextlib.suppress(FileNotFoundError):  # moved meanwhile
                if path.is_file() and not self._is_known(name, path):
                    facts, content = path.stat(), path.read_bytes()
                    stamp = self._store.write(self._key(name), content).result()
                    facts = (facts.st_size, facts.st_mtime_ns)
                    self._known[name] = [bytes(stamp.generation).hex(), *facts]
        self._save()

    def _is_known(self, name: str, path: Path) -> bool:
        facts = path.stat()
        return self._known.get(name, [])[1:] == [facts.st_size, facts.st_mtime_ns]

    def _remember(self, name: str, path: Path, generation: bytes) -> None:
        facts = path.stat()
        self._known[name] = [generation.hex(), facts.st_size, facts.st_mtime_ns]

    def _save(self) -> None:
        with atomic_write(self._run / COPIED, sync=False) as partial:
            partial.write_text(json.dumps(self._known))

    def _key(self, name: str) -> str:
        return f"{self._place.key}/{name}"

    def _write(self, name: str, content: bytes | None, before: bytes) -> bytes | None:
        """Write, or remove, what the store calls `before`; None where it changed."""
        stamp = self._store.write(self._key(name), content, if_equal=before).result()
        return bytes(stamp.generation) or None

    def _record(self) -> bytes:
        now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
        record = {"host": socket.gethostname(), "pid": os.getpid(), "seen": now}
        return json.dumps(record).encode()


def _lives(pid: int) -> bool:
    """Whether a process of this machine has that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()
