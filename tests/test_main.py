"""The command line: what a user can get wrong is told in one paragraph, exit code 1."""

import json
import os
import tempfile

import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from pixelflow_jax import Pipeline
from pixelflow_jax.cli import sample as draw
from pixelflow_jax.cli import shared
from pixelflow_jax.errors import ConfigError
from tests.training import tiny

# A mistake: lines that edit the config, flags, and what the message must say.
MISTAKES = {
    "a field that does not exist": (
        "",
        ["--config.stepz=3"],
        ["--config.stepz cannot be set", "Experiment", "accumulate", "sampling"],
    ),
    "a field of a part that does not exist": (
        "",
        ["--config.model.widht=3"],
        ["widht", "The fields of PixNerd are num_classes, channels, patch, width"],
    ),
    "a part that does not exist": (
        "",
        ["--config.modle.width=3"],
        ["modle", "The fields of Experiment are name, seed"],
    ),
    "a word for a number": ("", ["--config.steps=abc"], ["--config.steps=abc", "int"]),
    "a word in a tuple": ("", ["--config.ema=('a',)"], ["ema=('a',)", "tuple[float"]),
    "a name for a part": (
        "",
        ["--config.model.decoder=linear"],
        ["--config.model.decoder cannot be set", "in a config file"],
    ),
    "an entry that does not exist": (
        "",
        ["--config.terms[3].weight=1"],
        ["--config.terms[3].weight cannot be set", "out of range"],
    ),
    "an unknown flag": ("", ["--stepz=3"], ["There is no flag --stepz"]),
    "a word that is no flag": ("", ["steps=3"], ["Unknown arguments: steps=3"]),
    "patch and size": (
        "",
        ["--config.model.patch=5"],
        ["model.patch=5 does not divide the image size 16 x 16"],
    ),
    "batch and mesh": (
        "",
        ["--config.batch_size=7", "--config.accumulate=2"],
        ["batch_size=7 must be a multiple of 2"],
    ),
    "a mesh for other devices": (
        "",
        ["--config.mesh.fsdp=3"],
        ["fsdp=3", "does not fit 1 devices"],
    ),
    "several at once": (
        "",
        ["--config.model.patch=5", "--config.optimizer.lr=-1", "--config.ema=(1.5,)"],
        ["model.patch=5", "optimizer.lr=-1.0 must be", "ema[0]=1.5"],
    ),
    "other classes than the data has": (
        "",
        ["--config.model.num_classes=10"],
        ["has 3 classes but model.num_classes=10", "--config.model.num_classes=3"],
    ),
    "a data folder that does not exist": (
        "",
        ["--config.data.source.path=/nowhere"],
        ["DataError: The image folder '/nowhere' does not exist"],
    ),
    "an empty data folder": (
        "config.data.source.path = {empty!r}",
        [],
        ["DataError: ", "holds no images"],
    ),
    "images smaller than the crop": (
        "config.data.crop.small = 'error'\nconfig.data.image_size = 32",
        [],
        ["DataError: ", "smaller than 32x32 pixels", 'crop.small="upscale"'],
    ),
    "a workdir below a file": (
        "",
        ["--workdir={file}/run"],
        ["Cannot write to the --workdir", "Not a directory"],
    ),
}
CONFIG_FILES = {
    "no file": ("{folder}/nope.py", ["There is no config file", "nope.py"]),
    "no variant": ("configs/emoji.py:nope", ["No variant 'nope'", "demo, shipped"]),
    "no experiment": ("three.py", ["must return an Experiment, not 3"]),
    "a dict": ("dict.py", ["must return an Experiment, not {'steps': 3}"]),
    "a module": ("module.py", ["must return an Experiment, not a module"]),
    "no variants": ("three.py:four", ["has no variants, so there is no 'four'"]),
    "an unknown name": ("pixnert", ["Did you mean --config=pixnerd?", "emoji_t2i"]),
    "an unknown attribute": (
        "attribute.py",
        ["stepz is no field. Did you mean steps? The fields of Experiment are name"],
    ),
    "a misspelt part": ("part.py", ["part.py:4 cannot be used", "Experiment are name"]),
    "a list in JSON": ("list.json", ["holds no config of an experiment"]),
    "broken JSON": ("broken.json", ["broken.json cannot be read"]),
    "a config of tomorrow": (
        "later.json",
        ["format version 99", "update pixelflow_jax"],
    ),
    "no function": ("empty.py", ["empty.py cannot be used", "has no get_config()"]),
    "a field that does not exist": ("field.py", ["field.py:3 cannot be used", "lrr"]),
    "not Python": ("syntax.py", ["syntax.py cannot be used: SyntaxError"]),
}
EXPERIMENT = (
    "from pixelflow_jax.experiment import Experiment\n"
    "def get_config():\n    config = Experiment(name='x')\n"
)
FILES = {
    "dict.py": "def get_config():\n    return {'steps': 3}\n",
    "module.py": "import math\ndef get_config():\n    return math\n",
    "attribute.py": EXPERIMENT + "    config.stepz = 3\n    return config\n",
    "part.py": EXPERIMENT + "    config.modle.width = 3\n    return config\n",
    "list.json": "[1, 2]",
    "broken.json": "{",
    "later.json": '{"class": "Experiment", "version": 99, "name": "x"}',
    "three.py": "def get_config():\n    return 3\n",
    "empty.py": "",
    "field.py": "from pixelflow_jax.training.optimizer import AdamW\n"
    "def get_config():\n    return AdamW(lrr=1)\n",
    "syntax.py": "def get_config(:\n",
}


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    return tiny_run.copy(tmp_path_factory.mktemp("run")), tiny_run.state


def paragraph(outcome) -> str:
    """The message of a command that refused: one paragraph, perhaps with a list."""
    text = outcome["out"] + outcome["error"]
    assert outcome["code"] == 1, text
    assert "Traceback" not in text and "WARNING" not in text
    message = outcome["error"].split("step/s]")[-1].strip()
    assert "\n\n" not in message
    first, *rest = message.split("\n")
    assert all(line.startswith("  ") for line in rest), message
    return message


@pytest.fixture(scope="module")
def refusals(images, tmp_path_factory):
    """The outcomes of all mistakes."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "file").write_text("")
    names = {"empty": str(folder / "empty"), "file": str(folder / "file")}
    commands = {}
    for number, (name, (edits, flags, _)) in enumerate(MISTAKES.items()):
        edits = edits.format(**names)
        config = tiny.write_config(folder / f"{number}.py", images, edits)
        arguments = [f"--config={config}", f"--workdir={folder / str(number)}"]
        commands[name] = arguments + [flag.format(**names) for flag in flags]
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for name, (path, _) in CONFIG_FILES.items():
        path = path.format(folder=folder)
        path = str(folder / path) if path.split(":")[0] in FILES else path
        commands["file: " + name] = [f"--config={path}", f"--workdir={folder / 'f'}"]
    commands["file: none"] = [f"--workdir={folder / 'f'}"]
    commands["workdir: none"] = [f"--config={config}"]
    return tiny.outcomes(commands)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained(refusals, mistake):
    message = paragraph(refusals[mistake])
    for words in MISTAKES[mistake][2]:
        assert words in message


@pytest.mark.parametrize("mistake", CONFIG_FILES)
def test_a_config_file_that_cannot_be_used_is_explained(refusals, mistake):
    message = paragraph(refusals["file: " + mistake])
    for words in CONFIG_FILES[mistake][1]:
        assert words in message


def test_what_is_needed_is_asked_for(refusals):
    assert "Training needs --config" in paragraph(refusals["file: none"])
    assert "--workdir is missing" in paragraph(refusals["workdir: none"])


def test_a_workdir_without_permission_is_refused(tmp_path, monkeypatch):
    """Whoever runs the tests may write anywhere, so the answer is put in its mouth."""

    def refuse(dir: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(ConfigError, match=r"Cannot write to the --workdir.*Permission"):
        shared.writable(tmp_path)


def test_overrides_reach_every_kind_of_field(images, tmp_path):
    config = tiny.write_config(tmp_path / "config.py", images)
    (outcome,) = tiny.outcomes(
        {
            "train": [
                f"--config={config}",
                f"--workdir={tmp_path / 'run'}",
                "--config.steps=3",
                "--config.optimizer.lr=2e-4",
                "--config.terms[0].weight=0.5",
                "--config.ema=(0.75,)",
                "--config.data.flip=false",
                "--config.optimizer.schedule=cosine",
            ]
        }
    ).values()
    assert outcome["code"] == 0, outcome["error"]
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["steps"] == 3 and written["optimizer"]["lr"] == 2e-4
    assert written["terms"][0]["weight"] == 0.5 and written["ema"] == [0.75]
    assert written["data"]["flip"] is False
    assert written["optimizer"]["schedule"] == "cosine"
    line = tiny.history(tmp_path / "run")[0]
    assert line["loss"] == pytest.approx(0.5 * line["FlowMatching"])


def sample(workdir, *arguments, name="sample"):
    return {name: [f"--workdir={workdir}", "--mode=sample", *arguments]}


@pytest.fixture(scope="module")
def sampled(finished):
    """The outcomes of many sampling commands in the workdir of one run."""
    workdir, _ = finished
    lines = {
        "all": ["--count=2", "--trajectory"],
        "named": ["--classes=FLAGS,cats-dogs,1", "--count=1", "--sample_seed=5"],
        "wide": ["--classes=flags", "--count=1", "--height=24", "--width=40"],
        "unknown class": ["--classes=dogs"],
        "class out of range": ["--classes=3"],
        "unknown average": ["--ema=0.99"],
        "size": ["--height=20"],
        "bad interval": ["--guidance_interval=0.3"],
        "bad shift": ["--shift=0"],
        "bad solver": ["--solver=rk4"],
        "bad count": ["--count=0"],
        "no weights": ["--weights=nope.safetensors"],
        "a prompt": ["--prompt=a red apple"],
        "a text encoder": ["--text_encoder=nope.safetensors"],
    }
    commands = {}
    for name, line in lines.items():
        commands |= sample(workdir, *line, name=name)
    commands["empty workdir"] = [f"--workdir={workdir}/nothing", "--mode=sample"]
    return tiny.outcomes(commands)


def folder_of(outcome):
    """The samples folder that a command printed, with its images by name."""
    assert outcome["code"] == 0, outcome["error"]
    lines = dict(line.strip().split(": ") for line in outcome["out"].splitlines())
    names = sorted(os.listdir(lines["images"]))
    images = {n: np.asarray(Image.open(f"{lines['images']}/{n}")) for n in names}
    return lines, images


def test_sampling_writes_images_grid_archive_and_trajectory(sampled):
    lines, images = folder_of(sampled["all"])
    assert list(images) == [
        "000000_Cats-Dogs.png",
        "000001_Cats-Dogs.png",
        "000002_flags.png",
        "000003_flags.png",
        "000004_plants.png",
        "000005_plants.png",
    ]
    archive = np.load(lines["npz"])
    assert archive["arr_0"].dtype == np.uint8
    assert archive["arr_0"].shape == (6, tiny.SIZE, tiny.SIZE, 3)
    np.testing.assert_array_equal(archive["arr_0"], np.stack(list(images.values())))
    np.testing.assert_array_equal(archive["labels"], [0, 0, 1, 1, 2, 2])
    with Image.open(lines["trajectory"]) as gif:
        # Three steps; the last one's clean image is the result, so it is not repeated.
        assert gif.format == "GIF" and gif.n_frames == 3
        with Image.open(lines["grid"]) as grid:
            assert grid.size == gif.size


def test_sampling_is_quiet(sampled):
    error = sampled["all"]["error"]
    assert "WARNING" not in error and "orbax" not in error.lower()
    assert all(
        "image" in line for line in error.replace("\r", "\n").split("\n") if line
    )


def test_classes_by_name_slug_and_number(sampled):
    lines, images = folder_of(sampled["named"])
    np.testing.assert_array_equal(np.load(lines["npz"])["labels"], [1, 0, 1])
    assert "seed5" in lines["grid"]


def test_sizes_that_were_not_trained(sampled):
    _, images = folder_of(sampled["wide"])
    assert [image.shape for image in images.values()] == [(24, 40, 3)]


def test_every_choice_changes_the_images_and_has_a_folder_of_its_own(
    finished, tmp_path
):
    choices = [
        {},
        {"solver": "heun"},
        {"sample_steps": ["2"]},
        {"shift": 2.0},
        {"guidance": 1.0},
        {"guidance_interval": ["0.5", "1"]},
        {"sample_seed": 1},
        {"ema": "raw"},
    ]
    drawn, folders = set(), set()
    for choice in choices:
        with flagsaver.flagsaver(count=1, classes=["flags"], **choice):
            pipeline = Pipeline.from_pretrained(finished[0], shared.EMA.value)
            paths = draw.run_sampling(pipeline, tmp_path, shared.EMA.value)
        drawn.add((paths["images"] / "000000_flags.png").read_bytes())
        folders.add(paths["images"].parent.name)
    assert len(drawn) == len(folders) == len(choices)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown class", ["no class 'dogs'", "Cats & Dogs, flags, plants"]),
        ("class out of range", ["labels [3] are out of range", "classes 0 to 2"]),
        ("unknown average", ["no average '0.99'", "0.9, 0.5, raw"]),
        ("size", ["model.patch=8 does not divide the image size 20 x 16"]),
        ("bad interval", ["must be two times from 0 to 1"]),
        ("bad shift", ["--shift=0", "must be a finite number from 0.001"]),
        ("bad solver", ["--solver=rk4", "heun"]),
        ("bad count", ["--count=0", "not a positive integer"]),
        ("no weights", ["There is no file nope.safetensors"]),
        ("a prompt", ["draws classes, not prompts", "--classes"]),
        ("a text encoder", ["has no text encoder"]),
        ("empty workdir", ["No weights at", "checkpoints/"]),
    ],
)
def test_a_request_that_cannot_be_served_is_explained(sampled, name, words):
    message = paragraph(sampled[name])
    for part in words:
        assert part in message


def test_evaluation_writes_json(finished):
    workdir, _ = finished
    lines = {"evaluate": [f"--workdir={workdir}", "--mode=evaluate"]}
    outcome = tiny.outcomes(lines)["evaluate"]
    assert outcome["code"] == 0, outcome["error"]
    written = json.loads((workdir / "evaluations" / "00000006.json").read_text())
    assert written["step"] == 6 and 0.5 < written["loss"] < 2
    assert f"{written['loss']:.5f}" in outcome["out"]


def test_another_config_is_refused_before_anything_is_overwritten(finished, images):
    workdir, _ = finished
    before = (workdir / "config.json").read_text(), tiny.history(workdir)
    config = tiny.write_config(workdir / "other.py", images, "config.seed = 9")
    line = [f"--config={config}", f"--workdir={workdir}"]
    outcome = tiny.outcomes({"train": line})["train"]
    assert outcome["code"] == 1 and "Traceback" not in outcome["error"]
    assert "seed: 3 -> 9" in outcome["error"]
    assert before == ((workdir / "config.json").read_text(), tiny.history(workdir))


def test_a_diverging_run_exits_with_one_paragraph(images, tmp_path):
    edit = "config.terms[0].weight = 3e38\nconfig.ema = ()"
    config = tiny.write_config(tmp_path / "config.py", images, edit)
    line = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    outcome = tiny.outcomes({"train": line})["train"]
    message = outcome["error"].split("\n\n")[-1]
    assert outcome["code"] == 77 and "Traceback" not in outcome["error"]
    assert "DivergedError: Step" in message and "is not finite" in message
