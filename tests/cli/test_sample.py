"""Flags of --mode=sample: prompts, and settings that vary a preset."""

import dataclasses
import json

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from pixelflow_jax import main
from pixelflow_jax.cli import sample as draw
from pixelflow_jax.errors import DataError, PipelineError, UserError
from pixelflow_jax.flow.guidance import AutoGuidance
from pixelflow_jax.sampling.presets import PRESETS
from pixelflow_jax.sampling.settings import Sampling
from tests import texts


@pytest.fixture(scope="module")
def pipeline():
    with texts.encoder_without_files():
        yield texts.pipeline("canvas")


@pytest.fixture(scope="module", autouse=True)
def parsed():
    """Flags have their defaults until a command line was read."""
    main.flags.FLAGS(["test", "--workdir=unused"])


def test_prompts_come_from_flags_and_files(pipeline, tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("# two\n\na cat, asleep\nb\n", encoding="utf-8")
    given = {"prompt": ["a red apple"], "prompts_file": str(path), "count": 2}
    sized = {"height": 24, "width": 16, "negative_prompt": "blurry", "sample_seed": 4}
    with flagsaver.flagsaver(**given, **sized):
        paths = draw.run_sampling(pipeline, tmp_path)
    printed = capsys.readouterr().out
    assert f"2 in {path}, where 1 blank lines and 1 comments" in printed
    told = json.loads(paths["json"].read_text(encoding="utf-8"))
    prompts = ["a red apple"] * 2 + ["a cat, asleep"] * 2 + ["b"] * 2
    assert [one["prompt"] for one in told["images"]] == prompts
    assert (told["seed"], told["negative_prompt"]) == (4, "blurry")
    wanted = ["a red apple", "a cat, asleep", "b"]
    options = {"negative_prompt": "blurry", "images_per_prompt": 2, "seed": 4}
    images = pipeline(wanted, **options, height=24, width=16)
    archive = np.load(paths["npz"])
    np.testing.assert_array_equal(archive["arr_0"], images)
    assert archive["prompts"].tolist() == prompts
    file = paths["images"] / told["images"][2]["file"]
    assert file.name == "000002_a-cat-asleep.png"
    np.testing.assert_array_equal(np.asarray(Image.open(file)), images[2])


def test_other_prompts_lie_in_another_folder(pipeline, tmp_path):
    folders = set()
    for given in (
        {"prompt": ["a"]},
        {"prompt": ["b"]},
        {"prompt": ["a", "b"]},
        {"prompt": ["a"], "negative_prompt": "b"},
    ):
        with flagsaver.flagsaver(count=1, **given):
            paths = draw.run_sampling(pipeline, tmp_path, "0.9")
        folders.add(paths["grid"].parent.name)
    assert len(folders) == 4 and all("-ema0.9-" in name for name in folders)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, PipelineError, r'--prompt="a red apple".*--prompts_file'),
        ({"classes": ["flags"]}, PipelineError, "knows no classes"),
        ({"prompts_file": "nope.txt"}, DataError, "nope.txt cannot be read"),
        ({"prompt": ["a"], "width": 18}, PipelineError, "the width of 4, unlike"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_served_is_explained(
    pipeline, tmp_path, given, error, words
):
    assert issubclass(error, UserError)
    with flagsaver.flagsaver(**given), pytest.raises(error, match=words):
        draw.run_sampling(pipeline, tmp_path)
    assert not any(tmp_path.iterdir())


def test_every_solver_of_the_command_line_is_one_of_ours():
    assert {"euler", "heun", "adams2", "sde"} <= set(draw.SOLVERS)
    assert all(dataclasses.is_dataclass(solver) for solver in draw.SOLVERS.values())


def test_flags_change_a_preset():
    """A preset is taken whole; what else is given changes it, and nothing besides."""
    with flagsaver.flagsaver(preset="dopri5_stagewise2.4"):
        assert draw.changed(Sampling()) == PRESETS["dopri5_stagewise2.4"]()
    given = {"sample_steps": ["10", "20"], "guide": "runs/weak", "guidance": 3.0}
    with flagsaver.flagsaver(preset="pixelgen_heun50", **given):
        changed = draw.changed(Sampling())
    preset = PRESETS["pixelgen_heun50"]()
    assert changed.grid == dataclasses.replace(preset.grid, stage_steps=(10, 20))
    assert changed.guidance == AutoGuidance(
        scale=3.0, low=0.1, high=0.9, interval="(]", weights="runs/weak"
    )
    assert changed.solver == preset.solver
    with flagsaver.flagsaver(sample_steps=["ten"]):
        with pytest.raises(PipelineError, match="sample_steps"):
            draw.changed(Sampling())
