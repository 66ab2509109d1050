"""PixelFlow from images to a strip of stages, and a run that looks through teachers."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pixelflow_jax import build
from pixelflow_jax.errors import PipelineError, WeightsError
from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.time import Grid, Uniform
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import PDino, Repa
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.output import Described, write_samples
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import table
from pixelflow_jax.teachers.suite import Teachers
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.training.step import fresh_state, make_step
from pixelflow_jax.validate import validated
from tests.teachers import official
from tests.training import tiny

STEPS = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def cascade(images, **fields):
    model = PixelFlow(
        num_classes=len(tiny.CLASSES),
        width=32,
        heads=4,
        depth=2,
        feature_layer=1,
        stack=StackConfig(remat="none"),
    )
    settings = {
        "path": Pyramid(num_stages=2),
        "model": model,
        "time": Uniform(levels=1000),
        "sampling": dataclasses.replace(
            tiny.experiment(images).sampling,
            grid=Grid(stage_steps=(2, 3), last_step=0.001),
            guidance=ClassifierFree(scale=2.0, ramp=(0.0, 1.0)),
        ),
        "steps": STEPS,
        "checkpoint": Checkpointing(every=STEPS),
        "optimizer": AdamW(lr=4e-3, warmup=5, clip=1.0),
    }
    return tiny.experiment(images, **{**settings, **fields})


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory):
    """A finished run of the cascade."""
    folder = tmp_path_factory.mktemp("cascade")
    train(tiny.on_devices(build.training_run(validated(cascade(images)))), folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(workdir):
    return Pipeline.from_pretrained(workdir)


def test_a_cascade_learns(workdir):
    losses = [line["loss"] for line in tiny.history(workdir)]
    assert len(losses) == STEPS
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])


def test_slices_of_a_batch_hold_every_stage_alike(images):
    """Two slices of four images draw the stages that one batch of eight draws."""
    config = cascade(images)
    with build.open_data(config, 0) as loader:
        batch = next(loader)
    objective, settings = build.objective(config), build.step_settings(config)
    state = fresh_state(objective, settings, config.mesh.build(jax.devices()[:1]))
    losses = []
    for parts in (1, 2):
        divided = dataclasses.replace(settings, accumulate=parts)
        losses.append(jax.jit(make_step(objective, divided))(state, batch, {})[1])
    for name, value in losses[0].items():
        assert float(value) == pytest.approx(float(losses[1][name]), rel=1e-5)


def test_a_trained_cascade_draws_squares_and_other_shapes(pipeline, tmp_path):
    square = pipeline.generate([0, 1, 2], seed=1)
    assert [s.shape for s in square.stages] == [(3, 8, 8, 3), (3, 16, 16, 3)]
    assert pipeline([2], height=16, width=32, seed=1).shape == (1, 16, 32, 3)
    about = Described(
        shape=(16, 16, 3), digest="", names=tiny.CLASSES, columns=3, stages=True
    )
    paths = write_samples(tmp_path, lambda start: iter([(start, square)]), about)
    with Image.open(paths["stages"]) as strip:
        assert strip.size == (2 * (6 * 16 + 2) + 2, 3 * (6 * 16 + 2) + 2)
    with pytest.raises(PipelineError, match="multiple of 8"):
        pipeline([0], height=20, width=16)


@pytest.mark.parametrize("solver", [Dopri5(), Dopri5(control="batch")], ids=str)
def test_adaptive_steps_draw_too(pipeline, solver):
    grid = Grid(steps=4, timestep_scale=0.999)
    drawn = pipeline.generate([0, 1], solver=solver, grid=grid, record=True)
    assert np.isfinite(drawn.images).all() and drawn.clean.shape[:2] == (8, 2)
    euler = pipeline.generate([0, 1], grid=Grid(steps=60))
    np.testing.assert_allclose(drawn.images, euler.images, atol=0.2)


def test_a_run_can_guide_itself(pipeline, workdir, images, tmp_path_factory):
    """Autoguidance by the run's own raw weights; by a run of another path, refused."""
    own = AutoGuidance(scale=2.0, weights=str(workdir), ema="raw")
    guided = pipeline([0, 1], guidance=own)
    plain = pipeline([0, 1], guidance=ClassifierFree())
    assert guided.shape == plain.shape and not np.array_equal(guided, plain)
    with pytest.raises(PipelineError, match="guidance.weights"):
        pipeline([0], guidance=AutoGuidance(scale=2.0))
    other = tmp_path_factory.mktemp("other")
    train(tiny.run(images, steps=2), other)
    with pytest.raises(PipelineError, match="path or prediction"):
        pipeline([0], guidance=AutoGuidance(scale=2.0, weights=str(other)))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A small DINOv2 with its weights in an official file."""
    path = tmp_path_factory.mktemp("dino") / "dinov2.safetensors"
    save_file(official.tensors(table(official.TINY, 0)), path)
    precision = Precision(compute="float32")
    return DinoV2(geometry=official.TINY, weights=str(path), precision=precision)


def test_a_run_with_teachers_is_saved_without_them(images, dino, tmp_path):
    """... its adaptive weight with it, and goes on exactly where it was saved."""
    terms = [FlowMatching(), Repa(grid="resize"), PDino(layers=(0, 2))]
    fields = {
        "terms": terms,
        "teachers": Teachers(dino=dino),
        "adaptive_weight": AdaptiveWeight(start=2, every=2),
        "ema": (0.9,),
    }
    run = tiny.run(images, steps=6, **fields)
    whole = train(run, tmp_path / "whole")
    assert float(whole.carry["adaptive_weight"]) != 1
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "6")
    state = train(run, tmp_path / "parts")  # from step 3 on
    tiny.assert_identical(state, whole)
    names = {name for line in tiny.history(tmp_path / "whole") for name in line}
    assert {"Repa", "PDino", "adaptive_weight"} <= names
    reader = Checkpointer(tmp_path / "parts" / "checkpoints", None)
    with contextlib.closing(reader):
        config = json.dumps(reader.config(6))
    assert "dinov2.safetensors" in config
    tree = json.loads((tmp_path / "parts/checkpoints/6/state/_METADATA").read_text())
    stored = {key.replace("'", "") for key in tree["tree_metadata"]}
    assert any("projectors" in key and "Repa" in key for key in stored)
    parts = {tuple(key.strip("()").split(", ")[:2]) for key in stored}
    assert {two for one, *rest in parts for two in rest if one == "params"} == {
        "denoiser",
        "projectors",
    }
    tops = {key.strip("()").split(", ")[0].strip(",") for key in stored}
    assert tops == {"step", "params", "opt_state", "ema", "carry"}


def test_absent_weights_name_the_file_and_the_field(images):
    with pytest.raises(WeightsError, match=r"teachers\.dino\.weights"):
        tiny.run(images, terms=[FlowMatching(), Repa(grid="resize")])
