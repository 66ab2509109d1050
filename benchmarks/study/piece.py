"""One row of the study from its config to its lines of results."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import harness
from benchmarks.study import sweeping
from benchmarks.study.data import Pictures, Reference
from benchmarks.study.drawing import Drawer, Wanted
from benchmarks.study.measure import Judge
from benchmarks.study.rows import Row
from benchmarks.study.training import Together, Trained
from benchmarks.study.turns import Turns
from pixelflow_jax.data.images import grid, save_png
from pixelflow_jax.evaluation.extractors import open_extractor
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.interface import count

SHOWN = 12  # images of the first seed that are kept
SWEEP_SEED, FINAL_SEED = 1, 2  # of the noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How large everything is; `SMOKE` is for the CPU."""

    steps: int = 3000
    batch: int = 0  # 0: the config's
    size: int = 64
    width: int = 0  # 0: the config's
    sweep_images: int = 600
    images: int = 2000
    draw_batch: int = 200
    pictures: int = 0  # of each split; 0: all
    timed_segments: int = 3
    axes: dict[str, tuple] = dataclasses.field(default_factory=dict)  # {}: all

    def applied(self, config: Experiment) -> Experiment:
        """The config at that size."""
        changes: dict[str, Any] = {"steps": self.steps}
        if self.batch:
            changes["batch_size"] = self.batch
        config = dataclasses.replace(config, **changes)
        data = dataclasses.replace(config.data, image_size=self.size)
        model: Any = config.model
        if self.width:
            model = dataclasses.replace(model, width=self.width, heads=1, depth=3)
        if hasattr(model, "image_size"):
            model = dataclasses.replace(model, image_size=self.size)
        return dataclasses.replace(config, data=data, model=model)


SMOKE = Budget(
    steps=4,
    batch=6,
    size=32,
    width=32,
    sweep_images=8,
    images=8,
    draw_batch=4,
    pictures=24,
    timed_segments=1,
    axes={"scale": (1.0, 2.0), "steps": (20, 2)},
)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all rows of a process share: the drawings, and what judges images."""

    budget: Budget
    out: pathlib.Path
    pictures: Pictures
    judge: Judge
    turns: Turns

    @classmethod
    def of(cls, config: Experiment, budget: Budget, out: pathlib.Path) -> "Bench":
        """Draw both splits and look at them."""
        data = budget.applied(config).data
        splits = [
            Pictures.of(data, split, budget.pictures) for split in ("train", "test")
        ]
        extractor = open_extractor("lite0", batch=8 if budget.pictures else 250)
        turns = Turns(out / "turns")
        with turns.shared():
            train, heldout = (Reference.of(one, extractor) for one in splits)
        judge = Judge(extractor, train, heldout)
        return cls(budget, out, splits[0], judge, turns)

    def floor(self, heldout: Reference) -> dict:
        """What the drawings held out score themselves, for the report."""
        rows = heldout.rows
        return {
            "fd_lite0": self.judge.distance(rows),
            "copied": self.judge.copied(rows),
        }

    def run(self, row: Row, seeds: Sequence[int]) -> list[dict]:
        """Train, sweep and measure a row: a line of results a seed."""
        began = time.perf_counter()
        config = self.budget.applied(row.build())
        trained = Together(config, tuple(seeds)).train(self.pictures, self.turns.shared)
        at = time.perf_counter()
        drawer = Drawer(
            config, trained.averages, trained.constants, self.budget.draw_batch
        )
        points = self._sweep(config, drawer, len(seeds))
        best = [sweeping.best_of(one) for one in points]
        swept = time.perf_counter()
        images, rows = self._final(drawer, best)
        results = [self.judge.results(one) for one in rows]
        self._keep_pictures(row, images[0], rows[0])
        timed = self._timed(drawer, best[0])
        common = {
            "row": row.name,
            "params": count(trained.averages[config.average_names[0]]) // len(seeds),
            "forward_mflops": self._flops(config),
            "steps": config.steps,
            "batch": config.batch_size,
            "side_by_side": len(seeds),
            "train_ms_a_step": _middle(trained.segment_seconds) / self._segment(config),
            **timed,
            "seconds": {
                "train": at - began,
                "sweep": swept - at,
                "all": time.perf_counter() - began,
                "device_train": sum(trained.segment_seconds),
            },
        }
        return [
            {
                **common,
                "seed": seed,
                "best": best[i],
                "results": results[i],
                "sweep": points[i],
                "losses": _rounded(trained, i),
            }
            for i, seed in enumerate(seeds)
        ]

    def _sweep(self, config: Experiment, drawer: Drawer, seeds: int) -> list:
        labels = sweeping.labels_like(self.pictures.labels, self.budget.sweep_images)
        sweeper = sweeping.Sweeper(
            drawer, self.judge, Wanted(labels, SWEEP_SEED), self.turns.shared
        )
        axes = self.budget.axes or sweeping.axes(len(config.path.stages()))
        return sweeper.run(axes, seeds)

    def _final(self, drawer: Drawer, best: list[dict]) -> tuple[list, list]:
        """Images and features of each seed at its best, from noise not seen before."""
        labels = sweeping.labels_like(self.pictures.labels, self.budget.images)
        wanted, images = Wanted(labels, FINAL_SEED), {}
        for steps in sorted({int(point["steps"]) for point in best}):
            with self.turns.shared():
                drawn = drawer(best, steps, wanted)
            images |= {
                i: drawn[i] for i, point in enumerate(best) if point["steps"] == steps
            }
        ordered = [images[i] for i in range(len(best))]
        with self.turns.shared():
            return ordered, [self.judge.features(one) for one in ordered]

    def _timed(self, drawer: Drawer, point: dict) -> dict:
        """Milliseconds an image, alone on the device, of one batch of each seed."""
        labels = sweeping.labels_like(self.pictures.labels, self.budget.draw_batch)
        seeds = len(jax.tree.leaves(drawer.averages)[0])
        points, steps = [point] * seeds, int(point["steps"])
        seconds = []
        with self.turns.alone():
            for _ in range(self.budget.timed_segments):
                start = time.perf_counter()
                drawer(points, steps, Wanted(labels, FINAL_SEED))
                seconds.append(time.perf_counter() - start)
        return {"draw_ms_an_image": 1e3 * min(seconds) / (seeds * len(labels))}

    def _keep_pictures(self, row: Row, images: np.ndarray, rows: np.ndarray) -> None:
        """A strip: images evenly chosen, and below each its nearest drawing."""
        places = np.linspace(0, len(images) - 1, SHOWN).round().astype(int)
        nearest = self.judge.nearest(rows[places])
        both = np.concatenate([images[places], self.pictures.images[nearest]])
        save_png(self.out / "pictures" / f"{row.name}.png", grid(both, SHOWN))

    def _flops(self, config: Experiment) -> float:
        sizes = [stage.size(*[config.data.image_size] * 2) for stage in _stages(config)]
        return sum(config.model.flops(*size) for size in sizes) / len(sizes) / 1e6

    def _segment(self, config: Experiment) -> float:
        """Thousandths of the steps of a launch."""
        from benchmarks.study.training import SEGMENT

        return min(SEGMENT, config.steps) / 1e3


def _stages(config: Experiment) -> tuple:
    return config.path.stages()


def _middle(values: list[float]) -> float:
    return float(np.median(values))


def _rounded(trained: Trained, seed: int) -> list[float]:
    return [round(float(value), 5) for value in trained.losses[seed]]


def described(line: dict) -> dict:
    """A line of results with all that it depends on."""
    return {**line, **harness.card(), **harness.environment()}
