"""The sweep of a trained row, and what is measured at each seed's own best."""

import concurrent.futures
import contextlib
import dataclasses
import time
import typing
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.study import records, sweeping
from benchmarks.study.configs import FAMILIES
from benchmarks.study.denoising import Denoising, as_many
from benchmarks.study.drawing import Drawer, Wanted
from benchmarks.study.looking import Seen
from benchmarks.study.measure import Judge
from benchmarks.study.rows import Row
from benchmarks.study.training import Setting, Trained
from pixelflow_jax.data.images import grid

if typing.TYPE_CHECKING:
    from benchmarks.study.piece import Bench

SHOWN = 12  # images of the first seed that are kept
SWEEP_SEED, FINAL_SEED = 1, 2  # of the noise


@dataclasses.dataclass(frozen=True)
class Measuring:
    """A trained row that is swept and measured; `spent` are seconds by part."""

    bench: "Bench"
    row: Row
    seeds: tuple[int, ...]
    drawer: Drawer
    trained: Trained
    setting: Setting
    judge: Judge
    spent: dict[str, float] = dataclasses.field(default_factory=dict)

    def lines(self, axes: dict) -> list[dict]:
        """Results of each seed at its best, from noise that the sweep did not see."""
        points = self._sweep(axes)
        best = [sweeping.best_of(one) for one in points]
        images = self._images_of_best(best)
        seen = self._seen(images)
        self._keep_pictures(images[0], seen[0].lite0)
        speed = self._timed(best[0]) if self.bench.timed else None
        results = self._judged(self.judge.results, seen)
        losses = self._denoised()
        return [
            {
                "best": best[i],
                "results": results[i] | losses[i],
                "sweep": points[i],
                "losses": self.trained.losses[i].round(5).tolist(),
                "draw_ms_an_image": speed,
            }
            for i in range(len(best))
        ]

    def _denoised(self) -> list[dict[str, float]]:
        """Each seed's loss on drawings of both splits, as many of each.

        Of the faster average, which has forgotten all but the last steps. Nothing where
        the family is not `denoised`.
        """
        if not FAMILIES[self.row.family].denoised:
            return [{} for _ in self.seeds]
        train, heldout = self.bench.splits
        splits = {"denoising": as_many(train, len(heldout.labels))}
        splits["denoising_heldout"] = heldout
        measure = Denoising(self.drawer.config)
        average = next(iter(self.trained.averages.values()))
        with self.bench.turns.shared():
            losses = [
                measure(average, self.setting.constants, split)
                for split in splits.values()
            ]
        seeds = zip(*losses, strict=True)
        return [dict(zip(splits, one, strict=True)) for one in seeds]

    def _sweep(self, axes: dict) -> list[list[dict]]:
        """The points of each seed; those that a run before this one left are taken."""
        file, common = self.bench.out / records.POINTS, self._common()
        labels = self._labels(self.bench.budget.sweep_images)

        def note(points: list[dict], distances: list[float]) -> None:
            for seed, point, value in zip(self.seeds, points, distances, strict=True):
                line = {**common, "seed": seed, "point": point, "fd_lite0": value}
                records.append(file, line)

        def measure(images: Sequence[np.ndarray]) -> list[float]:
            rows = [one.lite0 for one in self._seen(images)]
            return self._judged(self.judge.distance, rows)

        sweeper = sweeping.Sweeper(
            len(self.seeds),
            lambda points, steps: self._draw(points, steps, labels, SWEEP_SEED),
            measure,
            note,
        )
        known = [one for one in records.read(file) if common.items() <= one.items()]
        return sweeper.run(axes, sweeping.known_of(known, self.seeds))

    def _common(self) -> dict:
        """What points of this row say, and of no other."""
        budget = self.bench.budget
        return {"budget": budget.name, "row": self.row.name, "steps": budget.steps}

    def _images_of_best(self, best: list[dict]) -> list[np.ndarray]:
        """Each seed's images at its own best."""
        labels, images = self._labels(self.bench.budget.images), {}
        for steps in sorted({int(point["steps"]) for point in best}):
            drawn = self._draw(best, steps, labels, FINAL_SEED)
            own = (i for i, point in enumerate(best) if point["steps"] == steps)
            images |= {i: drawn[i] for i in own}
        return [images[i] for i in range(len(best))]

    def _labels(self, number: int) -> np.ndarray:
        return sweeping.labels_like(self.bench.splits[0].labels, number)

    def _draw(
        self, points: list[dict], steps: int, labels: np.ndarray, seed: int
    ) -> np.ndarray:
        with self.bench.turns.shared(), self._clock("draw"):
            return self.drawer(
                self.trained.averages,
                self.setting.constants,
                points,
                steps,
                Wanted(labels, seed),
            )

    def _seen(self, images: Sequence[np.ndarray]) -> list[Seen]:
        """What the judges see in each seed's images, looked at together."""
        with self.bench.turns.shared(), self._clock("look"):
            every = self.bench.look(np.concatenate(images))
        parts = [np.split(rows, len(images)) for rows in every]
        return [Seen(*one) for one in zip(*parts, strict=True)]

    def _judged(self, judge: Callable, of: Sequence) -> list:
        """What `judge` says of each seed's, in a thread each."""
        with (
            self._clock("judge"),
            concurrent.futures.ThreadPoolExecutor(len(of)) as threads,
        ):
            return list(threads.map(judge, of))

    @contextlib.contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        """Adds the seconds within it to those `spent` on a part."""
        began = time.perf_counter()
        yield
        spent = self.spent.get(part, 0.0) + time.perf_counter() - began
        self.spent[part] = round(spent, 2)

    def _timed(self, point: dict) -> float:
        """Milliseconds an image, alone on the device, of one batch of each seed."""
        labels = self._labels(self.bench.budget.draw_batch)
        wanted, points = Wanted(labels, 0), [point] * len(self.seeds)
        given = self.trained.averages, self.setting.constants, points
        seconds = []
        with self.bench.turns.alone():
            for _ in range(2):
                start = time.perf_counter()
                self.drawer(*given, int(point["steps"]), wanted)
                seconds.append(time.perf_counter() - start)
        return 1e3 * min(seconds) / (len(points) * len(labels))

    def _keep_pictures(self, images: np.ndarray, rows: np.ndarray) -> None:
        """A strip: images evenly chosen, and below each its nearest drawing."""
        places = np.linspace(0, len(images) - 1, SHOWN).round().astype(int)
        nearest = self.judge.nearest(rows[places])
        strip = np.concatenate([images[places], self.bench.splits[0].images[nearest]])
        name = f"{self.bench.budget.name}_{self.row.name}_samples.png"
        line = records.picture(name, grid(strip, SHOWN))
        records.append(self.bench.out / records.PICTURES, line)
