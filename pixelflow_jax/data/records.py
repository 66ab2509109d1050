"""Random access to the records of many ArrayRecord files, few of them open at once."""

import bisect
import collections
import itertools
import threading
from collections.abc import Sequence

from array_record.python import array_record_module  # pyright: ignore (compiled)

from pixelflow_jax.data.index import RecordFile
from pixelflow_jax.errors import DataError

# A process may usually have 1,024 files open, on some systems 256, and others need
# some of them. Opening a file costs a fifth of a millisecond.
MAX_OPEN = 64
READER_OPTIONS = "readahead_buffer_size:0"  # which random access needs
READER_BUFFER = 32768
TOO_MANY = "Too many open files"


class Records:
    """Record i of all files, in their order; picklable, and safe to use in threads.

    Files are opened when they are needed; of those that are open, the one that was used
    longest ago is closed for the next. Raises whatever ArrayRecord raises of a damaged
    file, and DataError where the system opens no more files.
    """

    def __init__(self, files: Sequence[RecordFile], max_open: int = MAX_OPEN):
        self._files, self._max_open = list(files), max_open
        self._ends = list(itertools.accumulate(file.take for file in files))
        self._begin()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"There is no record {index} of {len(self)}.")
        number = bisect.bisect_right(self._ends, index)
        file = self._files[number]
        place = index - (self._ends[number] - file.take) + file.skip
        return self._reader(number).read([place])[0]

    @property
    def open_files(self) -> int:
        """How many files are open now."""
        return len(self._open)

    def _begin(self) -> None:
        self._open: collections.OrderedDict = collections.OrderedDict()
        self._lock = threading.Lock()

    def _reader(self, number: int) -> array_record_module.ArrayRecordReader:
        with self._lock:
            reader = self._open.pop(number, None) or self._opened(number)
            self._open[number] = reader
            if len(self._open) > self._max_open:
                # A thread that still reads it holds it: its file closes after that.
                self._open.popitem(last=False)
            return reader

    def _opened(self, number: int) -> array_record_module.ArrayRecordReader:
        try:
            return array_record_module.ArrayRecordReader(
                self._files[number].filename,
                options=READER_OPTIONS,
                file_reader_buffer_size=READER_BUFFER,
            )
        except Exception as error:
            if TOO_MANY not in str(error):
                raise
            raise DataError(
                f"{self._files[number].filename} cannot be opened: the system allows "
                "this process no more open files. Raise the limit (ulimit -n 4096), or "
                "lower data.workers."
            ) from error

    def __getstate__(self) -> dict:
        # Open files and locks stay with the process that made them.
        return {k: v for k, v in self.__dict__.items() if k not in ("_open", "_lock")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._begin()
