"""A prediction's constants: computed once, saved with the run, used for pictures."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax import build
from pixelflow_jax.flow.prediction import CONSTANTS, Prediction
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.loop import train
from tests.training import tiny


@dataclasses.dataclass(kw_only=True)
class Scaled(Prediction):
    """The velocity is the network's output times the deviation of the data."""

    scale: jax.Array | None = None

    def velocity(self, out, x_t, t, stage=None):
        return out * self.scale

    def target(self, point):
        return point.end - point.start

    def clean(self, out, x_t, t, stage=None):
        return out

    def constants(self, images):
        return {"scale": np.std(next(iter(images)), (0, 1, 2), np.float32)}

    def constant_shapes(self, channels):
        return {"scale": jax.ShapeDtypeStruct((channels,), jnp.float32)}

    def bind(self, constants):
        return dataclasses.replace(self, scale=constants["scale"])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def scaled(images, steps, compute, shown):
    """A run with that prediction, whose pictures tell what they were drawn with."""
    log = Logging(every=1, preview_every=2, preview_count=1)
    run = tiny.run(images, steps=steps, log=log)
    objective = dataclasses.replace(run.objective, prediction=Scaled())

    def preview(params, frozen_params):
        shown.append(np.asarray(frozen_params[CONSTANTS]["scale"]))
        return np.zeros((8, 8, 3), np.uint8)

    return dataclasses.replace(
        run, objective=objective, constants=compute, preview=preview
    )


def test_constants_are_computed_once_and_restored(images, tmp_path):
    config = tiny.experiment(images)
    config.prediction = Scaled()
    computed, shown = [], []

    def compute():
        computed.append(build.constants(config))
        return computed[-1]

    whole = train(scaled(images, 6, compute, shown), tmp_path / "whole")
    train(scaled(images, 3, compute, shown), tmp_path / "parts")
    assert len(computed) == 2
    resumed = train(scaled(images, 6, compute, shown), tmp_path / "parts")
    assert len(computed) == 2
    tiny.assert_identical(resumed, whole)
    with build.open_data(config, 0) as batches:
        first = next(batches)["image"]
    expected = np.std(first, (0, 1, 2), np.float32)
    np.testing.assert_array_equal(whole.carry[CONSTANTS]["scale"], expected)
    shapes = scaled(images, 6, compute, shown).abstract_state().carry[CONSTANTS]
    reader = Checkpointer(tmp_path / "parts" / "checkpoints", None)
    with contextlib.closing(reader):
        saved = reader.restore_constants(6, shapes)
        assert reader.restore_constants(6, {}) == {}
    np.testing.assert_array_equal(saved["scale"], expected)
    assert len(shown) == 6
    for scale in shown:
        np.testing.assert_array_equal(scale, expected)


def test_most_runs_have_none(images):
    run = tiny.run(images)
    assert run.constants() == {} and run.fresh_state().carry == {}
