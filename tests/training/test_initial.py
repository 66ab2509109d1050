"""Runs that begin with the weights of another run."""

import dataclasses

import jax
import numpy as np
import pytest

from pixelflow_jax.experiment import ConfigError
from pixelflow_jax.models.base import network
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.training.loop import train
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def weights(**fields) -> dict:
    return network(tiny.model(**fields), Precision()).init(jax.random.key(9))


def test_parameters_and_averages_begin_with_the_given_weights(images, tmp_path):
    initial = weights()
    run = tiny.experiment(images, init_from="elsewhere", steps=2).run(initial)
    begun = run.fresh_state()
    for tree in (begun.params["denoiser"], *begun.ema.values()):
        tiny.assert_identical(tree, initial)
    state = train(run, tmp_path)  # the step gives its inputs away, copies stay apart
    moved = state.params["denoiser"]["decoder"]["linear"]["bias"]
    assert np.abs(np.asarray(moved)).max() > 0
    tiny.assert_identical(initial, weights())


def test_a_checkpoint_of_the_run_itself_comes_first(images, tmp_path):
    train(tiny.run(images, steps=3), tmp_path)
    train(dataclasses.replace(tiny.run(images), initial=weights()), tmp_path)
    train(tiny.run(images), tmp_path / "alone")
    assert tiny.history(tmp_path) == tiny.history(tmp_path / "alone")


def test_weights_of_another_shape_are_listed(images):
    experiment = tiny.experiment(images, init_from="elsewhere")
    with pytest.raises(ConfigError, match=r"'elsewhere'(.|\n)*misshapen: class_embed"):
        experiment.run(weights(width=40, heads=5))
    with pytest.raises(ConfigError, match=r"missing: late/blocks"):
        experiment.run(weights(depth=1))


def test_the_field_and_the_weights_go_together(images):
    with pytest.raises(ConfigError, match="init_from"):
        tiny.experiment(images, init_from="elsewhere").run()
    with pytest.raises(ConfigError, match="init_from"):
        tiny.experiment(images).run(weights())
