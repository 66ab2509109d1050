"""Tensors that lie in files: known by shape and type, read when asked for."""

import dataclasses
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

# The types a weight file may hold, by their names in safetensors.
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when asked for.

    `fetch(None)` returns all of it, `fetch(i)` its i-th part along the first axis.
    `stacked`: whoever copies it takes part after part, so that never all of it is in
    memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[int | None], np.ndarray]
    stacked: bool = False

    @classmethod
    def of(cls, array: "np.ndarray | LazyTensor") -> "LazyTensor":
        """An array in memory as a stored tensor; a stored one as it is."""
        if isinstance(array, LazyTensor):
            return array
        array = np.asarray(array)
        return cls(array.shape, array.dtype, lambda i: array if i is None else array[i])

    @property
    def size(self) -> int:
        """The number of its elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """All of it."""
        return self.fetch(None)

    def __array__(
        self, dtype: DTypeLike | None = None, copy: bool | None = None
    ) -> np.ndarray:
        """All of it, for numpy; of the file's own type unless `dtype` is given."""
        return np.asarray(self.read(), dtype)

    def parts(self) -> Iterator[np.ndarray]:
        """All of it, in order, in pieces that fit into memory."""
        if not self.stacked:
            yield self.fetch(None)
        else:
            yield from map(self.fetch, range(self.shape[0]))
