"""The study: rows that differ in one part, a sweep, turns on a device, a report."""

import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks.study import (
    budgets,
    curves,
    kept,
    piece,
    records,
    report,
    run,
    sweeping,
    tables,
)
from benchmarks.study.configs import BATCHES, FAMILIES, FULL, NETWORKS
from benchmarks.study.data import Pictures, epochs
from benchmarks.study.denoising import Denoising, as_many
from benchmarks.study.drawing import Drawer, Guiding, TracedGuidance
from benchmarks.study.looking import Seen, enlarged
from benchmarks.study.measure import distance_of_few
from benchmarks.study.rows import CLAIMS, ROWS, Row
from benchmarks.study.training import (
    Setting,
    Together,
    Trained,
    basis,
    weighted,
)
from benchmarks.study.turns import Turns
from pixelflow_jax import build
from pixelflow_jax.data.transforms import normalise
from pixelflow_jax.evaluation.features import pil_bicubic
from pixelflow_jax.evaluation.heldout import HeldoutLoss
from pixelflow_jax.evaluation.statistics import frechet_distance, gaussian_of
from pixelflow_jax.flow.basis import BASIS
from pixelflow_jax.flow.guidance import Branches, ClassifierFree, Windowed
from pixelflow_jax.losses.frequency import FrequencyMatching


def flops(name: str) -> float:
    config = ROWS[name].build()
    return config.model.flops(config.data.image_size, config.data.image_size)


def directions() -> np.ndarray:
    """Orthonormal columns in the place of the data's."""
    noise = np.random.default_rng(0).normal(size=(FULL, FULL))
    return np.linalg.qr(noise)[0].astype(np.float32)


@pytest.mark.parametrize("rank", [0, 8, FULL])
def test_a_basis_of_full_width_is_the_prediction_of_every_rank(rank):
    """One program serves all ranks: its basis is an argument."""
    known, draw = directions(), np.random.default_rng(1)
    out, x = (
        jnp.asarray(draw.normal(size=(2, 16, 16, 3)), jnp.float32) for _ in range(2)
    )
    t = jnp.asarray([0.3, 0.8])
    padded = FAMILIES["jit"].program().prediction.bind({BASIS: basis(rank, known)})
    row = ROWS[f"rank{rank}"].build().prediction
    own = row.bind({BASIS: known[:, FULL - rank :]} if rank not in (0, FULL) else {})
    np.testing.assert_allclose(
        padded.velocity(out, x, t), own.velocity(out, x, t), atol=2e-5
    )


def test_a_weight_that_is_an_argument_is_the_row_s():
    family = FAMILIES["jit"]
    objective = build.objective(family.program())
    for weight in (0.5, 0.0):
        weights = {"FrequencyMatching": weight} if weight else {}
        row = Row(name="", label="", family="jit", weights=weights)
        setting = Setting.of(row, family, directions())
        flow, term = weighted(objective, setting.weights).terms.terms
        assert (flow.weight, term.weight) == (1.0, weight)
        assert isinstance(term, FrequencyMatching)
        own = row.build().terms
        assert [one.weight for one in own[1:]] == ([weight] if weight else [])


def test_a_family_s_rows_differ_by_numbers_alone():
    same = ("model", "path", "time", "optimizer", "conditioner", "sampling")
    for row in ROWS.values():
        config, program = row.build(), FAMILIES[row.family].program()
        for field in same:
            assert getattr(config, field) == getattr(program, field), row.name
        kinds = {type(term) for term in config.terms}
        assert kinds <= {type(term) for term in program.terms}
        if not FAMILIES[row.family].ranked:
            assert config.prediction == program.prediction


def test_images_are_enlarged_as_pillow_does():
    image = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    found = np.asarray(enlarged(jnp.asarray(image[None]), 80))[0]
    off = np.abs(found - pil_bicubic(image, 80).astype(float))
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


def test_rows_differ_in_what_they_name_alone():
    same = ("steps", "batch_size", "optimizer", "ema", "time", "data", "sampling")
    own = {name: {"batch_size", "optimizer"} for name in BATCHES}
    first, *others = ROWS
    known = ROWS[first].build()
    for name in others:
        config = ROWS[name].build()
        for field in {*same} - own.get(name, set()):
            assert getattr(config, field) == getattr(known, field), name
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


def landscape(points: list[dict], steps: int) -> list:
    """Images that are points: what they are worth is a function of the point."""
    return list(enumerate(points))


def heights(drawn) -> list[float]:
    found = []
    for seed, point in drawn:
        want = {"scale": (1.5, 4.0)[seed], "steps": 10, "ema": "0.99"}
        found.append(1 + sum(point[axis] != value for axis, value in want.items()))
    return found


def test_every_seed_finds_its_own_best():
    points = sweeping.Sweeper(2, landscape, heights).run(sweeping.axes(stages=1))
    best = [sweeping.best_of(one) for one in points]
    assert [point["scale"] for point in best] == [1.5, 4.0]
    assert all(point["steps"] == 10 and point["ema"] == "0.99" for point in best)
    assert sweeping.axes(stages=3)["interval"] == ("all", "stages")


def test_a_sweep_goes_on_where_it_was_stopped():
    lines, stop = [], 9

    def note(points: list[dict], distances: list[float]) -> None:
        for seed, (point, value) in enumerate(zip(points, distances, strict=True)):
            lines.append({"seed": seed, "point": point, "fd_lite0": value})
        if len(lines) > stop:
            raise KeyboardInterrupt

    axes = sweeping.axes(stages=1)
    whole = sweeping.Sweeper(2, landscape, heights).run(axes)
    with pytest.raises(KeyboardInterrupt):
        sweeping.Sweeper(2, landscape, heights, note).run(axes)
    known, stop, first = sweeping.known_of(lines, (0, 1)), 1000, len(lines)
    again = sweeping.Sweeper(2, landscape, heights, note).run(axes, known)
    assert again == whole
    measured = {(line["seed"], str(line["point"])) for line in lines}
    assert len(measured) == len(lines) > first  # nothing twice


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
        "steps": 1500,
        "batch": 129,
        "train_ms_a_step": 6.0,
        "losses": [0.5, 0.2 + value / 1000],
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
    names = ["verdicts", "left", "recommended", *(claim.name for claim in CLAIMS)]
    places = [f"<!-- {n}: begin --><!-- {n}: end -->" for n in names]
    document = tmp_path / "evidence.md"
    document.write_text("\n".join(places))
    rows = [line(row, s, 50 + s) for row in ("rank0", "rank192") for s in range(3)]
    results = written(tmp_path / "study.jsonl", *rows)
    report.write(results, document, tmp_path)
    text = document.read_text()
    assert "| 51.0 ± 1.0 | 51.0 ± 1.0 |" in text
    assert (tmp_path / "gpu_prediction.png").exists()
    assert "rank8," in text and "--rows=field_velocity" in text  # what was not run


def test_sizes_are_drawn_against_the_operations_of_training(tmp_path):
    pytest.importorskip("matplotlib")
    claim = next(claim for claim in CLAIMS if claim.compute)
    rows = [line(name, seed, 50 + seed) for name in claim.rows for seed in range(3)]
    for one, cost in zip(rows, np.repeat([1.0, 4.0, 16.0], 3), strict=True):
        one["forward_mflops"] *= cost
    lines = tables.read(written(tmp_path / "study.jsonl", *rows), "gpu")
    columns, found = curves.rows(claim, lines)
    costs = [float(row[columns.index("TFLOP a run")]) for row in found]
    assert costs == pytest.approx([145.7, 582.8, 2331.2], rel=0.01)
    assert found[0][columns.index("training loss, last segment")] == "0.2510 ± 0.0010"
    assert found[0][columns.index("denoising, held out")] == "not measured"
    whole = curves.draw(claim, lines)
    assert whole is not None and whole.dtype == np.uint8 and whole.std() > 0
    assert curves.draw(claim, {claim.rows[0]: lines[claim.rows[0]]}) is None


def test_three_sizes_of_one_network():
    configs = [ROWS[f"size_{name}"].build() for name in NETWORKS]
    first, middle, last = (flops(f"size_{name}") for name in NETWORKS)
    assert middle / first == pytest.approx(4, rel=0.1)
    assert last / middle == pytest.approx(4, rel=0.1)
    known = ROWS["rank0"].build()
    assert configs[1].model == known.model and configs[1].terms == known.terms
    for config in configs:
        assert config.model.width == 64 * config.model.heads
    for budget in (budgets.SMALL, budgets.SMOKE):  # they stay of three sizes
        models = [budget.applied(config).model for config in configs]
        assert models[0].width < models[1].width == budget.width < models[2].width
        assert not [p for m in models for p in m.problems(32, 32)]


def test_batches_of_any_size_see_as_many_images():
    for name in BATCHES:
        config = budgets.BUDGETS["gpu"].applied(ROWS[name].build())
        assert config.steps * config.batch_size == 1500 * 129
        assert ROWS[name].label.startswith(f"{config.batch_size} images")
        rate = ROWS[name].label.rpartition(" ")[2]
        assert float(rate) == pytest.approx(config.optimizer.lr, rel=0.01)
        assert config.optimizer.warmup == config.steps // 20


@pytest.mark.parametrize(("steps", "length"), [(4, 4), (233, 77), (1500, 100)])
def test_launches_are_as_long(steps, length):
    config = dataclasses.replace(ROWS["rank0"].build(), steps=steps)
    setting = Setting(np.zeros(1), {})
    pictures = Pictures(np.zeros((1, 2, 2, 3), np.uint8), np.zeros(1, np.int32))
    assert Together(config, 3, pictures, setting).length == length


def test_denoising_is_the_held_out_loss_of_every_seed():
    """Of pictures that do not fill the last batch, alone."""
    small = ROWS["size_small"].build()
    model = dataclasses.replace(small.model, image_size=16, width=16, heads=1, depth=1)
    config = dataclasses.replace(small, model=model)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    pictures = Pictures(images, np.arange(5, dtype=np.int32))
    network = build.network(config)
    noisy = lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) * 0.1, jnp.float32)
    states = [jax.tree.map(noisy, network.init(jax.random.key(0))) for _ in range(2)]
    both = jax.tree.map(lambda *a: jnp.stack(a), *states)
    found = Denoising(config, batch=3)(both, {}, pictures)
    measure = HeldoutLoss(
        network=network,
        stages=build.stages(config),
        prediction=config.prediction,
        conditioner=config.conditioner,
        seed=0,
    )
    batch = {
        "image": normalise(images),
        "label": pictures.labels,
        "weight": np.ones(5, np.float32),
    }
    mesh = config.mesh.build(jax.devices()[:1])
    expected = measure(states[1], [batch], mesh)["loss"]
    assert found[1] == pytest.approx(expected, rel=1e-3) and found[0] != found[1]


def test_splits_are_compared_by_as_many_pictures():
    pictures = Pictures(np.zeros((9, 2, 2, 3), np.uint8), np.arange(9, dtype=np.int32))
    assert as_many(pictures, 3).labels.tolist() == [0, 4, 8]
    assert as_many(pictures, 20).labels.tolist() == list(range(9))


def test_what_is_done_is_not_run_again(tmp_path):
    path = written(tmp_path / "study.jsonl", line("rank0", 0, 1.0))
    left = run.missing(["rank0", "rank8"], (0, 1), run.done(path, "gpu"))
    assert left == (("rank0", (1,)), ("rank8", (0, 1)))
    assert run.done(path, "small") == set()


class Colours:
    """In the place of the judges: pixels, coarsely."""

    def __init__(self, *given):
        self.few = np.random.default_rng(0).normal(size=(192, 40))

    def __call__(self, images: np.ndarray) -> Seen:
        coarse = images[:, ::4, ::4].reshape(len(images), -1) / 255
        rows = (coarse @ self.few).astype(np.float32)
        return Seen(rows, rows[:, :4])


def test_lines_outlive_a_crash(tmp_path):
    path = tmp_path / "deep" / "lines.jsonl"
    assert records.read(path) == []
    records.append(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2')  # torn
    records.append(path, {"a": 3})
    assert records.read(path) == [{"a": 1}, {"a": 3}]
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    records.write_picture(records.picture("one.png", image), tmp_path)
    with Image.open(tmp_path / "one.png") as read:
        np.testing.assert_array_equal(np.asarray(read), image)


def test_families_come_whole_and_in_order():
    left = run.missing(list(ROWS), (0, 1, 2), {("rank0", 0)})
    parts = run.families(left)
    assert [row for part in parts for row in part] != list(left)
    assert {row for part in parts for row in part} == set(left)
    first = [ROWS[part[0][0]].family for part in parts]
    assert len(first) == len(set(first)) == len(FAMILIES)


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
def test_rows_of_a_family_from_config_to_lines_with_three_programs(
    tmp_path, monkeypatch
):
    compiled = []
    for owner in (Together, Drawer):
        own = owner.compile
        spy = lambda self, own=own: compiled.append(type(self)) or own(self)
        monkeypatch.setattr(owner, "compile", spy)
    monkeypatch.setattr(piece, "Looker", Colours)
    axes = {"scale": (1.0, 2.0), "steps": (2,)}
    budget = dataclasses.replace(budgets.SMOKE, axes=axes)
    monkeypatch.setattr(sweeping, "START", {**sweeping.START, "steps": 2})
    bench = piece.Bench(budget, tmp_path, tmp_path / "state", slots=1)
    first, second = bench.run(ROWS["rank8"], (0, 1))
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["losses"] != second["losses"]
    assert first["results"]["fd_lite0"] != second["results"]["fd_lite0"]
    assert len(first["sweep"]) == 2 and first["best"]["steps"] == 2
    other, _ = bench.run(ROWS["rank0_frequency"], (0, 1))
    assert other["losses"] != first["losses"]
    assert compiled.count(Together) == 1  # Drawer.compile is asked for each drawing
    lines = records.read(tmp_path / records.RESULTS)
    assert [line["row"] for line in lines] == ["rank8"] * 2 + ["rank0_frequency"] * 2
    pictures = records.read(tmp_path / records.PICTURES)
    assert pictures[0]["name"] == "smoke_rank8_samples.png"
    # All points are known, and what was trained was measured: nothing is left behind.
    assert len(records.read(tmp_path / records.POINTS)) == 8
    assert not list((tmp_path / "state" / "trained").iterdir())
