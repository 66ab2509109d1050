"""docs/sampling.md: every row of "Coming from diffusers" is true, or answered."""

import pathlib
import re

import numpy as np
import pytest

import pixelflow_jax as pf
from pixelflow_jax.errors import PipelineError
from tests import texts
from tests.training import tiny

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "sampling.md"
STEPS = 2


@pytest.fixture(scope="module")
def pipeline():
    """A tiny model of classes that was never trained."""
    import jax

    from pixelflow_jax import build

    config = tiny.experiment("unused")
    params = jax.jit(build.network(config).init)(jax.random.key(0))
    return pf.Pipeline(
        config=config, params=params, class_names=tiny.CLASSES, step=3, origin="x"
    )


@pytest.fixture(scope="module")
def reader():
    with texts.encoder_without_files():
        yield texts.pipeline("canvas")


def load(pipeline, reader, folder):
    """By the folder that save_pretrained writes; the Hub is in tests/tensors."""
    pipeline.save_pretrained(folder / "model")
    again = pf.Pipeline.from_pretrained(str(folder / "model"))
    same = again("flags", seed=1) == pipeline("flags", seed=1)
    assert same.all()


def to(pipeline, reader, folder):
    with pytest.raises(AttributeError, match="nothing: JAX computes on the devices"):
        pipeline.to("cuda")


def prompt(pipeline, reader, folder):
    assert reader("a red apple").names == ("a red apple",)
    with pytest.raises(PipelineError, match="the first argument"):
        reader("x", prompt="a red apple")


def labels(pipeline, reader, folder):
    by_number, by_name = pipeline([1]), pipeline("flags")
    np.testing.assert_array_equal(by_number, by_name)
    with pytest.raises(PipelineError, match="the first argument"):
        pipeline(0, class_labels=[1])


def steps(pipeline, reader, folder):
    ours = pipeline(0, steps=STEPS)
    np.testing.assert_array_equal(ours, pipeline(0, num_inference_steps=STEPS))
    assert ours.facts.settings["grid"]["steps"] == STEPS


def guidance(pipeline, reader, folder):
    ours = pipeline(0, guidance=2.0)
    np.testing.assert_array_equal(ours, pipeline(0, guidance_scale=2.0))
    assert ours.facts.settings["guidance"]["scale"] == 2.0


def generator(pipeline, reader, folder):
    assert (pipeline(0, seed=1) != pipeline(0, seed=2)).any()
    with pytest.raises(PipelineError, match="here it is seed="):
        pipeline(0, generator=object())


def generators(pipeline, reader, folder):
    ours = pipeline([0, 0, 1], seed=[7, 8, 7])
    np.testing.assert_array_equal(ours[1], pipeline(0, seed=8)[0])
    np.testing.assert_array_equal(ours[2], pipeline(1, seed=7)[0])
    assert ours.facts.seeds == (7, 8, 7) and ours.facts.numbers == (0, 0, 0)
    np.testing.assert_array_equal(ours, pipeline([0, 0, 1], seed=np.array([7, 8, 7])))


def count(pipeline, reader, folder):
    assert len(pipeline([0, 1], images_per_prompt=2)) == 4
    with pytest.raises(PipelineError, match="here it is images_per_prompt"):
        pipeline(0, num_images_per_prompt=4)


def negative(pipeline, reader, folder):
    plain = reader.generate("a red apple").images
    led = reader.generate("a red apple", negative_prompt="blurry").images
    assert plain.shape == led.shape


def scheduler(pipeline, reader, folder):
    assert pipeline(0, solver="heun").facts.settings["solver"]["class"] == "Heun"
    with pytest.raises(AttributeError, match="solver='heun'"):
        _ = pipeline.scheduler
    with pytest.raises(PipelineError, match="here it is solver"):
        pipeline(0, scheduler="ddim")


def save_image(pipeline, reader, folder):
    pipeline(0).pil[0].save(folder / "x.png")
    assert (folder / "x.png").stat().st_size


def output_type(pipeline, reader, folder):
    ours = pipeline(0)
    assert isinstance(ours, np.ndarray) and ours.dtype == np.uint8
    with pytest.raises(PipelineError, match="the result is uint8"):
        pipeline(0, output_type="np")


def grid(pipeline, reader, folder):
    wide, tall = pipeline([0] * 4).grid(columns=4), pipeline([0] * 4).grid(columns=1)
    assert wide.width == tall.height > wide.height


def callback(pipeline, reader, folder):
    calls = []
    pipeline([0, 1], steps=STEPS, callback=lambda *call: calls.append(call))
    total = calls[0][1]  # of all batches, which depend on the devices
    assert total % STEPS == 0
    assert [call[:2] for call in calls] == [(i + 1, total) for i in range(total)]
    assert calls[-1][2].shape == (2, tiny.SIZE, tiny.SIZE, 3)
    with pytest.raises(PipelineError, match="here it is callback"):
        pipeline(0, callback_on_step_end=print)


def bar(pipeline, reader, folder):
    pipeline(0, progress=True)
    with pytest.raises(AttributeError, match="progress=True"):
        pipeline.set_progress_bar_config(disable=True)


def animation(pipeline, reader, folder):
    drawn = pipeline([0, 1], record=True)
    drawn.trajectory.save(folder / "a.gif")
    assert (folder / "a.gif").read_bytes()[:3] == b"GIF"
    with pytest.raises(PipelineError, match="record=True"):
        _ = pipeline(0).trajectory


def publish(pipeline, reader, folder):
    pipeline.save_pretrained(folder / "published")
    assert (folder / "published" / "config.json").is_file()


def push(pipeline, reader, folder):
    with pytest.raises(PipelineError, match="name=3"):  # uploads: tests/tensors
        pipeline.push_to_hub(3)


def slicing(pipeline, reader, folder):
    with pytest.raises(AttributeError, match="nothing: XLA plans the memory"):
        pipeline.enable_attention_slicing()


CHECKS = [
    *(load, to, prompt, labels, steps, guidance, generator, generators, count),
    *(negative, scheduler, save_image, output_type, grid, callback, bar, animation),
    *(publish, push, slicing),
]


def habits() -> list[str]:
    """The first cells of the table, in order."""
    table = PAGE.read_text("utf-8").split("## Coming from diffusers")[1]
    return re.findall(r"^\| (`.+?) \| ", table, re.MULTILINE)


@pytest.mark.parametrize(
    ("habit", "check"),
    list(zip(habits(), CHECKS, strict=True)),
    ids=[check.__name__ for check in CHECKS],  # no addresses: workers compare them
)
def test_a_habit_has_an_answer(habit, check, pipeline, reader, tmp_path):
    check(pipeline, reader, tmp_path)


def test_a_pipeline_given_other_parameters_draws_with_them(pipeline):
    """As a sweep over averages does: the programs serve all."""
    import dataclasses

    import jax

    one = dataclasses.replace(pipeline)
    before = one.generate(0).images
    one.params = jax.tree.map(lambda a: a + 0.05, one.params)
    assert (one.generate(0).images != before).any()
