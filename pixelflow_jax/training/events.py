"""TensorBoard event files, written by the calling thread.

tensorboardX's own SummaryWriter writes in a second thread: when the disk is full that
thread ends, and the run waits for it for ever.
"""

import os
import pathlib
import time

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter

# Protobuf makes these classes while the modules are imported.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

FLUSH_SECONDS = 10


class Events:
    """One event file in `folder`; earlier files lose their steps from `start` on."""

    def __init__(self, folder: pathlib.Path, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        self._flushed = time.monotonic()
        self.turn_back(start - 1)

    def scalars(self, values: dict[str, float], step: int) -> None:
        """A point of each curve."""
        for name, value in values.items():
            self._summary(summary.scalar(name, value), step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """A picture, uint8 [h, w, 3]."""
        self._summary(summary.image(name, image, dataformats="HWC"), step)

    def text(self, name: str, text: str, step: int) -> None:
        """A text in Markdown."""
        self._summary(summary.text(name, text), step)

    def turn_back(self, step: int) -> None:
        """All after `step` that was written before is no longer shown."""
        begin = SessionLog(status=SessionLog.START)
        self._write(Event(step=step + 1, session_log=begin))

    def _summary(self, value: Summary, step: int) -> None:
        self._write(Event(summary=value, step=step))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is still in memory."""
        self._file.close()
