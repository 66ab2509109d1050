"""A sweep over a small model, from its text to the table, cut and resumed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from pixelflow_jax import build
from pixelflow_jax.cli import sweep as command
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.evaluation.metrics import evaluate
from pixelflow_jax.evaluation.passes import set_features
from pixelflow_jax.evaluation.references import Reference
from pixelflow_jax.flow.solver import Heun
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.sampling.spool import only_writer
from tests.evaluation.pixels import Pixels
from tests.training import tiny

COUNT = 9


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    images = tiny.write_images(tmp_path_factory.mktemp("images"))
    return tiny.experiment(images)


@pytest.fixture
def task(config):
    extractors = {"lite0": Pixels()}
    shapes = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    sets = set_features([(0, shapes)], ["fd_lite0"], extractors)
    reference = Reference(path="", sha256="r", kind="data", sets=sets)

    def opened(name):
        shapes, key = build.network(config).shapes(), jax.random.key(ord(name[0]))
        params = jax.tree.map(
            lambda s: 0.3 * jax.random.normal(key, s.shape, s.dtype), shapes
        )
        names = tiny.CLASSES
        return Pipeline(config=config, params=params, class_names=names, step=7)

    return command.Sweep(
        open_pipeline=opened,
        averages=("0.9", "raw"),
        ema="0.9",
        wanted=[i % 3 for i in range(COUNT)],
        options={"seed": 5},
        extractors=extractors,
        metrics=("fd_lite0",),
        judge=lambda seen: evaluate(["fd_lite0"], seen, reference),
        compared={"reference": "r"},
    )


def test_every_point_is_what_a_call_with_its_settings_draws(task, tmp_path):
    text = "ema=0.9,raw;scale=1,3"
    paths = command.run_sweep(task, text, tmp_path)
    assert set(paths) == {"results", "table", "fd_lite0"}
    assert all(path.is_file() for path in paths.values())
    rows = [json.loads(line) for line in paths["results"].read_text().splitlines()]
    assert len(rows) == 4 and len({r["results"]["fd_lite0"] for r in rows}) == 4
    pipeline = task.open_pipeline("raw")
    guidance = dataclasses.replace(pipeline.config.sampling.guidance, scale=3.0)
    drawn = pipeline([i % 3 for i in range(COUNT)], seed=5, guidance=guidance)
    again = task.judge(set_features([(0, drawn)], ["fd_lite0"], task.extractors))
    (row,) = [r for r in rows if r["point"] == {"ema": "raw", "scale": 3.0}]
    assert row["results"]["fd_lite0"] == pytest.approx(again["fd_lite0"], rel=1e-3)
    # Again: nothing is drawn, and a further value costs its own points alone.
    before = task.extractors["lite0"].calls
    command.run_sweep(dataclasses.replace(task), text, tmp_path)
    assert task.extractors["lite0"].calls == before
    other = dataclasses.replace(task, options={"seed": 6})
    command.run_sweep(other, "scale=3", tmp_path)
    assert len(list((tmp_path / "sweeps").iterdir())) == 2


def test_two_commands_do_not_make_one_sweep(task, tmp_path):
    text = "scale=3"
    paths = command.run_sweep(task, text, tmp_path)
    with only_writer(paths["table"].parent):
        with pytest.raises(PipelineError, match="Another command is writing to"):
            command.run_sweep(task, text, tmp_path)


def test_settings_of_points(task):
    own = task.pipeline.config.sampling
    found = task.sampling(
        {"solver": "heun", "steps": 7, "shift": 2.0, "interval": "0.2:0.8"}
    )
    assert isinstance(found, Sampling) and found.solver == Heun()
    assert (found.grid.steps, found.grid.shift) == (7, 2.0)
    assert (found.guidance.low, found.guidance.high) == (0.2, 0.8)
    assert found.guidance.scale == own.guidance.scale
    assert task.sampling({"interval": "all"}).guidance.low == -np.inf
    assert task.sampling({}) == own


def test_flags_that_draw_so():
    point = {"ema": "posthoc:0.1", "solver": "heun", "steps": 20, "shift": 1.0}
    point |= {"interval": "0.1:1", "scale": 1.5}
    assert command.flags_of(point) == (
        "--ema=posthoc:0.1 --solver=heun --sample_steps=20 --shift=1 "
        "--guidance_interval=0.1,1 --guidance=1.5"
    )
    assert command.flags_of({"interval": "all"}) == "--guidance_interval=-inf,inf"
