"""`pixelflow evaluate --sweep=ema,scale`: which sampling settings are best."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.cli import judge, measure, shared
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.data.images import save_png
from pixelflow_jax.evaluation import sweep, sweep_report
from pixelflow_jax.evaluation.accumulator import SetFeatures
from pixelflow_jax.evaluation.features import Extractor
from pixelflow_jax.evaluation.passes import set_features
from pixelflow_jax.flow.solver import Solver
from pixelflow_jax.pretrained import weights as published
from pixelflow_jax.pretrained.options import DrawOptions
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.choices import SOLVERS
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.sampling.spool import only_writer
from pixelflow_jax.training.ema import posthoc_name

COUNT = 10_000  # images a point, unless told
OWN = "config"  # a solver that has no name on the command line

SWEEP = flags.DEFINE_string(
    "sweep",
    None,
    "Measure at many sampling settings: axes of ema, scale, interval, shift, steps and "
    'solver, such as ema,scale, or with values, such as "scale=1,1.5,2;steps=20,50".',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """All that a sweep does at each of its points.

    `open_pipeline` reads the weights of an average by its name; `averages` are those
    there are. `wanted` holds the classes or prompts to draw, `options` how besides the
    sampling settings, `judge` makes results of what `extractors` saw for `metrics`, and
    `compared` says with what, for the record.
    """

    open_pipeline: Callable[[str], Pipeline]
    averages: tuple[str, ...]
    ema: str
    wanted: Sequence[int | str]
    options: DrawOptions
    extractors: Mapping[str, Extractor]
    metrics: tuple[str, ...]
    judge: Callable[[dict[str, SetFeatures]], sweep.Row]
    compared: Mapping[str, str]

    @functools.cached_property
    def pipeline(self) -> Pipeline:
        """The model with the average that is drawn from where none is swept."""
        return self.open_pipeline(self.ema)

    @functools.cached_property
    def solvers(self) -> dict[str, Solver]:
        """All solvers by name, the config's among them."""
        own = self.pipeline.config.sampling.solver
        return SOLVERS if own in SOLVERS.values() else {**SOLVERS, OWN: own}

    def usual(self) -> sweep.Usual:
        """What the model's config draws with."""
        sampling = self.pipeline.config.sampling
        names = [name for name, one in self.solvers.items() if one == sampling.solver]
        return sweep.Usual(
            averages=self.averages,
            solvers=tuple(self.solvers),
            solver=names[0],
            steps=max((sampling.grid.steps, *sampling.grid.stage_steps)),
            shift=sampling.grid.shift,
            scale=sampling.guidance.scale,
        )

    def facts(self) -> dict[str, object]:
        """What makes results comparable; see `sweep.Ledger`."""
        config = self.pipeline.config
        listed = "\n".join(map(str, self.wanted))
        return {
            "model": self.pipeline.origin,
            "step": self.pipeline.step,
            "weights": _digest(self.pipeline.params),
            "sampling": to_dict(config.sampling),
            "precision": to_dict(config.precision),
            "count": len(self.wanted),
            "wanted": hashlib.sha256(listed.encode()).hexdigest(),
            "options": {"size": config.data.image_size, **self.options},
            "metrics": list(self.metrics),
            "networks": {n: one.weights_digest for n, one in self.extractors.items()},
            "compared": dict(self.compared),
        }

    def sampling(self, point: sweep.Point) -> Sampling:
        """The config's sampling settings, changed as a point says."""
        own = self.pipeline.config.sampling
        grid, guidance = own.grid, own.guidance
        if "steps" in point:
            steps = int(point["steps"])
            grid = dataclasses.replace(grid, steps=steps, stage_steps=())
        if "shift" in point:
            grid = dataclasses.replace(grid, shift=float(point["shift"]))
        changes: dict[str, float] = {}
        if "scale" in point:
            changes["scale"] = float(point["scale"])
        if "interval" in point:
            low, high = sweep.interval_ends(str(point["interval"]))
            changes |= {"low": low, "high": high}
        guidance = dataclasses.replace(guidance, **changes)  # pyright: ignore
        solver = self.solvers[str(point["solver"])] if "solver" in point else own.solver
        return dataclasses.replace(own, solver=solver, grid=grid, guidance=guidance)

    def at(self, point: sweep.Point) -> Pipeline:
        """The model with the average that a point names.

        One pipeline takes all averages in turn: its programs serve every one.
        """
        name = str(point.get("ema", self.ema))
        if name != self._held[-1]:
            other = self.open_pipeline(name)
            self.pipeline.params, self.pipeline.origin = other.params, other.origin
            self._held[:] = [name]
        return self.pipeline

    @functools.cached_property
    def _held(self) -> list[str]:
        return [self.ema]

    def measure(self, point: sweep.Point) -> sweep.Row:
        """The results at a point."""
        options: DrawOptions = {**self.options, "sampling": self.sampling(point)}
        stream = self.at(point).stream(self.wanted, **options)

        def shown():
            with tqdm(total=stream.draw.count, unit="image", leave=False) as bar:
                for place, images in stream():
                    yield place, images
                    bar.update(len(images))

        seen = set_features(shown(), self.metrics, self.extractors, stream.draw.count)
        return self.judge(seen)


def run_sweep(task: Sweep, text: str, workdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Measure at every point that `text` asks for, to WORKDIR/sweeps.

    Returns what was written, by kind: the table, a heat map of each metric, and the
    file of results, which the same command goes on with. Raises EvaluationError.
    """
    axes = sweep.parse(text, task.usual())
    wanted, facts = sweep.points(axes), task.facts()
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    folder = workdir / "sweeps" / f"step{task.pipeline.step:08d}-{digest[:8]}"
    main = jax.process_index() == 0
    say: Callable[[str], object] = tqdm.write if main else (lambda line: None)
    with only_writer(folder) if main else contextlib.nullcontext():
        ledger = sweep.Ledger(folder / "results.jsonl", facts, main)
        say(f"{len(wanted)} points of {len(task.wanted)} images, to {folder}")
        sweep.run(wanted, ledger, task.measure, say)
        return report(ledger, axes, folder, say) if main else {}


def report(
    ledger: sweep.Ledger,
    axes: Mapping[str, Sequence[sweep.Value]],
    folder: pathlib.Path,
    say: Callable[[str], object] = print,
) -> dict[str, pathlib.Path]:
    """Write the table and the heat maps; say what is best, and how to draw with it."""
    paths = {"results": folder / "results.jsonl", "table": folder / "table.md"}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(paths["table"]) as partial:
        partial.write_text(sweep_report.table(ledger, axes), "utf-8")
    wanted = sweep.points(axes)
    say(sweep_report.table(ledger, axes))
    for metric in sweep.main_metrics(ledger.get(point) or {} for point in wanted):
        paths[metric] = folder / f"{metric}.png"
        save_png(paths[metric], sweep_report.heat_map(ledger, axes, metric))
        point = sweep.best(ledger, wanted, metric)
        value = (ledger.get(point) or {})[metric]
        say(f"best {metric}: {value:.4g} at {sweep.words(point)}: {flags_of(point)}")
    return paths


def flags_of(point: sweep.Point) -> str:
    """The flags of `pixelflow sample` that draw as a point says."""
    names = {"scale": "guidance", "steps": "sample_steps"}
    parts = []
    for axis, value in point.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if axis == "interval":
            low, high = sweep.interval_ends(text)
            parts.append(f"--guidance_interval={low:g},{high:g}")
        elif not (axis == "solver" and value == OWN):
            parts.append(f"--{names.get(axis, axis)}={text}")
    return " ".join(parts)


def run_flags(
    names: Sequence[str],
    open_pipeline: Callable[[], Pipeline],
    place: str | pathlib.Path,
    out: pathlib.Path,
) -> dict[str, pathlib.Path]:
    """The sweep that --sweep and the flags of `evaluate` ask for, to OUT/sweeps.

    `place` is where the weights lie, for the other averages. Measures `names` (fid
    where there are none) of 10,000 images, unless --num_samples says more or fewer:
    enough to rank settings. Raises EvaluationError.
    """
    names = judge.metric_names(names or ["fid"])
    source = published.find(place)
    pipeline = open_pipeline()
    shared.writable(out, "out")
    options = measure.drawing_options(pipeline)
    sampling = options.pop("sampling", None) or pipeline.config.sampling
    config = dataclasses.replace(pipeline.config, sampling=sampling)
    pipeline = dataclasses.replace(pipeline, config=config)
    size = pipeline.config.data.image_size
    sides = options.get("height") or size, options.get("width") or size
    count = judge.COUNT.value if judge.COUNT.present else COUNT
    judged = judge.judge(names, sides, count)
    own = source.choose(shared.EMA.value)

    def opened(name: str) -> Pipeline:
        return pipeline if name == own else Pipeline.from_pretrained(place, name)

    reference = judged.reference
    task = Sweep(
        open_pipeline=opened,
        averages=averages_of(source),
        ema=own,
        wanted=measure.evaluation_set(pipeline, count),
        options=options,
        extractors=judged.extractors,
        metrics=judged.names,
        judge=judged,
        compared={"reference": reference.sha256 if reference else ""},
    )
    paths = run_sweep(task, SWEEP.value or "", out)
    for kind, path in paths.items():
        print(f"{kind:>10}: {path}")
    return paths


def averages_of(source: published.WeightsRef) -> tuple[str, ...]:
    """What the axis `ema` chooses of: all averages, and widths of post-hoc ones."""
    widths = sweep.POSTHOC_WIDTHS if source.posthoc else ()
    return tuple(dict.fromkeys([*source.averages, *map(posthoc_name, widths)]))


def _digest(params: dict) -> str:
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()
