"""A training run's weights as an official checkpoint, and back."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from pixelflow_jax import Pipeline
from pixelflow_jax.convert import families
from pixelflow_jax.tensors import mapping as tables
from pixelflow_jax.training.loop import train
from tests.convert import checkpoints
from tests.training import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir, and the state its run ended with."""
    root = tmp_path_factory.mktemp("run")
    images = tiny.write_images(root / "images")
    return root / "run", train(tiny.run(images, steps=2), root / "run")


def test_any_average_of_a_run_is_exported(run, tmp_path, capsys):
    workdir, state = run
    table = families.table_of(tiny.model())
    out = tmp_path / "out.safetensors"
    chosen = {"0.5": state.ema["0.5"], "raw": state.params["denoiser"]}
    for name, params in chosen.items():
        command = ("to-torch", workdir, out, "--overwrite", f"--ema={name}")
        checkpoints.run(*command)
        found, wanted = load_file(out), tables.export(table, params)
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            np.testing.assert_array_equal(found[key], value, err_msg=key)
    message = checkpoints.refused(capsys, *command[:-1], "--ema=0.7")
    assert "no average '0.7'" in message


CONFIG = """
import json, pathlib
from pixelflow_jax.experiment import Experiment

def get_config():
    return Experiment.from_dict(json.loads(pathlib.Path({path!r}).read_text()))
"""


def test_what_went_there_and_back_draws_the_same_image_bit_for_bit(run, tmp_path):
    workdir, _ = run
    trained = Pipeline.from_pretrained(workdir, ema="0.5")
    there, back = tmp_path / "there.safetensors", tmp_path / "back"
    checkpoints.run("to-torch", workdir, there, "--ema=0.5")
    (tmp_path / "config.json").write_text(json.dumps(trained.config.to_dict()))
    text = CONFIG.format(path=str(tmp_path / "config.json"))
    (tmp_path / "config.py").write_text(text)
    checkpoints.run("from-torch", there, back, f"--config={tmp_path / 'config.py'}")
    converted = Pipeline.from_pretrained(back)
    tiny.assert_identical(converted.params, trained.params)
    one, other = (p.generate([0, 2], seed=4).images for p in (trained, converted))
    assert np.std(one) > 0
    tiny.assert_identical(one, other)
    # Without the config it is sampled like the released weights; the model is the same.
    checkpoints.run("from-torch", there, tmp_path / "released", "--image-size=16")
    released = Pipeline.from_pretrained(tmp_path / "released")
    tiny.assert_identical(released.params, trained.params)
    assert released.config.sampling != trained.config.sampling
    released.config.precision = trained.config.precision
    again = released.generate([0, 2], seed=4, sampling=trained.config.sampling).images
    tiny.assert_identical(one, again)
