"""Export and fine-tuning as a user does them: from the command line, with real runs."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from pixelflow_jax import Pipeline, build
from pixelflow_jax.conditioning.text import Text
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.errors import InitialError
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixnerd_text import PixNerdText
from pixelflow_jax.nn.embed import sincos_table
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.pretrained.initial import initial_weights
from pixelflow_jax.training.loop import train
from pixelflow_jax.validate import validated
from tests.training import tiny

PIXELGEN = PixelGen(
    num_classes=3,
    patch=8,
    image_size=16,
    width=16,
    heads=2,
    depth=2,
    feature_layer=1,
    context_length=2,
    context_start=1,
    stack=StackConfig(remat="none"),
)
# Command lines, by name; {x} stands for a path of `places`.
COMMANDS = {
    "export": "--workdir={run} --mode=export --out={out} --ema=0.5 --samples",
    "export half": "--workdir={run} --mode=export --out={half} --ema=raw "
    "--dtype=bfloat16",
    "export nowhere": "--workdir={run} --mode=export",
    "export into the run": "--workdir={run} --mode=export --out={run}",
    "export onto a file": "--workdir={run} --mode=export --out={file}/deep",
    "export an unknown average": "--workdir={run} --mode=export --out={x} --ema=0.7",
    "export an unknown type": "--workdir={run} --mode=export --out={x} --dtype=half",
    "export a folder again": "--workdir={x} --mode=export --weights={pub} --out={copy}",
    "sample": "--workdir={work} --mode=sample --weights={pub} --count=1",
    "classes": "--workdir={five} --config={five.py} --config.init_from={pub} "
    "--config.init_reset=('classes',)",
    "classes unasked": "--workdir={x} --config={five.py} --config.init_from={pub}",
    "an unknown kind": "--workdir={x} --config={five.py} --config.init_from={pub} "
    "--config.init_reset=('clases',)",
    "resolution": "--workdir={large} --config={large.py} --config.init_from={small}",
    "both": "--workdir={both} --config={same.py} --config.init_from={run} "
    "--config.init_ema=both",
    "both of one": "--workdir={x} --config={same.py} --config.init_from={pub} "
    "--config.init_ema=both",
    "another model": "--workdir={x} --config={same.py} --config.init_from={small}",
    "nothing there": "--workdir={x} --config={same.py} --config.init_from={none}",
}
PATHS = "run out half file x none pub copy work five large small both".split()


@pytest.fixture(scope="module")
def places(tiny_run, tmp_path_factory):
    """Data of three and of five classes, a run on each model, and a folder."""
    root = tmp_path_factory.mktemp("finetune")
    places = {name: root / name for name in PATHS}
    images = tiny_run.images
    more = tiny.write_images(root / "more")
    for name in ("trees", "birds"):
        shutil.copytree(more / "flags", more / name)
    places["file"].write_text("")
    tiny_run.copy(places["run"])
    train(tiny.run(images, model=PIXELGEN, steps=2), places["small"])
    Pipeline.from_pretrained(places["run"]).save_pretrained(places["pub"])
    five = "config.model.num_classes = 5\nconfig.steps = 2"
    large = (
        "from pixelflow_jax.models.pixelgen import PixelGen\n"
        "from pixelflow_jax.nn.stack import StackConfig\n"
        f"config.model = {dataclasses.replace(PIXELGEN, image_size=32)!r}\n"
        "config.data.image_size = 32\nconfig.steps = 2"
    )
    places["five.py"] = tiny.write_config(root / "five.py", more, five)
    places["large.py"] = tiny.write_config(root / "large.py", images, large)
    places["same.py"] = tiny.write_config(root / "same.py", images, "config.steps = 2")
    return {"images": images, "more": more, **places}


@pytest.fixture(scope="module")
def outcomes(places):
    def arguments(line: str) -> list[str]:
        for name, path in places.items():
            line = line.replace("{" + name + "}", str(path))
        return line.split()

    commands = {name: arguments(line) for name, line in COMMANDS.items()}
    exact = {"resolution": commands.pop("resolution")}  # its table is compared by bits
    return tiny.outcomes(commands) | tiny.outcomes(exact, optimised=True)


def succeeded(outcome) -> str:
    assert outcome["code"] == 0, outcome["error"]
    return outcome["out"]


def test_a_checkpoint_is_exported_in_one_command(outcomes, places):
    said = succeeded(outcomes["export"])
    assert str(places["out"]) in said and "average with decay 0.5" in said
    run = Pipeline.from_pretrained(places["run"], ema="0.5")
    out = Pipeline.from_pretrained(places["out"])
    tiny.assert_identical(out.params, run.params)
    drawn = (p.generate([0, 1, 2], seed=1).images for p in (run, out))
    tiny.assert_identical(*drawn)
    card = (places["out"] / "README.md").read_text()
    assert (places["out"] / "samples.png").exists() and "samples.png" in card
    assert "without averaging, bfloat16" in succeeded(outcomes["export half"])
    sizes = [
        (places[name] / "model.safetensors").stat().st_size for name in ("out", "half")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    assert not (places["half"] / "samples.png").exists()


def test_a_folder_is_sampled_and_exported_like_a_run(outcomes, places):
    assert "step00000006" in succeeded(outcomes["sample"])
    succeeded(outcomes["export a folder again"])
    copies = [Pipeline.from_pretrained(places[name]) for name in ("pub", "copy")]
    tiny.assert_identical(*(copy.params for copy in copies))
    assert copies[0].origin == copies[1].origin != ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("export nowhere", ["ConfigError", "needs --out"]),
        ("export into the run", ["is the workdir of a training run"]),
        ("export onto a file", ["Cannot write to the --out", "Not a directory"]),
        ("export an unknown average", ["no average '0.7'; choose one of 0.9, 0.5"]),
        ("export an unknown type", ["--dtype=half", "float32"]),
        (
            "classes unasked",
            [
                "classes: class_embed/table (6, 32): (4, 32) there",
                "--config.init_reset=\"('classes',)\"",
            ],
        ),
        ("an unknown kind", ["init_reset=('clases',) may hold", "classes, text"]),
        ("both of one", ["holds one set of weights", "no average 'raw'"]),
        ("another model", ["weights of a PixelGen", "trains a PixNerd"]),
        ("nothing there", ["PipelineError", "No weights at", "published folder"]),
    ],
)
def test_what_cannot_be_done_is_told_in_one_paragraph(outcomes, name, words):
    outcome = outcomes[name]
    message = outcome["error"].strip()
    assert outcome["code"] == 1 and "Traceback" not in message, message
    assert "\n\n" not in message
    for part in words:
        assert part in message


def test_new_classes_begin_anew_and_the_rest_goes_on(outcomes, places):
    said = succeeded(outcomes["classes"])
    report = (places["five"] / "init_from.txt").read_text()
    assert report.strip() in said
    assert f"init_from={places['pub']}: step 6 of the run 'tiny'" in report
    assert "classes: class_embed/table (6, 32): (4, 32) there" in report
    assert "model.num_classes: 3 -> 5" in report
    tuned = Pipeline.from_pretrained(places["five"])
    assert tuned.step == 2 and len(tuned.class_names) == 5
    assert tuned(["birds"]).shape == (1, tiny.SIZE, tiny.SIZE, 3)


def tuning(places, **fields) -> Experiment:
    return tiny.experiment(places["images"], **fields)


def begun(config: Experiment):
    initial = initial_weights(config)
    return build.training_run(validated(config), lambda: initial).fresh_state(initial)


def test_the_new_class_table_is_that_of_a_run_from_scratch(places):
    source = ImageFolder(path=str(places["more"]), holdout=0.25)
    fields = {
        "data": Data(source=source, image_size=tiny.SIZE, threads=2),
        "model": tiny.model(num_classes=5),
    }
    start = {"init_from": str(places["pub"]), "init_reset": ("classes",)}
    state = begun(tuning(places, **fields, **start))
    scratch = tiny.run(places["images"], **fields).fresh_state()
    theirs = Pipeline.from_pretrained(places["pub"]).params
    expected = {**theirs, "class_embed": scratch.params["denoiser"]["class_embed"]}
    for tree in (state.params["denoiser"], *state.ema.values()):
        tiny.assert_identical(tree, {name: expected[name] for name in tree})


def test_another_resolution_is_one_field(outcomes, places):
    succeeded(outcomes["resolution"])
    report = (places["large"] / "init_from.txt").read_text()
    assert "resolution: position (16, 16): (4, 16) there, computed anew" in report
    tuned = Pipeline.from_pretrained(places["large"])
    np.testing.assert_array_equal(tuned.params["position"], sincos_table(4, 4, 16))
    assert tuned([0]).shape == (1, 32, 32, 3)

    config = tuning(places, init_from=str(places["small"]))
    config.model = dataclasses.replace(PIXELGEN, image_size=32)
    config.data.image_size = 32
    begins = begun(config).params["denoiser"]
    theirs = Pipeline.from_pretrained(places["small"]).params
    tiny.assert_identical(
        {k: v for k, v in begins.items() if k != "position"},
        {k: v for k, v in theirs.items() if k != "position"},
    )


def test_weights_and_averages_go_on_together(outcomes, places):
    report = (places["both"] / "init_from.txt").read_text()
    succeeded(outcomes["both"])
    assert "averages: from those of the same decay, 0.9, 0.5" in report
    saved = {
        ema: Pipeline.from_pretrained(places["run"], ema=ema).params
        for ema in ("raw", "0.9", "0.5")
    }
    begins = begun(tuning(places, init_from=str(places["run"]), init_ema="both"))
    tiny.assert_identical(begins.params["denoiser"], saved["raw"])
    for decay in ("0.9", "0.5"):
        tiny.assert_identical(begins.ema[decay], saved[decay])
    with pytest.raises(InitialError, match="cannot begin with.*no average '0.99'"):
        both = {"init_from": str(places["run"]), "init_ema": "both"}
        initial_weights(tuning(places, ema=(0.9, 0.99), **both))


@pytest.mark.parametrize("ema", ["", "0.5", "raw"])
def test_one_set_of_weights_begins_all(places, ema):
    config = tuning(places, init_from=str(places["run"]), init_ema=ema, ema=(0.7,))
    begins = begun(config)
    theirs = Pipeline.from_pretrained(places["run"], ema=ema).params
    tiny.assert_identical(begins.params["denoiser"], theirs)
    tiny.assert_identical(begins.ema["0.7"], theirs)


def test_a_single_file_begins_a_run(places, tmp_path):
    path = tmp_path / "model.safetensors"
    pipeline = Pipeline.from_pretrained(places["run"])
    pipeline.save(path, dtype="float32")
    begins = begun(tuning(places, init_from=str(path)))
    tiny.assert_identical(begins.params["denoiser"], pipeline.params)


def test_class_names_that_differ_are_reported(places, tmp_path):
    data = json.loads((places["pub"] / "config.json").read_text())
    data["class_names"][1] = "banners"
    copy = shutil.copytree(places["pub"], tmp_path / "copy")
    (copy / "config.json").write_text(json.dumps(data))
    report = initial_weights(tuning(places, init_from=str(copy))).report
    assert report.splitlines()[-1] == "  class 1: 'banners' -> 'flags'"
    faster = tiny.model(stack=StackConfig(scan=False))
    config = tuning(places, init_from=str(places["pub"]), model=faster)
    same = initial_weights(config).report
    assert len(same.splitlines()) == 2


def test_another_text_encoder_begins_a_new_projection(tmp_path):
    small = {
        "patch": 8,
        "width": 16,
        "heads": 2,
        "depth": 2,
        "text_depth": 1,
        "feature_layer": 1,
    }
    model = PixNerdText(**small, text_width=6, text_length=5)
    config = Experiment(name="text", model=model, conditioner=Text(length=5))
    params = build.network(config).init(jax.random.key(0))
    Pipeline(config=config, params=params, class_names=(), step=0).save_pretrained(
        tmp_path
    )
    tuned = dataclasses.replace(
        config,
        model=dataclasses.replace(model, text_width=9, text_length=7),
        init_from=str(tmp_path),
    )
    with pytest.raises(InitialError, match="text: trunk/text_embed/proj/kernel"):
        initial_weights(tuned)
    tuned.init_reset = ("text",)
    initial = initial_weights(tuned)
    taken = initial.params["trunk"]["text_embed"]
    assert set(taken) == {"norm", "proj"} and set(taken["proj"]) == {"bias"}
    tiny.assert_identical(initial.params["decoder"], params["decoder"])
    assert "text: trunk/text_embed/position (7, 16): (5, 16) there" in initial.report
