"""Each run at its own best of the same small sweep, one axis after the other."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.study.drawing import RAMP
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


Known = list[dict[tuple, float]]  # of each seed, the distance by point
Draw = Callable[[list[Point], int], Sequence[np.ndarray]]
Note = Callable[[list[Point], list[float]], None]


@dataclasses.dataclass(frozen=True)
class Sweeper:
    """Sweeps all seeds of a row side by side, each to its own best.

    `draw(points, steps)` draws a set of images a seed, `distances` measures the sets;
    `note(points, distances)` hears of every step of the sweep as it is measured.
    """

    seeds: int
    draw: Draw
    distances: Callable[[Sequence[np.ndarray]], list[float]]
    note: Note = lambda points, distances: None

    def run(
        self, axes: dict[str, tuple[Value, ...]], known: Known | None = None
    ) -> list[list[dict]]:
        """The measured points of each seed, in the order in which they were measured.

        What is `known` is not measured again. The best point of all is that of the
        smallest "fd_lite0".
        """
        best = [dict(START) for _ in range(self.seeds)]
        seen: Known = [{} for _ in range(self.seeds)]
        known = known or seen
        for axis, values in axes.items():
            for value in values:
                points = [{**point, axis: value} for point in best]
                if all(_key(p) in one for p, one in zip(points, seen, strict=True)):
                    continue
                for i, distance in enumerate(self._measured(points, known)):
                    seen[i].setdefault(_key(points[i]), distance)
            best = [_best(one) for one in seen]
        return [
            [{**_point(key), "fd_lite0": value} for key, value in one.items()]
            for one in seen
        ]

    def _measured(self, points: list[Point], known: Known) -> list[float]:
        """The distance of a point a seed, all of the same number of steps."""
        pairs = list(zip(map(_key, points), known, strict=True))
        if all(key in one for key, one in pairs):
            return [one[key] for key, one in pairs]
        found = self.distances(self.draw(points, int(points[0]["steps"])))
        self.note(points, found)
        return found


def known_of(lines: Sequence[dict], seeds: Sequence[int]) -> Known:
    """Points by seed, of lines with a "seed", a "point" and its "fd_lite0"."""
    return [
        {_key(one["point"]): one["fd_lite0"] for one in lines if one["seed"] == seed}
        for seed in seeds
    ]


def best_of(points: list[dict]) -> Point:
    """The point of the smallest distance, without it."""
    best = min(points, key=lambda point: point["fd_lite0"])
    return {axis: value for axis, value in best.items() if axis != "fd_lite0"}


def _key(point: Point) -> tuple:
    """A point without what says nothing: the interval where nothing is guided."""
    known = {**point, "interval": ALWAYS} if point["scale"] == 1 else point
    return tuple(sorted(known.items()))


def _point(key: tuple) -> Point:
    return dict(key)


def _best(seen: dict) -> Point:
    return _point(min(seen, key=seen.__getitem__))


def labels_like(labels: np.ndarray, count: int) -> np.ndarray:
    """`count` labels in the proportions of the training drawings, evenly chosen."""
    places = np.linspace(0, len(labels) - 1, count).round().astype(int)
    return np.sort(labels)[places]
