"""What flags make of a request, before anything is drawn or trained."""

import dataclasses
import math
import pathlib
import types

import jax
import pytest
from absl.testing import flagsaver

from pixelflow_jax import main
from pixelflow_jax.cli import blame, estimate, sample, shared, train
from pixelflow_jax.errors import CheckpointError, ConfigError, DataError
from pixelflow_jax.losses.perceptual import Repa
from pixelflow_jax.training import throughput
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from tests.training import tiny

NAMES = ("tench, Tinca tinca", "goldfish", "great white shark, white shark, man-eater")


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("goldfish,0", ["goldfish", "0"]),
        ("tench, Tinca tinca", [NAMES[0]]),
        ("goldfish,tench,Tinca tinca,goldfish", ["goldfish", NAMES[0], "goldfish"]),
        ("great-white-shark,white-shark,man-eater", None),
        ("tench,goldfish", ["tench", "goldfish"]),
    ],
)
def test_names_that_hold_commas_can_be_asked_for(asked, wanted):
    pipeline = types.SimpleNamespace(class_names=NAMES)
    with flagsaver.flagsaver(classes=asked.split(",")):
        assert len(sample.classes(pipeline)) == len(wanted or [1])
        slugs = [sample.slug(name) for name in sample.classes(pipeline)]
    assert slugs == [sample.slug(name) for name in wanted or NAMES[2:]]


@pytest.mark.parametrize(
    ("flags", "message", "blamed"),
    [
        (
            {"sample_steps": ["3", "4"]},
            "grid.stage_steps=(3, 4) is",
            "--sample_steps=3,4",
        ),
        ({"preset": "jit_heun50"}, "guidance.ramp is", "--preset=jit_heun50"),
        ({"shift": 2.0, "preset": "jit_heun50"}, "grid.shift=2 is", "--shift=2.0"),
        ({"solver": "heun"}, "There is no class", ""),
        ({}, "grid.steps=0 is", ""),
    ],
)
def test_complaints_name_the_flag_that_was_given(flags, message, blamed):
    with flagsaver.flagsaver(**flags):
        text = blame.with_flags(message)
    assert text == (f"{message}. This was set by {blamed}." if blamed else message)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    images = tiny.write_images(tmp_path_factory.mktemp("images"))
    return tiny.experiment(images)


def test_the_memory_of_training_is_counted(experiment):
    """float32: weights, gradients, two moments and each average, on every device."""
    whole = estimate.of_training(experiment)
    parameters = 62_027
    images = 3 * 8 * 16 * 16 * 3
    devices = experiment.mesh.build().shape["data"]
    assert whole.memory == 4 * (parameters * (4 + 2) * devices + images)
    twice = estimate.of_training(dataclasses.replace(experiment, steps=12))
    assert twice.seconds == pytest.approx(2 * whole.seconds)


@pytest.mark.parametrize(
    ("amounts", "says"),
    [
        ({"memory": 1e15}, "needs at least 1,000 TB of memory (it), and there are"),
        ({"disk": 1e20}, "lower it, or name another disk"),
        ({"seconds": 1e9}, "takes at least 32 years"),
    ],
)
def test_what_is_enormous_is_refused(amounts, says, tmp_path):
    whole = estimate.Estimate(what="It", remedy="lower it", parts="it", **amounts)
    with pytest.raises(ConfigError) as caught:
        whole.check(False, tmp_path / "not/yet")
    assert says in str(caught.value) and "lower it" in str(caught.value)


def test_yes_goes_on_with_what_is_long_but_not_with_what_cannot_be(tmp_path, capsys):
    long = estimate.Estimate(what="It", remedy="", seconds=1e9)
    long.check(True, tmp_path)
    assert "It takes at least 32 years" in capsys.readouterr().out
    with pytest.raises(ConfigError):
        dataclasses.replace(long, memory=1e15).check(True, tmp_path)
    estimate.Estimate(what="It", remedy="", seconds=100).check(False, tmp_path)
    assert not capsys.readouterr().out


def test_a_few_images_are_not_estimated_and_many_are(experiment):
    assert estimate.of_sampling(experiment, 8, 16, 16).seconds == 0
    many = estimate.of_sampling(experiment, 10**9, 16, 16)
    assert many.disk == 10**9 * 16 * 16 * 3 and 0 < many.seconds < math.inf


def test_the_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shared.folder_of_run("~/x", "train") == tmp_path / "x"


def test_a_run_may_lie_in_a_folder_called_checkpoints(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints"
    assert shared.folder_of_run(str(path), "train") == path
    (path / "200").mkdir()
    with pytest.raises(ConfigError, match=f"--workdir={tmp_path}\\."):
        shared.folder_of_run(str(path), "train")
    assert shared.chosen_weights("hf://a/b") == "a/b"


@pytest.mark.parametrize("name", ["a[x]", "b\\c"])
def test_a_folder_that_several_processes_cannot_read_is_refused(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for policy in (None, Checkpointing()):
        with pytest.raises(CheckpointError, match="rename the folder"):
            Checkpointer(tmp_path / name / "checkpoints", policy)


def test_sampling_settings_of_weights_may_be_set():
    with flagsaver.flagsaver(weights="emoji"):
        changes = [
            "--config.sampling.grid.steps=3",
            "--config.precision.compute=float32",
        ]
        pipeline = main._pipeline(pathlib.Path(), changes)
    assert pipeline.config.sampling.grid.steps == 3
    assert pipeline.config.precision.compute == "float32"


def test_missing_data_and_missing_teachers_are_told_together(experiment):
    source = dataclasses.replace(experiment.data.source, path="/nowhere")
    data = dataclasses.replace(experiment.data, source=source)
    config = dataclasses.replace(experiment, data=data, terms=[Repa()])
    with pytest.raises(ConfigError) as caught:
        train._check_data(config)
    message = str(caught.value)
    assert "/nowhere" in message and "teachers.dino.weights" in message
    assert len(message.splitlines()) <= 3
    with pytest.raises(DataError, match="/nowhere"):
        train._check_data(dataclasses.replace(experiment, data=data))


def test_virtual_devices_of_a_cpu_make_it_no_faster(monkeypatch):
    monkeypatch.setattr(throughput, "matmul_rate", lambda dtype: 10.0)
    assert jax.device_count() == 8 and throughput.whole_rate("float32") == 10.0
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert throughput.whole_rate("float32") == 80.0
