"""The study: rows that differ in one part, a sweep, turns on a device, a report."""

import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.study import kept, piece, report, run, sweeping, tables
from benchmarks.study.data import epochs
from benchmarks.study.drawing import Guiding, TracedGuidance, Wanted
from benchmarks.study.measure import distance_of_few
from benchmarks.study.rows import CLAIMS, ROWS
from benchmarks.study.training import Trained
from benchmarks.study.turns import Turns
from pixelflow_jax.evaluation.features import FEATURES
from pixelflow_jax.evaluation.statistics import frechet_distance, gaussian_of
from pixelflow_jax.flow.guidance import Branches, ClassifierFree, Windowed


def flops(name: str) -> float:
    config = ROWS[name].build()
    return config.model.flops(config.data.image_size, config.data.image_size)


def test_rows_differ_in_what_they_name_alone():
    same = ("steps", "batch_size", "optimizer", "ema", "time", "data", "sampling")
    first, *others = [row.build() for row in ROWS.values()]
    for config in others:
        for field in same:
            assert getattr(config, field) == getattr(first, field), config.name
    assert all(name in ROWS for claim in CLAIMS for name in claim.rows)
    assert all({*c.better, *c.than} <= {*c.rows} for c in CLAIMS)


def test_decoders_cost_the_same():
    costs = [flops(f"{kind}_velocity") for kind in ("field", "deco", "linear")]
    assert max(costs) < 1.03 * min(costs)


def test_an_epoch_takes_every_picture_once():
    order = epochs(10, 6, 5, seed=0).ravel()
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert (order[:10] != order[10:20]).any()


def test_the_distance_of_few_images_is_the_evaluator_s():
    draw = np.random.default_rng(0)
    known = draw.normal(size=(300, 40)) * np.linspace(0.1, 2, 40)
    rows = (draw.normal(size=(25, 40)) + 0.3).astype(np.float32)
    expected = frechet_distance(gaussian_of(known), gaussian_of(rows))
    assert distance_of_few(gaussian_of(known), rows) == pytest.approx(expected, 1e-6)


@pytest.mark.parametrize("step", [0.05, 0.5])
def test_traced_guidance_is_classifier_free(step):
    fields = Branches(
        cond=lambda x, t, step: 3 * x, both=lambda x, t, step: (3 * x, x - 1)
    )
    numbers = Guiding(*map(jnp.asarray, (2.5, 0.1, 1.0)), jnp.ones(1))
    guided = ClassifierFree(scale=2.5, low=0.1, high=1.0)(fields, 0)
    x, t = jnp.arange(4.0), jnp.asarray(step)
    assert isinstance(guided, Windowed)
    traced = TracedGuidance(numbers)(fields, 0)
    np.testing.assert_allclose(traced(x, t, t), guided(x, t, t), rtol=1e-6)


class Landscape:
    """A drawer and a judge in one: the distance is a function of the point."""

    seeds = 2

    def __call__(self, averages, points, steps, wanted):
        return [[(points[i], i)] for i in range(self.seeds)]

    def features(self, images):
        return images[0]

    def distance(self, row):
        point, seed = row
        want = {"scale": (1.5, 4.0)[seed], "steps": 10, "ema": "0.99"}
        return 1 + sum(point[axis] != value for axis, value in want.items())


def test_every_seed_finds_its_own_best(tmp_path):
    both = Landscape()
    sweeper = sweeping.Sweeper(
        both, {}, both, Wanted(np.zeros(1), 0), Turns(tmp_path).shared
    )
    points = sweeper.run(sweeping.axes(stages=1))
    best = [sweeping.best_of(one) for one in points]
    assert [point["scale"] for point in best] == [1.5, 4.0]
    assert all(point["steps"] == 10 and point["ema"] == "0.99" for point in best)
    assert sweeping.axes(stages=3)["interval"] == ("all", "stages")


def test_a_slot_s_holders_and_one_alone(tmp_path):
    turns, inside, alone, problems = Turns(tmp_path), [], [], []

    def worker(number: int) -> None:
        with turns.slot(2, patience=0.01):
            inside.append(number)
            with turns.shared():
                problems.extend(alone)
            with turns.alone():
                alone.append(number)
                alone.clear()
            problems.extend([number] * (len(inside) > 2))
            inside.remove(number)

    workers = [threading.Thread(target=worker, args=(n,)) for n in range(6)]
    for one in workers:
        one.start()
    for one in workers:
        one.join(30)
    assert not problems and not inside


def line(row: str, seed: int, value: float, budget: str = "gpu") -> dict:
    return {
        "budget": budget,
        "row": row,
        "seed": seed,
        "params": 2_900_000,
        "forward_mflops": 251.0,
        "results": dict.fromkeys(tables.SHOWN, value),
        "best": {"scale": 1.5, "interval": "0.1:1", "steps": 20, "ema": "0.99"},
    }


def written(path, *lines: dict):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


@pytest.mark.parametrize(
    ("full", "word"),
    [((90, 92, 91), "agrees"), ((40, 42, 41), "does not"), ((48, 54, 53), "cannot")],
)
def test_a_verdict_is_told_by_the_spread(tmp_path, full, word):
    rows = [line("rank0", s, v) for s, v in enumerate((50, 52, 51))]
    rows += [line("rank192", s, v) for s, v in enumerate(full)]
    lines = tables.read(written(tmp_path / "study.jsonl", *rows), "gpu")
    assert tables.verdict(CLAIMS[0], lines).startswith(word)
    assert tables.verdict(CLAIMS[0], {}) == tables.NOT_RUN


def test_the_report_is_drawn_from_the_file_alone(tmp_path):
    names = ["verdicts", "left", *(claim.name for claim in CLAIMS)]
    places = [f"<!-- {n}: begin --><!-- {n}: end -->" for n in names]
    document = tmp_path / "evidence.md"
    document.write_text("\n".join(places))
    rows = [line(row, s, 50 + s) for row in ("rank0", "rank192") for s in range(3)]
    results = written(tmp_path / "study.jsonl", *rows)
    report.write(results, document, tmp_path)
    text = document.read_text()
    assert "| 51.0 ± 1.0 | 51.0 ± 1.0 |" in text
    assert (tmp_path / "gpu_prediction.png").exists()
    assert "rank8," in text and "--rows=rank8" in text  # what was not run


def test_what_is_done_is_not_run_again(tmp_path):
    path = written(tmp_path / "study.jsonl", line("rank0", 0, 1.0))
    left = run.missing(["rank0", "rank8"], (0, 1), run.done(path, "gpu"))
    assert left == (("rank0", (1,)), ("rank8", (0, 1)))
    assert run.done(path, "small") == set()


class Colours:
    """In the place of the feature network: pixels, coarsely."""

    def __init__(self, *given, **options):
        self.few = np.random.default_rng(0).normal(size=(192, 40))

    def extract(self, images: np.ndarray) -> dict[str, np.ndarray]:
        coarse = images[:, ::4, ::4].reshape(len(images), -1) / 255
        return {FEATURES: (coarse @ self.few).astype(np.float32)}


def test_what_was_trained_is_kept(tmp_path):
    tree = {"blocks": {"kernel": jnp.ones((2, 3))}, "bias": jnp.zeros((2, 1))}
    trained = Trained({"0.99": tree}, np.ones((2, 4)), [0.5])
    path = kept.place(tmp_path, "rank0", (0, 1), 1500)
    assert kept.load(path) is None
    kept.save(path, trained)
    again = kept.load(path)
    assert again is not None and again.segment_seconds == [0.5]
    np.testing.assert_array_equal(again.averages["0.99"]["blocks"]["kernel"], 1)
    assert jax.tree.structure(again.averages) == jax.tree.structure(trained.averages)


@pytest.mark.slow
def test_a_row_from_its_config_to_its_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(piece, "open_extractor", Colours)
    axes = {"scale": (1.0, 2.0), "steps": (2,)}
    budget = dataclasses.replace(piece.SMOKE, axes=axes)
    monkeypatch.setattr(sweeping, "START", {**sweeping.START, "steps": 2})
    bench = piece.Bench(budget, tmp_path, slots=1)
    first, second = bench.run(ROWS["rank8"], (0, 1))
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["losses"] != second["losses"]
    assert first["results"]["fd_lite0"] != second["results"]["fd_lite0"]
    assert len(first["sweep"]) == 2 and first["best"]["steps"] == 2
    assert (tmp_path / "pictures" / "smoke_rank8_samples.png").exists()
