"""`pixelflow config --config=...`: what a run takes, without running it."""

import dataclasses
import json

import jax
import pytest

from pixelflow_jax import __main__ as entry
from pixelflow_jax.cli import plan
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.models.interface import count
from pixelflow_jax.sharding import MeshShape
from tests.training import tiny

H200 = plan.Devices("H200", 2, 141e9, 989e12, True)


@pytest.fixture(scope="module")
def config():
    return tiny.experiment("nowhere")


@pytest.fixture(scope="module")
def lines(config):
    return dict(plan.plan(config, H200))


def test_every_part_is_told_though_the_data_is_not_there(lines):
    assert list(lines) == [
        *("parameters", "operations", "mesh", "step", "memory", "activations"),
        "in all",
    ]
    assert "M denoiser" in lines["parameters"]
    assert "GFLOP an image forward" in lines["operations"]
    assert (
        "images of 8" not in lines["operations"] and "8 images" in lines["operations"]
    )
    assert lines["mesh"].startswith("data=2 fsdp=1 tensor=1 over 2 devices. Advised is")
    assert "published rate of 989 TFLOP/s of an H200; expect" in lines["step"]
    for part in ("parameters", "optimizer", "averages"):
        assert part in lines["memory"]
    assert "a step of 4 images" in lines["activations"]
    assert lines["in all"].endswith("of the 141 GB of an H200: fits")


def test_memory_is_that_of_the_state_and_of_the_mesh(config):
    shapes = plan.build.network(config).shapes()
    for fsdp in (1, 2):
        mesh = MeshShape(data=-1, fsdp=fsdp)
        split = dataclasses.replace(config, mesh=mesh)
        sizes = plan._mesh_sizes(split, 2)
        assert sizes == (2 // fsdp, fsdp, 1)
        abstract = jax.sharding.AbstractMesh(
            sizes, plan.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
        )
        state = plan.abstract_state(
            plan.build.objective(split), plan.build.step_settings(split), abstract
        )
        parts = plan._parts(state, {})
        whole = 4 * count(shapes)
        assert whole / fsdp <= parts["averages"] / len(config.ema) <= whole
        assert (parts["averages"] < whole * len(config.ema)) == (fsdp == 2)


def test_more_images_need_more_activations(config):
    few, many = (plan.working_memory(config, images) for images in (2, 16))
    assert many > 2 * few


def test_what_does_not_fit_is_said(config):
    small = H200._replace(memory=1e5)
    told = dict(plan.plan(config, small))
    assert "DOES NOT FIT: lower batch_size" in told["in all"]


@pytest.mark.parametrize(
    ("kind", "number", "words"),
    [
        ("H300", 8, "--device=H300 is not known: choose from .*H200"),
        ("h200", 3, "batch_size=8 must be a multiple of 3"),
    ],
)
def test_devices_that_cannot_be_are_one_error(config, kind, number, words):
    with pytest.raises(ConfigError, match=words):
        list(plan.plan(config, plan.devices_of(config, kind, number)))


def test_devices_have_a_memory_and_a_rate(config):
    for kind in plan.PEAKS:
        devices = plan.devices_of(config, kind, None)
        assert devices.count == 1 and devices.memory > 1e9 and devices.rate > 1e12
    own = plan.devices_of(config, None, None)
    assert own.count == jax.device_count() and not own.published


def test_the_command_shows_the_config_and_the_plan(monkeypatch, capsys, config):
    monkeypatch.setattr(plan, "working_memory", lambda config, images: 3e9)
    plan.run_plan(config)
    printed = capsys.readouterr().out
    written, end = json.JSONDecoder().raw_decode(printed)
    assert written["name"] == "tiny" and "in all: " in printed[end:]


def test_config_with_a_config_is_planned_and_else_lists(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(entry, "_run", lambda verb, rest: asked.append(verb) or 0)
    assert entry.main(["config", "--config=emoji", "--devices=2"]) == 0
    assert asked == ["config"]
    assert entry.main(["config", "list"]) == 0 and asked == ["config"]
    assert "images: Your own images" in capsys.readouterr().out
