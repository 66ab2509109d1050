"""Images on their way to disk: in a file that grows while they are drawn.

A spool outlives its process: what it holds when that is killed is where the next one
goes on. Nothing reads it as a result; it is removed when the results are whole.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.errors import PipelineError

SAFE_SECONDS = 5.0  # of drawing that a kill may cost
PIECE = 2**24  # bytes copied at a time
COPIES = 2  # of the images on disk at once: the spool, and the npz made of it
EPOCH = (1980, 1, 1, 0, 0, 0)  # archives of the same images are the same bytes
SPOOL = ".drawing"  # the spool's folder, within that of the results


class Spool:
    """The images uint8 [count, h, w, 3] of one set, in the folder `.drawing` of `out`.

    `images.u8` holds them raw; `state.json` says which set they belong to, by its
    `digest`, and how many are `done`: safely on the disk. What another set left there
    is removed. Raises PipelineError where the disk cannot hold them.
    """

    def __init__(self, out: Path, digest: str, count: int, shape: tuple[int, int, int]):
        self.folder, self.count, self.shape = out.absolute() / SPOOL, count, shape
        self._digest, self._bytes = digest, int(np.prod(shape))
        self._noted = time.monotonic()
        self._data, self._state = self.folder / "images.u8", self.folder / "state.json"
        with self.explained():
            self.done = self._written_before()
            if not self.done:
                discard(out)
            self._check_room()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._data.open("r+b" if self.done else "w+b")

    def _written_before(self) -> int:
        """How many images of this set an earlier process left."""
        try:
            state = json.loads(self._state.read_text("utf-8"))
            if state["digest"] != self._digest:
                return 0
            whole = self._data.stat().st_size // self._bytes
            return min(int(state["done"]), whole, self.count)
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _check_room(self) -> None:
        needed = (self.count * COPIES - self.done) * self._bytes
        there = next(path for path in self.folder.parents if path.exists())
        free = shutil.disk_usage(there).free
        if needed > free:
            raise PipelineError(
                f"{self.count:,} images of {self.shape[0]} x {self.shape[1]} need "
                f"{needed / 1e6:,.1f} MB while they are drawn, but the disk of "
                f"{self.folder.parent} has {free / 1e6:,.1f} MB: make room, name "
                "another place with --out, or ask for fewer."
            )

    def restart(self) -> None:
        """Forget what is done."""
        self.done = 0

    def add(self, place: int, images: np.ndarray) -> None:
        """Store images uint8 [b, h, w, 3] from `place` on; all before it are stored."""
        with self.explained():
            # At their own place, so that writing them twice changes nothing.
            self._file.seek(place * self._bytes)
            self._file.write(np.ascontiguousarray(images).reshape(-1).data)
            reached = place + len(images)
            late = time.monotonic() - self._noted > SAFE_SECONDS
            if late or reached == self.count or not place:
                self._note(reached)

    def _note(self, done: int) -> None:
        """Count images as done once the disk has them, even after a loss of power."""
        self._file.flush()
        os.fsync(self._file.fileno())
        state = {"digest": self._digest, "done": done}
        with atomic_write(self._state) as partial:
            partial.write_text(json.dumps(state), "utf-8")
        self.done, self._noted = done, time.monotonic()

    def read(self, places: Sequence[int]) -> np.ndarray:
        """Some of the images, uint8 [n, h, w, 3]."""
        images = np.empty((len(places), *self.shape), np.uint8)
        for image, place in zip(images, places, strict=True):
            self._file.seek(place * self._bytes)
            content = self._file.read(self._bytes)
            image[...] = np.frombuffer(content, np.uint8).reshape(self.shape)
        return images

    def write_npz(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write all images as `arr_0` of an npz file, with other `arrays`."""
        header = {
            "descr": "|u1",
            "fortran_order": False,
            "shape": (self.count, *self.shape),
        }
        with (
            self.explained(),
            atomic_write(path) as partial,
            zipfile.ZipFile(partial, "w") as archive,
        ):
            with _member(archive, "arr_0") as member:
                np.lib.format.write_array_header_1_0(member, header)
                self._file.seek(0)
                shutil.copyfileobj(self._file, member, PIECE)
            for name, array in arrays.items():
                with _member(archive, name) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    def close(self) -> None:
        """Let go of the file; what is done stays for the next process."""
        self._file.close()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns a failed write into a PipelineError that says what is kept."""
        try:
            yield
        except OSError as error:
            kept = getattr(self, "done", 0)
            raise PipelineError(
                f"Writing to {error.filename or self.folder.parent} failed: "
                f"{error.strerror}. {kept:,} of {self.count:,} images are kept: mend "
                "that and give the same command again, and it goes on from there."
            ) from error


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made, while files are written into it.

    The operating system's lock is on the folder itself: it leaves no file, and ends
    with the process, however that ends. Disks without such locks are not guarded.
    Raises PipelineError where another process holds it, or it cannot be made.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise PipelineError(
            f"Writing to {folder} failed: {error.strerror}. Nothing was drawn: name "
            "another folder with --out."
        ) from error
    try:
        with contextlib.suppress(OSError):
            _lock(handle, folder)
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # where something lies in it by now
            for path in new:
                path.rmdir()


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PipelineError(
            f"Another command is writing to {folder} at this moment, and two would "
            "spoil each other's files: wait until it has ended, or name another --out."
        ) from error


def discard(out: Path) -> None:
    """Delete the spool in a folder, of whatever set."""
    shutil.rmtree(out / SPOOL, ignore_errors=True)


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator:
    """An array's file in an npz archive, open for writing, without a time stamp."""
    entry = zipfile.ZipInfo(f"{name}.npy", EPOCH)
    with archive.open(entry, "w", force_zip64=True) as file:
        yield file
