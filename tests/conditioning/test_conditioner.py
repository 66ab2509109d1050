"""Text as a condition: through the encoder, dropped, too long, and up to an image."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax import build
from pixelflow_jax.conditioning.drop import drop
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.encoders.t5 import T5, T5Geometry
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Pyramid, Straight
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixnerd_text import PixNerdText, text_field
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.sampling.batches import Weights
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.step import fresh_state, make_step
from pixelflow_jax.validate import validate
from tests.encoders.tiny_text import KINDS, encoder, parameters

EXACT = Precision(compute="float32", matmul="highest")
ENCODER = T5(
    geometry=T5Geometry(width=16, hidden=24, depth=2, heads=2, vocabulary=30),
    precision=EXACT,
)
TEXT = Text(encoder=ENCODER, length=8)
JOINT = PixNerdText(
    patch=8,
    width=32,
    heads=4,
    depth=2,
    text_depth=1,
    text_width=16,
    text_length=8,
    mask_text=True,
    feature_layer=1,
    decoder=dataclasses.replace(text_field(), width=8, depth=1),
)
MODEL = PixelFlow(
    num_classes=0, text_width=16, width=32, heads=4, depth=2, feature_layer=1
)


@functools.cache
def frozen() -> dict:
    leaves, structure = jax.tree.flatten(TEXT.shapes())
    rng = np.random.default_rng(0)
    drawn = [(0.5 * rng.standard_normal(a.shape)).astype(a.dtype) for a in leaves]
    return jax.tree.unflatten(structure, drawn)


def batch(lengths=(3, 5, 8, 2)) -> dict:
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, 30, (len(lengths), 8)).astype(np.int32)
    mask = np.arange(8) < np.array(lengths)[:, None]
    return {"tokens": jnp.asarray(tokens * mask), "mask": jnp.asarray(mask)}


def test_the_null_text_is_the_end_token_alone():
    cond = TEXT.encode(frozen(), batch())
    null = TEXT.null(frozen(), cond, MODEL)
    assert null.text.shape == cond.text.shape and null.mask.shape == cond.mask.shape
    assert null.mask.sum() == 4 and null.mask[:, 0].all()
    tokens = jnp.zeros((1, 8), jnp.int32).at[0, 0].set(1)
    states = ENCODER.states(frozen()["text"], tokens, tokens == 1)
    np.testing.assert_allclose(null.text[2], states[0], atol=1e-6)
    mixed = drop(jnp.array([0.0, 0.5, 0.05, 0.9]), cond, null, 0.1)
    np.testing.assert_array_equal(mixed.text[0], null.text[0])
    np.testing.assert_array_equal(mixed.mask[1], cond.mask[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_text_of_every_encoder_is_its_empty_text(kind):
    text = Text(encoder=encoder(kind), length=8)
    weights = {"text": parameters(kind)}
    cond = text.encode(weights, batch())
    null = text.null(weights, cond, MODEL)
    tokens, mask = (jnp.asarray(part)[None] for part in text.encoder.empty(8))
    expected = text.encode(weights, {"tokens": tokens, "mask": mask})
    for ours, one, given in (
        (null.text, expected.text, cond.text),
        (null.mask, expected.mask, cond.mask),
    ):
        assert ours.shape == given.shape
        np.testing.assert_allclose(ours, np.repeat(one, 4, 0), atol=1e-5)
    assert null.mask.sum() == {"t5": 4, "qwen3": 0, "bert": 8}[kind]


def test_a_text_that_is_too_long_is_refused():
    short = dataclasses.replace(TEXT, length=4)
    with pytest.raises(ValueError, match=r"conditioner\.length=4"):
        short.encode(frozen(), batch())


@pytest.fixture(scope="module", params=["cascade", "joint"])
def config(request) -> Experiment:
    cascade = request.param == "cascade"
    experiment = Experiment(
        name="text",
        model=MODEL if cascade else JOINT,
        path=Pyramid(num_stages=2) if cascade else Straight(),
        conditioner=TEXT,
        precision=EXACT,
        batch_size=8,
        ema=(),
        sampling=Sampling(
            grid=Grid(steps=2), guidance=ClassifierFree(scale=3.0), batch_size=8
        ),
    )
    experiment.data.image_size = 16
    validate(experiment)
    return experiment


@pytest.fixture(scope="module")
def trained(config):
    """A text model after two steps; its weights are not zero any more."""
    mesh = config.mesh.build(jax.devices()[:1])
    objective, settings = build.objective(config), build.step_settings(config)
    state = fresh_state(objective, settings, mesh)
    step = jax.jit(make_step(objective, settings))
    image = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3))
    data = {"image": jnp.asarray(image, jnp.float32), **batch()}
    for _ in range(2):
        state, metrics = step(state, data, frozen())
        assert np.isfinite(float(metrics["loss"]))
    return jax.tree.map(lambda a: np.asarray(a) + 0.03, state.params["denoiser"])


def test_images_follow_their_text_and_nothing_else(config, trained):
    generator = build.generator(config, 16, 16)
    weights = Weights(trained, frozen())
    draw = lambda given, **more: generator(weights, given, **more)
    texts = batch()
    images = draw(texts, seed=1).images
    assert images.shape == (4, 16, 16, 3) and np.isfinite(images).all()
    alone = draw({name: a[2:3] for name, a in texts.items()}, seed=1, first=2).images
    np.testing.assert_allclose(alone[0], images[2], atol=1e-4)
    other = draw({**texts, "tokens": (texts["tokens"] + 1) % 30}, seed=1).images
    assert (np.abs(other - images).max((1, 2, 3)) > 1e-4).all()
    # Padding is not read: other tokens behind the mask change nothing.
    beyond = jnp.where(texts["mask"], texts["tokens"], 7)
    padded = draw({**texts, "tokens": beyond}, seed=1).images
    np.testing.assert_allclose(padded, images, atol=1e-5)
