"""The features of one set of images, gathered batch by batch: one pass feeds all."""

import io
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation.features import Extractor
from pixelflow_jax.evaluation.statistics import Gaussian, Statistics


class Kept(NamedTuple):
    """Which arrays of an extractor become statistics, and which are kept by image."""

    statistics: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()


class SetFeatures(NamedTuple):
    """What an extractor saw in a set of images.

    `gaussians`: mean and covariance of arrays, by name; `rows`: arrays float32
    [n, width] in the order of the images (a reference may keep fewer than `count`).
    """

    count: int
    gaussians: dict[str, Gaussian]
    rows: dict[str, np.ndarray]


class Accumulator:
    """Gathers statistics and rows of images that come in any order, each once.

    `kept` says by extractor what is kept (`metrics.required` tells it); `rows_of`, the
    sorted numbers of the images whose rows are kept (all of them, if None).
    """

    def __init__(self, kept: Mapping[str, Kept], rows_of: np.ndarray | None = None):
        self._kept, self._rows_of = dict(kept), rows_of
        self._statistics: dict[str, Statistics] = {}
        self._rows: dict[str, list[np.ndarray]] = {}
        self._numbers: list[np.ndarray] = []  # of the images behind `_rows`
        self._covered: list[tuple[int, int]] = []  # [first, end) of images, sorted

    @property
    def count(self) -> int:
        """How many images it has seen."""
        return sum(end - first for first, end in self._covered)

    def add(
        self, extractors: Mapping[str, Extractor], images: np.ndarray, first: int
    ) -> None:
        """Look at images uint8 [b, h, w, 3], numbered from `first` on.

        Raises EvaluationError for images that are no such array or were seen before.
        """
        self.add_arrays(
            {name: extractors[name].extract(images) for name in self._kept},
            first,
            len(images),
        )

    def add_arrays(
        self, arrays: Mapping[str, Mapping[str, np.ndarray]], first: int, count: int
    ) -> None:
        """The same from arrays [count, width] by extractor and name."""
        if not count:
            return
        self._cover([(first, first + count)])
        numbers = np.arange(first, first + count)
        chosen = np.ones(count, bool)
        if self._rows_of is not None:
            chosen = np.isin(numbers, self._rows_of)
        self._numbers.append(numbers[chosen])
        for name, kept in self._kept.items():
            for key in kept.statistics:
                rows = arrays[name][key]
                self._of(f"{name}/{key}", rows.shape[1]).add(rows)
            for key in kept.rows:
                rows = np.asarray(arrays[name][key], np.float32)[chosen]
                self._rows.setdefault(f"{name}/{key}", []).append(rows)

    def merge(self, other: "Accumulator") -> None:
        """Add the images of another one of the same kind, such as another process'."""
        self.restore(other.state())

    def state(self) -> dict[str, np.ndarray]:
        """All it holds as arrays, float64 statistics included, for a file."""
        arrays = {
            "covered": np.array(self._covered, np.int64).reshape(-1, 2),
            "numbers": np.concatenate([np.zeros(0, np.int64), *self._numbers]),
        }
        for path, statistics in self._statistics.items():
            count, mean, scatter = statistics.moments()
            arrays[f"count/{path}"] = np.array(count)
            arrays[f"mean/{path}"], arrays[f"scatter/{path}"] = mean, scatter
        for path, parts in self._rows.items():
            arrays[f"rows/{path}"] = np.concatenate(parts)
        return arrays

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Add what `state` described; EvaluationError where images came twice."""
        self._cover([(int(first), int(end)) for first, end in state["covered"]])
        self._numbers.append(np.asarray(state["numbers"]))
        for key in state:
            kind, _, path = key.partition("/")
            if kind == "count":
                mean, scatter = state[f"mean/{path}"], state[f"scatter/{path}"]
                part = Statistics.from_moments(int(state[key]), mean, scatter)
                self._of(path, part.width).merge(part)
            elif kind == "rows":
                self._rows.setdefault(path, []).append(np.asarray(state[key]))

    def features(self, expected: int | None = None) -> dict[str, SetFeatures]:
        """By extractor, what was seen in images 0 to `count`, in their order.

        Raises EvaluationError where images are missing in between, or there are not
        `expected` of them.
        """
        self._check_whole(expected)
        order = np.argsort(np.concatenate(self._numbers), kind="stable")
        return {
            name: SetFeatures(
                self.count,
                {key: self._statistics[f"{name}/{key}"].gaussian() for key in kept[0]},
                {
                    key: np.concatenate(self._rows[f"{name}/{key}"])[order]
                    for key in kept[1]
                },
            )
            for name, kept in self._kept.items()
        }

    def gathered(self) -> "Accumulator":
        """One that holds the images of all processes; every process must call it."""
        whole = Accumulator(self._kept, self._rows_of)
        for state in _of_all_processes(self.state()):
            whole.restore(state)
        return whole

    def _of(self, path: str, width: int) -> Statistics:
        return self._statistics.setdefault(path, Statistics(width))

    def _cover(self, ranges: list[tuple[int, int]]) -> None:
        """Note which images have come; EvaluationError for one that had."""
        together: list[tuple[int, int]] = []
        for first, end in sorted([*self._covered, *ranges]):
            if together and first < together[-1][1]:
                raise EvaluationError(
                    f"Image {first} was given twice, so the set would count it twice: "
                    "number the images of each process or batch from its own first one."
                )
            if together and first == together[-1][1]:
                first = together.pop()[0]
            together.append((first, end))
        self._covered = together

    def _check_whole(self, expected: int | None) -> None:
        whole = expected or self.count
        if not self.count:
            raise EvaluationError("There is no image to evaluate: the set is empty.")
        if self._covered != [(0, whole)]:
            found = ", ".join(f"{first} to {end - 1}" for first, end in self._covered)
            raise EvaluationError(
                f"The set should hold images 0 to {whole - 1}, but holds {found}: draw "
                "or read the missing ones before metrics are computed."
            )


def _of_all_processes(state: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The states of all processes, in their order."""
    if jax.process_count() == 1:
        return [state]
    # As bytes: arrays on devices would lose their double precision.
    with io.BytesIO() as buffer:
        plain = {key.replace("/", "|"): array for key, array in state.items()}
        np.savez(buffer, **plain)  # type: ignore[arg-type]
        own = np.frombuffer(buffer.getvalue(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([len(own)], np.int32)).ravel()
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(own)] = own
    every = multihost_utils.process_allgather(padded)
    states = []
    for part, size in zip(every, sizes, strict=True):
        with np.load(io.BytesIO(part[:size].tobytes())) as arrays:
            states.append({key.replace("|", "/"): arrays[key] for key in arrays.files})
    return states
