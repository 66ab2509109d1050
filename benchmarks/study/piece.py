"""One row of the study from its config to its lines of results."""

import concurrent.futures
import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.study import configs, kept, sweeping
from benchmarks.study.data import Pictures, Reference
from benchmarks.study.drawing import Drawer, Wanted
from benchmarks.study.measure import Judge
from benchmarks.study.rows import ROWS, Row
from benchmarks.study.training import Together, Trained
from benchmarks.study.turns import Turns
from pixelflow_jax.data.images import grid, save_png
from pixelflow_jax.evaluation.extractors import open_extractor
from pixelflow_jax.evaluation.features import FEATURES
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.interface import count

SHOWN = 12  # images of the first seed that are kept
SWEEP_SEED, FINAL_SEED = 1, 2  # of the noise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How large everything is: by default for a GPU.

    `easy` narrows the drawings to faces, flags, hearts and fruit, in three classes.
    """

    name: str = "gpu"
    steps: int = 1500
    batch: int = 0  # 0: the config's
    size: int = 64
    width: int = 0  # 0: the config's
    shallower: int = 0  # blocks less, where the width is said
    sweep_images: int = 200
    images: int = 1000
    draw_batch: int = 200
    pictures: int = 0  # of each split; 0: all
    easy: bool = False
    lite0_batch: int = 250
    axes: dict[str, tuple] = dataclasses.field(default_factory=dict)  # {}: all

    def applied(self, config: Experiment) -> Experiment:
        """The config at that size."""
        warmup = max(1, self.steps // 20)
        config = dataclasses.replace(
            config,
            steps=self.steps,
            batch_size=self.batch or config.batch_size,
            optimizer=dataclasses.replace(config.optimizer, warmup=warmup),
        )
        data = dataclasses.replace(config.data, image_size=self.size)
        model: Any = config.model
        if self.easy:
            data.source = configs.easy()
            model = dataclasses.replace(model, num_classes=len(configs.SIMPLE))
        if self.width:
            heads = max(1, self.width // 64)
            depth = model.depth - self.shallower
            model = dataclasses.replace(
                model, width=self.width, heads=heads, depth=depth
            )
        if hasattr(model, "image_size"):
            model = dataclasses.replace(model, image_size=self.size)
        return dataclasses.replace(config, data=data, model=model)


# For two CPU cores: fewer, simpler drawings at 32 px; patches wider than the network.
SMALL = Budget(
    name="small",
    steps=700,
    batch=33,
    size=32,
    width=96,
    shallower=2,
    easy=True,
    sweep_images=48,
    images=160,
    draw_batch=16,
    lite0_batch=32,
    axes={"ema": ("0.998", "0.99"), "scale": (2.0,), "steps": (20, 10)},
)
SMOKE = Budget(
    name="smoke",
    steps=4,
    batch=6,
    size=32,
    width=32,
    shallower=2,
    sweep_images=8,
    images=8,
    draw_batch=4,
    pictures=24,
    lite0_batch=8,
    axes={"scale": (1.0, 2.0), "steps": (20, 2)},
)


BUDGETS = {one.name: one for one in (Budget(), SMALL, SMOKE)}


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all rows of a process share: the drawings, and what judges images.

    `slots` rows of all processes train and are measured at a time, while others
    compile; `lite0` is the feature network's file ("": the installed package's).
    `timed`: drawing is timed with the device to itself, for which others wait.
    """

    budget: Budget
    out: pathlib.Path
    slots: int
    lite0: str = ""
    timed: bool = False

    @property
    def turns(self) -> Turns:
        """Those of all processes of this run."""
        return Turns(self.out / "turns")

    @functools.cached_property
    def splits(self) -> list[Pictures]:
        """The training drawings and those held out."""
        data = self.budget.applied(next(iter(ROWS.values())).build()).data
        most = self.budget.pictures
        return [Pictures.of(data, split, most) for split in ("train", "test")]

    @functools.cached_property
    def judge(self) -> Judge:
        """The evaluator; the first process to ask looks at the drawings for all."""
        batch = self.budget.lite0_batch
        file = self.out / "drawings.npz"
        with self.turns.once("judge"):
            extractor = open_extractor("lite0", self.lite0, batch=batch)
            if not file.exists():
                seen = [extractor.extract(one.images)[FEATURES] for one in self.splits]
                np.savez(file, *seen)
            with np.load(file) as arrays:
                train, heldout = (Reference(arrays[name]) for name in arrays.files)
        return Judge(extractor, train, heldout)

    def run(self, row: Row, seeds: Sequence[int], patience: float = 0.2) -> list[dict]:
        """Train, sweep and measure a row: a line of results a seed."""
        clock = [time.perf_counter()]
        config = self.budget.applied(row.build())
        together = Together(config, tuple(seeds), self.splits[0])
        file = kept.place(self.out, row.name, seeds, config.steps)
        trained = kept.load(file)
        program = None if trained else together.compile()
        shapes = together.averages()
        drawer = Drawer(config, shapes, together.constants, self.budget.draw_batch)
        clock.append(time.perf_counter())
        with concurrent.futures.ThreadPoolExecutor(1) as compiling:
            first, *others = self._steps(config)
            ready = compiling.submit(self._warm, drawer, first)
            for number in others:
                compiling.submit(drawer.program, number)
            with self.turns.slot(self.slots, patience):
                clock.append(time.perf_counter())
                if program is not None:
                    trained = together.train(program, self.turns.shared)
                    kept.save(file, trained)
                assert trained is not None
                clock.append(time.perf_counter())
                ready.result()
                points = self._sweep(config, drawer, trained)
                clock.append(time.perf_counter())
                lines = self._measured(row, drawer, trained, points)
        file.unlink()
        clock.append(time.perf_counter())
        names = ("compile", "wait", "train", "sweep", "measure")
        seconds = np.diff(clock).round(2).tolist()
        common = self._facts(row, config, together, trained)
        common["seconds"] = dict(zip(names, seconds, strict=True))
        return [
            {**common, "seed": seed, **line}
            for seed, line in zip(seeds, lines, strict=True)
        ]

    def _facts(
        self, row: Row, config: Experiment, together: Together, trained: Trained
    ) -> dict:
        """What all seeds of a row have in common."""
        seeds = len(together.seeds)
        sizes = [stage.size(*[config.data.image_size] * 2) for stage in _stages(config)]
        flops = sum(config.model.flops(*size) for size in sizes) / len(sizes)
        step = float(np.median(trained.segment_seconds)) / together.length
        return {
            "budget": self.budget.name,
            "row": row.name,
            "size": self.budget.size,
            "label": row.label,
            "params": count(trained.averages[config.average_names[0]]) // seeds,
            "forward_mflops": flops / 1e6,
            "steps": config.steps,
            "batch": config.batch_size,
            "drawings": [len(one.labels) for one in self.splits],
            "side_by_side": seeds,
            "train_ms_a_step": 1e3 * step,
            "heldout_itself": self.judge.own(),
        }

    def _warm(self, drawer: Drawer, steps: int) -> None:
        """Compile what a sweep begins with."""
        drawer.program(steps)
        self.judge.features(self.splits[0].images[:1])

    def _steps(self, config: Experiment) -> list[int]:
        """The steps that are drawn with, those that a sweep begins with first."""
        steps = map(int, self._axes(config)["steps"])
        return sorted(steps, key=lambda number: number != sweeping.START["steps"])

    def _axes(self, config: Experiment) -> dict:
        return self.budget.axes or sweeping.axes(len(_stages(config)))

    def _sweep(self, config: Experiment, drawer: Drawer, trained: Trained) -> list:
        labels = sweeping.labels_like(self.splits[0].labels, self.budget.sweep_images)
        sweeper = sweeping.Sweeper(
            drawer,
            trained.averages,
            self.judge,
            Wanted(labels, SWEEP_SEED),
            self.turns.shared,
        )
        return sweeper.run(self._axes(config))

    def _measured(
        self, row: Row, drawer: Drawer, trained: Trained, points: list
    ) -> list[dict]:
        """Results of each seed at its best, from noise that the sweep did not see."""
        best = [sweeping.best_of(one) for one in points]
        labels = sweeping.labels_like(self.splits[0].labels, self.budget.images)
        wanted, images = Wanted(labels, FINAL_SEED), {}
        for steps in sorted({int(point["steps"]) for point in best}):
            with self.turns.shared():
                drawn = drawer(trained.averages, best, steps, wanted)
            own = (i for i, point in enumerate(best) if point["steps"] == steps)
            images |= {i: drawn[i] for i in own}
        with self.turns.shared():
            rows = [self.judge.features(images[i]) for i in range(len(best))]
        self._keep_pictures(row, images[0], rows[0])
        speed = self._timed(drawer, trained, best[0]) if self.timed else None
        return [
            {
                "best": best[i],
                "results": self.judge.results(rows[i]),
                "sweep": points[i],
                "losses": trained.losses[i].round(5).tolist(),
                "draw_ms_an_image": speed,
            }
            for i in range(len(best))
        ]

    def _timed(self, drawer: Drawer, trained: Trained, point: dict) -> float:
        """Milliseconds an image, alone on the device, of one batch of each seed."""
        labels = sweeping.labels_like(self.splits[0].labels, self.budget.draw_batch)
        points, seconds = [point] * drawer.seeds, []
        with self.turns.alone():
            for _ in range(2):
                start = time.perf_counter()
                drawer(trained.averages, points, int(point["steps"]), Wanted(labels, 0))
                seconds.append(time.perf_counter() - start)
        return 1e3 * min(seconds) / (drawer.seeds * len(labels))

    def _keep_pictures(self, row: Row, images: np.ndarray, rows: np.ndarray) -> None:
        """A strip: images evenly chosen, and below each its nearest drawing."""
        places = np.linspace(0, len(images) - 1, SHOWN).round().astype(int)
        nearest = self.judge.nearest(rows[places])
        both = np.concatenate([images[places], self.splits[0].images[nearest]])
        name = f"{self.budget.name}_{row.name}_samples.png"
        save_png(self.out / "pictures" / name, grid(both, SHOWN))


def _stages(config: Experiment) -> tuple:
    return config.path.stages()


def described(line: dict) -> dict:
    """A line of results with all that it depends on."""
    return {**line, **harness.card(), **harness.environment()}
