"""Images from prompts: negative prompts, several images, sizes, bad requests."""

import dataclasses
import logging

import numpy as np
import pytest

from pixelflow_jax import Pipeline, build
from pixelflow_jax.encoders.t5 import T5
from pixelflow_jax.errors import PipelineError, WeightsError
from pixelflow_jax.models.interface import load_frozen
from pixelflow_jax.sampling.batches import Weights
from tests import texts
from tests.training import tiny

RED, BLUE = "red", "blue"


@pytest.fixture(scope="module")
def loaded():
    with texts.encoder_without_files() as loaded:
        yield loaded


@pytest.fixture(scope="module", params=texts.MODELS)
def pipeline(request, loaded):
    return texts.pipeline(request.param)


@pytest.fixture(scope="module")
def canvas(loaded):
    return texts.pipeline("canvas")


@pytest.fixture(scope="module")
def plain(loaded):
    return texts.pipeline("pixnerd")


def apart(one, other) -> float:
    return float(np.abs(one - other).max())


def test_an_image_depends_on_its_number_prompt_and_negative_alone(pipeline):
    draw = pipeline.generate
    images = draw([RED, BLUE, RED, "green", RED], negative_prompt=BLUE, seed=3).images
    assert images.shape == (5, texts.SIZE, texts.SIZE, 3)
    assert np.isfinite(images).all()
    alone = draw(BLUE, negative_prompt=BLUE, seed=3, first=1).images[0]
    assert apart(alone, images[1]) < 1e-4
    other = [
        draw(RED, negative_prompt=BLUE, seed=3, first=1).images[0],
        draw(BLUE, negative_prompt=RED, seed=3, first=1).images[0],
        draw(BLUE, negative_prompt=BLUE, seed=4, first=1).images[0],
        draw(BLUE, negative_prompt=BLUE, seed=3, first=2).images[0],
    ]
    assert min(apart(alone, one) for one in other) > 1e-3


def test_the_default_negative_is_the_null_condition_of_training(pipeline):
    """Guidance leads away from the empty text, the one that prompts are dropped for."""
    with_empty = pipeline.generate([RED, BLUE], seed=1).images
    conditioner = pipeline.config.conditioner
    given = texts.CaptionEncoder(conditioner.length)([RED, BLUE])
    generator = build.generator(pipeline.config, texts.SIZE, texts.SIZE)
    frozen_params = conditioner.load() | load_frozen(pipeline.config.model)
    weights = Weights(pipeline.params, frozen_params)
    without = generator(weights, given, seed=1).images
    np.testing.assert_allclose(with_empty, without, atol=1e-4)


def test_several_images_a_prompt_lie_side_by_side(plain):
    images = plain([RED, BLUE], images_per_prompt=3, seed=5)
    assert images.shape == (6, 16, 16, 3) and images.dtype == np.uint8
    again = plain([RED] * 3 + [BLUE] * 3, seed=5)
    np.testing.assert_array_equal(images, again)
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


def test_negatives_one_for_all_or_one_each(plain):
    both = plain.generate([RED, RED], negative_prompt=[BLUE, "x"], seed=1).images
    for i, negative in enumerate([BLUE, "x"]):
        one = plain.generate([RED, RED], negative_prompt=negative, seed=1).images
        assert apart(one[i], both[i]) < 1e-4 < 1e-3 < apart(one[1 - i], both[1 - i])


def test_one_program_and_one_encoder_for_every_prompt(loaded):
    pipeline, before = texts.pipeline("pixnerd"), len(loaded)
    for prompt, negative in [(RED, ""), (BLUE, RED), ("a longer prompt", "")]:
        pipeline(prompt, negative_prompt=negative)
    assert len(loaded) == before + 1 and len(pipeline._drawing.generators) == 1
    (generator,) = pipeline._drawing.generators.values()
    assert len(generator._programs) == 1
    assert pipeline._subjects._caption_encoder.read == [
        RED,
        "",
        BLUE,
        RED,
        "a longer prompt",
        "",
    ]


def test_prompts_find_what_was_compiled_ahead(loaded):
    pipeline = texts.pipeline("pixnerd")
    pipeline.compile(2, height=24)
    (generator,) = pipeline._drawing.generators.values()
    pipeline([RED, BLUE], negative_prompt=RED, height=24)
    assert len(pipeline._drawing.generators) == len(generator._programs) == 1


SIZES = [(16, 16), (24, 24), (32, 16)]


def test_one_checkpoint_draws_squares_and_other_shapes(pipeline):
    for height, width in SIZES:
        options = {"height": height, "width": width, "seed": 2}
        one = pipeline.generate(RED, **options).images
        assert one.shape == (1, height, width, 3) and np.isfinite(one).all()
        assert apart(one, pipeline.generate(BLUE, **options).images) > 1e-3


def test_the_model_of_a_pipeline_may_be_changed(plain):
    """The same weights, with tokens that grow in number or in size."""
    grown = plain.generate(RED, height=32, seed=2).images
    sized = dataclasses.replace(plain.config.model, canvas=(16, 16))
    changed = dataclasses.replace(plain, config=texts.experiment(sized))
    same = changed.generate(RED, height=32, seed=2).images
    assert grown.shape == same.shape and apart(grown, same) > 1e-3
    changed.config.model = plain.config.model
    np.testing.assert_allclose(changed.generate(RED, height=32, seed=2).images, grown)


def test_very_large_images_are_warned_of_once(loaded, caplog):
    pipeline = texts.pipeline("canvas")
    with caplog.at_level(logging.WARNING):
        pipeline(RED, height=32, width=16)
        assert not caplog.records
        for height in (36, 40):
            assert pipeline(RED, height=height).shape == (1, height, 16, 3)
    (record,) = caplog.records
    assert "36 x 16 are more than 2 times as large" in record.getMessage()


@pytest.mark.parametrize(
    ("wanted", "options", "words"),
    [
        ([3], {}, "prompts, which are str, not 3"),
        ([], {}, "nothing to draw: 0 prompts"),
        (RED, {"images_per_prompt": 0}, "images_per_prompt=0"),
        (RED, {"negative_prompt": [BLUE, BLUE]}, "2 negative prompts for 1 prompts"),
        (RED, {"negative_prompt": [None]}, "which are str, not None"),
        ("caf\udce9", {}, "not UTF-8"),
        (RED, {"height": 18}, "4 x 4 patches.*multiple of 4.*unlike 18 x 16"),
        (RED, {"width": -4}, "width=-4 must be"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_served_is_refused(canvas, wanted, options, words):
    with pytest.raises(PipelineError, match=words):
        canvas(wanted, **options)


def test_a_text_model_knows_no_classes(canvas):
    with pytest.raises(PipelineError, match="knows no classes"):
        canvas.labels([0])


def test_class_models_draw_single_names_and_several_images_too():
    model = tiny.model()
    config = dataclasses.replace(tiny.experiment("nowhere"), model=model)
    params = texts.random(build.network(config).shapes(), 1)
    names = tiny.CLASSES
    pipeline = Pipeline(config=config, params=params, class_names=names, step=0)
    images = pipeline("flags", images_per_prompt=2, seed=1)
    np.testing.assert_array_equal(images, pipeline([1, 1], seed=1))
    np.testing.assert_array_equal(images[:1], pipeline(1, seed=1))
    for options, words in [
        ({"negative_prompt": "x"}, "no negative prompts"),
        ({"images_per_prompt": -1}, "images_per_prompt=-1 must be"),
    ]:
        with pytest.raises(PipelineError, match=words):
            pipeline(["flags"], **options)
    with pytest.raises(PipelineError, match="has no text encoder"):
        pipeline.use_text_encoder("weights.safetensors")
    # The token grid grows with the image, to shapes that were not trained.
    for height, width in SIZES:
        assert pipeline([0], height=height, width=width).shape == (1, height, width, 3)


def test_files_come_with_the_weights_or_are_named(loaded, tmp_path):
    texts.pipeline("pixnerd").save(tmp_path / "model.safetensors", dtype="float32")
    path = tmp_path / "model.safetensors"
    before = len(loaded)
    pipeline = Pipeline.from_pretrained(path)
    assert pipeline.reads_text and pipeline.class_names == ()
    own = pipeline.generate(RED).images
    other = Pipeline.from_pretrained(path, text_encoder="a.pth", tokenizer="words")
    assert len(loaded) == before + 1  # nothing is read before it is needed
    moved = other.generate(RED).images
    assert loaded[before:] == ["", "a.pth"] and apart(own, moved) > 1e-3
    assert other.config.conditioner.encoder.tokenizer == "words"
    other.use_text_encoder(weights="another.pth")
    other.generate(RED)
    assert loaded[-1] == "another.pth"


def test_a_request_is_looked_at_before_the_encoder_is_loaded(loaded):
    pipeline, before = texts.pipeline("canvas"), len(loaded)
    for wanted, options in [(RED, {"height": 18}), ([3], {}), (RED, {"width": -4})]:
        with pytest.raises(PipelineError):
            pipeline(wanted, **options)
    assert len(loaded) == before


def test_absent_weights_of_the_encoder_are_asked_for(loaded, monkeypatch):
    monkeypatch.setattr(T5, "load", texts.LOAD)
    with pytest.raises(WeightsError, match="conditioner.encoder.weights"):
        texts.pipeline("pixnerd")(RED)


def test_prompts_are_read_where_captions_were_read_ahead(loaded):
    """A model trained on stored features has no features of new prompts."""
    pipeline = texts.pipeline("pixnerd")
    plain = pipeline.generate(RED).images
    config = texts.experiment(pipeline.config.model)
    config.conditioner.features = "nowhere"
    ahead = dataclasses.replace(pipeline, config=config)
    np.testing.assert_array_equal(ahead.generate(RED).images, plain)
    assert config.conditioner.features == "nowhere"
