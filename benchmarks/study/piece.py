"""One row of the study from its config to its lines of results."""

import concurrent.futures
import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import harness
from benchmarks.study import kept, records, sweeping
from benchmarks.study.budgets import Budget
from benchmarks.study.configs import FAMILIES
from benchmarks.study.data import Pictures, Reference
from benchmarks.study.drawing import Drawer
from benchmarks.study.looking import Looker, Seen
from benchmarks.study.measure import Judge
from benchmarks.study.measuring import Measuring
from benchmarks.study.rows import ROWS, Row
from benchmarks.study.training import (
    Programs,
    Setting,
    Together,
    Trained,
    directions_of,
)
from benchmarks.study.turns import Turns
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.interface import count

COMPILERS = 2  # programs of a process that are compiled at a time


class Opened(NamedTuple):
    """What the rows of a family share; its programs come when they are compiled."""

    config: Experiment
    together: Together
    drawer: Drawer
    programs: concurrent.futures.Future[Programs]
    drawing: concurrent.futures.Future


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all rows of a process share: the drawings, programs, and what judges images.

    `out` is where results go, `state` where what is half done is kept. `slots` rows of
    all processes train and are measured at a time, while others compile. `lite0` and
    `stlpips` are the judges' files ("": the installed packages'). `timed`: drawing is
    timed with the device to itself, for which others wait.
    """

    budget: Budget
    out: pathlib.Path
    state: pathlib.Path
    slots: int
    lite0: str = ""
    stlpips: str = ""
    timed: bool = False

    def run(self, row: Row, seeds: Sequence[int], patience: float = 0.2) -> list[dict]:
        """Train, sweep and measure a row: a line of results a seed, which are written.

        What is trained and what is measured of the sweep is kept as soon as it is
        there, and not done again.
        """
        clock = [time.perf_counter()]
        opened = self._opened(row.family, len(seeds))
        setting = Setting.of(row, FAMILIES[row.family], self.directions)
        file = kept.place(self.state, row.name, seeds, opened.config.steps)
        trained = kept.load(file)
        if trained is None:
            programs = opened.programs.result()
            clock.append(time.perf_counter())
            with self.turns.slot(self.slots, patience):
                trained = opened.together.train(
                    programs, tuple(seeds), setting, self.turns.shared
                )
            kept.save(file, trained)
        clock.append(time.perf_counter())
        opened.drawing.result()
        judge = self.judge
        clock.append(time.perf_counter())
        work = Measuring(
            self, row, tuple(seeds), opened.drawer, trained, setting, judge
        )
        with self.turns.slot(self.slots, patience):
            lines = work.lines(self._axes(opened.config))
        clock.append(time.perf_counter())
        common = self._facts(row, opened, trained)
        names = ("compile", "train", "compile_drawing", "measure")
        seconds = np.diff(clock).round(2).tolist()
        common["seconds"] = dict(zip(names[-len(seconds) :], seconds, strict=True))
        common["seconds"] |= work.spent
        found = []
        for seed, line in zip(seeds, lines, strict=True):
            found.append({**common, "seed": seed, **line, **_machine()})
            records.append(self.out / records.RESULTS, found[-1])
        file.unlink(missing_ok=True)
        return found

    @property
    def turns(self) -> Turns:
        """Those of all processes of this run."""
        return Turns(self.state / "turns")

    @functools.cached_property
    def splits(self) -> list[Pictures]:
        """The training drawings and those held out."""
        data = self.budget.applied(next(iter(ROWS.values())).build()).data
        most = self.budget.pictures
        return [Pictures.of(data, split, most) for split in ("train", "test")]

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """The directions that the drawings' patches fill, [numbers, numbers]."""
        return directions_of(self.splits[0])

    @functools.cached_property
    def look(self) -> Looker:
        """What the judges see in images."""
        return Looker(
            self.budget.size, self.budget.look_batch, self.lite0, self.stlpips
        )

    @functools.cached_property
    def judge(self) -> Judge:
        """The judge; the first process to ask looks at the drawings for all."""
        files = [self.state / f"drawings_{name}.npz" for name in ("train", "heldout")]
        with self.turns.once("judge"):
            for file, pictures in zip(files, self.splits, strict=True):
                if not file.exists():
                    self.look(pictures.images).save(file)
        return Judge(*(Reference(Seen.load(file)) for file in files))

    @functools.cached_property
    def _families(self) -> dict[tuple[str, int], Opened]:
        return {}

    @functools.cached_property
    def _compilers(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(COMPILERS)

    def _opened(self, name: str, seeds: int) -> Opened:
        """A family whose programs are compiled, or begin to be."""
        if (name, seeds) not in self._families:
            family = FAMILIES[name]
            config = self.budget.applied(family.program())
            first = next(row for row in ROWS.values() if row.family == name)
            setting = Setting.of(first, family, self.directions)
            together = Together(config, seeds, self.splits[0], setting)
            drawer = Drawer(
                config, together.averages(), setting.constants, self.budget.draw_batch
            )
            programs = self._compilers.submit(together.compile)
            drawing = self._compilers.submit(drawer.compile)
            opened = Opened(config, together, drawer, programs, drawing)
            self._families[name, seeds] = opened
        return self._families[name, seeds]

    def _axes(self, config: Experiment) -> dict:
        return self.budget.axes or sweeping.axes(len(config.path.stages()))

    def _facts(self, row: Row, opened: Opened, trained: Trained) -> dict:
        """What all seeds of a row have in common."""
        config, seeds = opened.config, opened.together.seeds
        sides = [config.data.image_size] * 2
        sizes = [stage.size(*sides) for stage in config.path.stages()]
        flops = sum(config.model.flops(*size) for size in sizes) / len(sizes)
        step = float(np.median(trained.segment_seconds)) / opened.together.length
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
            "heldout_itself": self.judge.own,
        }


@functools.cache
def _machine() -> dict:
    """All that results depend on beside the row."""
    return {**harness.card(), **harness.environment()}
