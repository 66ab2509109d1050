"""A run with a learnt basis: resumed, published, loaded, drawn from, taken over."""

import dataclasses

import jax
import numpy as np
import pytest

from pixelflow_jax import Pipeline
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.flow.asymmetric import PredictAsymmetric
from pixelflow_jax.flow.basis import BASIS
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.pretrained.initial import initial_weights
from pixelflow_jax.training.loop import train
from pixelflow_jax.validate import validate
from tests.training import tiny

RANK, PATCH = 3, 8


def fields() -> dict:
    model = PixelGen(
        num_classes=len(tiny.CLASSES),
        patch=PATCH,
        image_size=tiny.SIZE,
        width=32,
        heads=4,
        depth=2,
        bottleneck=8,
        context_length=0,
        feature_layer=1,
        stack=StackConfig(remat="none"),
    )
    return {
        "model": model,
        "prediction": PredictAsymmetric(rank=RANK, patch=PATCH, images=12),
        "terms": [FlowMatching(), FrequencyMatching()],
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


@pytest.mark.slow  # trains
@pytest.mark.long
def test_a_basis_goes_with_the_run(images, tmp_path):
    whole = train(tiny.run(images, **fields()), tmp_path / "whole")
    basis = np.asarray(whole.carry[CONSTANTS][BASIS])
    assert basis.shape == (PATCH**2 * 3, RANK)

    first = tiny.run(images, steps=3, **fields())
    begun = first.fresh_state().params["denoiser"]["patch_embed"]["kernel"]
    size = np.sqrt(2 * len(basis) / (len(basis) + 8))
    np.testing.assert_allclose(begun[:, :RANK], size * basis, rtol=1e-5)
    train(first, tmp_path / "parts")
    split = tiny.run(images, devices=8, mesh=MeshShape(data=8), **fields())
    resumed = train(tiny.run(images, **fields()), tmp_path / "parts")
    tiny.assert_identical(resumed, whole)
    spread = train(split, tmp_path / "spread")
    for a, b in zip(*map(jax.tree.leaves, (spread.params, whole.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3)

    pipeline = Pipeline.from_pretrained(tmp_path / "whole")
    pipeline.save_pretrained(tmp_path / "published", dtype="float32")
    loaded = Pipeline.from_pretrained(tmp_path / "published")
    np.testing.assert_array_equal(loaded.constants[BASIS], basis)
    drawn = [one([0, 1], seed=4) for one in (pipeline, loaded)]
    np.testing.assert_array_equal(*drawn)

    # Weights are trained for their own basis: whoever begins with them keeps it.
    config = tiny.experiment(images, **fields())
    config.init_from = str(tmp_path / "published")
    config.prediction.images = 5
    initial = initial_weights(config)
    assert "prediction's, too: basis" in initial.report
    run = dataclasses.replace(first, constants=lambda: pytest.fail("computed anew"))
    state = run.fresh_state(initial)
    np.testing.assert_array_equal(state.carry[CONSTANTS][BASIS], basis)


def test_a_cascade_is_refused_before_a_run(images):
    config = tiny.experiment(images, **fields())
    validate(config)
    config.path, config.model.patch = Pyramid(num_stages=2), 4
    config.prediction.patch = 4
    with pytest.raises(ConfigError, match="stages that end at the data"):
        validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 4}, "patch must be the model's"),
        ({"rank": 9}, "not narrower than rank"),
        ({"rank": 193}, "rank=193 is larger than the 192 numbers"),
    ],
)
def test_a_basis_that_does_not_fit_the_model_is_refused(images, changes, message):
    config = tiny.experiment(images, **fields())
    config.prediction = dataclasses.replace(config.prediction, **changes)
    with pytest.raises(ConfigError, match=message):
        validate(config)
