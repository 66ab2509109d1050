"""Each run at its own best of the same small sweep, one axis after the other."""

import concurrent.futures
import dataclasses
from collections.abc import Callable

import numpy as np

from benchmarks.study.drawing import RAMP, Drawer, Wanted
from benchmarks.study.measure import Judge
from pixelflow_jax.evaluation.sweep import ALWAYS, Point, Value

SWEEP: dict[str, tuple[Value, ...]] = {
    "scale": (1.0, 1.5, 2.5, 4.0),
    "interval": (ALWAYS, "0.1:1"),
    "ema": ("0.998", "0.99"),
    # Last: seeds whose steps differ are drawn by different programs.
    "steps": (10, 20, 40),
}
CASCADE_INTERVALS = (ALWAYS, RAMP)
START: Point = {"scale": 1.0, "interval": ALWAYS, "steps": 20, "ema": "0.998"}


def axes(stages: int) -> dict[str, tuple[Value, ...]]:
    """The values of each axis; in a cascade guidance may grow with the stage."""
    if stages == 1:
        return dict(SWEEP)
    return {**SWEEP, "interval": CASCADE_INTERVALS}


@dataclasses.dataclass(frozen=True)
class Sweeper:
    """Sweeps all seeds of a config side by side, each to its own best.

    `turn()` is entered for all that runs on the device.
    """

    drawer: Drawer
    averages: dict[str, dict]
    judge: Judge
    wanted: Wanted
    turn: Callable

    def run(self, axes: dict[str, tuple[Value, ...]]) -> list[list[dict]]:
        """The measured points of each seed, in the order in which they were measured.

        The best point of all is that of the smallest "fd_lite0".
        """
        seeds = range(self.drawer.seeds)
        best = [dict(START) for _ in seeds]
        seen: list[dict[tuple, float]] = [{} for _ in seeds]
        for axis, values in axes.items():
            for value in values:
                points = [{**point, axis: value} for point in best]
                if all(_key(p) in one for p, one in zip(points, seen, strict=True)):
                    continue
                found = self.distances(points, int(points[0]["steps"]))
                for point, one, distance in zip(points, seen, found, strict=True):
                    one.setdefault(_key(point), distance)
            best = [_best(one) for one in seen]
        return [
            [{**_point(key), "fd_lite0": value} for key, value in one.items()]
            for one in seen
        ]

    def distances(self, points: list[Point], steps: int) -> list[float]:
        """FD-lite0 of a point a seed, all of that many steps."""
        with self.turn():
            images = self.drawer(self.averages, points, steps, self.wanted)
            rows = [self.judge.features(one) for one in images]
        with concurrent.futures.ThreadPoolExecutor(len(rows)) as threads:
            return list(threads.map(self.judge.distance, rows))


def best_of(points: list[dict]) -> Point:
    """The point of the smallest distance, without it."""
    best = min(points, key=lambda point: point["fd_lite0"])
    return {axis: value for axis, value in best.items() if axis != "fd_lite0"}


def _key(point: Point) -> tuple:
    """A point without what says nothing: the interval where nothing is guided."""
    known = {**point, "interval": ALWAYS} if point["scale"] == 1 else point
    return tuple(known.items())


def _point(key: tuple) -> Point:
    return dict(key)


def _best(seen: dict) -> Point:
    return _point(min(seen, key=seen.__getitem__))


def labels_like(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` labels in the proportions of the training drawings, evenly chosen."""
    places = np.linspace(0, len(labels) - 1, count).round().astype(int)
    return np.sort(labels)[places]
