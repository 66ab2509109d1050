"""What a visitor may ask for: told in words where it is too much, drawn where not."""

import itertools
import math
import pathlib
import threading
import time

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.data.images import grid
from pixelflow_jax.demo import drawing
from pixelflow_jax.demo.form import Form, Limits, defaults, sizes
from pixelflow_jax.demo.models import Models
from pixelflow_jax.errors import PipelineError, WeightsError
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.pretrained.results import Facts, Images
from pixelflow_jax.sampling.batches import Generated

FORM = Form(
    wanted=["Flags"],
    count=1,
    seed=3,
    solver="euler",
    steps=2,
    guidance=2.0,
    low=0.0,
    high=1.0,
    shift=1.0,
    size=64,
    trajectory=True,
)
LIMITS = Limits(images=4, steps=10, side=128)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_pretrained("emoji")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wanted": []}, "at least one class"),
        ({"wanted": None}, "at least one class"),
        ({"wanted": " \n "}, "Write what to draw"),
        ({"wanted": "x" * 1001}, "1,001 characters"),
        ({"wanted": ["Flags"] * 3, "count": 2}, "3 x 2 images are more"),
        ({"count": 5}, "Images of each must be a whole number from 1 to 4, not 5"),
        ({"count": None}, "Images of each must be a number"),
        ({"seed": -1}, "The seed must be a whole number from 0"),
        ({"seed": 1.5}, "not 1.5"),
        ({"steps": 11}, "Steps must be a whole number from 1 to 10"),
        ({"guidance": float("nan")}, "The guidance scale must be a number"),
        ({"low": 0.9, "high": 0.9}, "0.9 is not before 0.9"),
        ({"size": 256}, "The size must be a whole number from 1 to 128"),
    ],
)
def test_what_is_too_much_is_told_in_words(changes, words):
    with pytest.raises(PipelineError, match=words):
        FORM._replace(**changes).request(LIMITS)


def test_prompts_are_lines():
    wanted, options = FORM._replace(wanted="a cat\n\n a red heart \n").request(LIMITS)
    assert wanted == ["a cat", "a red heart"]
    always = (-math.inf, math.inf)
    assert options["guidance_interval"] == always and options["height"] == 64


def test_the_page_starts_with_the_models_own_settings(pipeline):
    start, sampling = defaults(pipeline, Limits()), pipeline.config.sampling
    assert start.steps == sampling.grid.steps and start.size == 64
    assert start.guidance == sampling.guidance.scale
    # At all times, which is from end to end of the sliders.
    assert sampling.guidance.low == -math.inf and (start.low, start.high) == (0, 1)
    assert sizes(pipeline, LIMITS)[0] == 64
    assert set(sizes(pipeline, LIMITS)) >= {32, 96, 128}
    assert max(sizes(pipeline, Limits(side=96))) == 96


def test_the_page_starts_within_its_limits(pipeline):
    start = defaults(pipeline, Limits(steps=7, side=50))
    assert start.steps == 7 and start.size == 48
    assert sizes(pipeline, Limits(side=50)) == [48, 32]
    assert sizes(pipeline, Limits(side=8)) == [64]  # is refused in words


def test_a_request_is_what_a_call_draws(pipeline):
    form = FORM._replace(trajectory=False)
    *previews, last = drawing.draw(pipeline, form, LIMITS)
    assert last.done and "1 image of 64 x 64 pixels" in last.words
    assert previews and not any(one.done for one in previews)
    _, options = form.request(LIMITS)
    # A call that is watched is a program of its own, with roundings of its own.
    watched = pipeline(["Flags"], **options, callback=lambda *_: None)
    expected = grid(watched, 1, scale=10)
    np.testing.assert_array_equal(np.asarray(last.picture), expected)


def test_what_the_model_cannot_draw_is_told_on_the_page(pipeline):
    (*_, last) = drawing.draw(pipeline, FORM._replace(size=65), LIMITS)
    assert last.done and last.words.startswith("**That cannot be drawn.**")
    assert "65" in last.words and last.picture is None


def test_closing_the_page_ends_the_drawing():
    over = threading.Event()

    class Endless:
        def __call__(self, wanted, *, callback, **_):
            try:
                for step in itertools.count(1):
                    callback(step, 99, np.zeros((1, 8, 8, 3), np.uint8))
                    time.sleep(0.001)
            finally:
                over.set()

    pages = drawing.draw(Endless(), FORM, LIMITS)
    next(pages), next(pages)
    assert not over.is_set()
    pages.close()
    assert over.wait(timeout=60)


def test_a_cascade_shows_the_end_of_each_stage():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3))
    images = images.astype(np.float32)
    half = images[:, ::2, ::2]

    def drawn(wanted, *, callback, **_):
        callback(1, 1, np.zeros(images.shape, np.uint8))
        return Images.of(Generated(images, -images[None], (half, images)), Facts())

    *_, last = drawing.draw(drawn, FORM._replace(count=2), LIMITS)
    assert last.done and last.stages is not None
    assert last.stages.width > 16 + 8 and last.stages.height >= 2 * 16
    way = pathlib.Path(last.animation)
    with Image.open(way) as animation:
        assert animation.n_frames == 2 and animation.width >= 320
    way.unlink()


def test_models_have_names_of_their_own():
    models = Models(["emoji", "mine=runs/emoji", "runs/other"])
    assert models.names == ["emoji", "mine", "other"]
    assert models.places["mine"] == "runs/emoji"
    with pytest.raises(WeightsError, match="Two models would be called 'emoji'"):
        Models(["emoji", "runs/emoji"])
