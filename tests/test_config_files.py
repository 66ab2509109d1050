"""Config files by path and by name, those of a run, and what the package brings."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

import pixelflow_jax
from pixelflow_jax import config_files, resources
from pixelflow_jax.config_files import load_config
from pixelflow_jax.errors import ConfigError
from tests.bad_input.row import command

ROOT = pathlib.Path(__file__).resolve().parents[1]
MINE = (
    "from pixelflow_jax.experiment import Experiment\n"
    "def get_config():\n    return Experiment(name='mine')\n"
)


def test_a_name_stands_for_a_config_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("pixnerd:xl16_256")
    assert config.name == "pixnerd_xl16_256"
    assert config == load_config(f"{ROOT}/configs/pixnerd.py:xl16_256")
    assert config == load_config("pixnerd") == pixelflow_jax.load_config("pixnerd")


def test_a_path_wins_where_a_file_lies_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pixnerd").mkdir()
    assert load_config("pixnerd").name == "pixnerd_xl16_256"  # no file
    (tmp_path / "emoji.py").write_text(MINE)
    assert load_config("emoji.py").name == "mine"
    assert load_config("emoji").name == "emoji_demo"


def test_a_path_may_hold_a_colon(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "mine.py").write_text(MINE)
    assert load_config(f"{folder}/mine.py").name == "mine"
    assert config_files.find(f"{folder}/mine.py:c") == (folder / "mine.py", "c")


def test_what_a_file_says_now_counts(tmp_path, monkeypatch):
    """Not bytecode, which fits another text of that length in the same second."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for name in ("mine", "ours"):
        file = tmp_path / "config.py"
        file.write_text(MINE.replace("mine", name))
        os.utime(file, (1e9, 1e9))
        assert load_config(str(file)).name == name
    assert list(tmp_path.iterdir()) == [file]


def test_the_config_of_a_run_is_a_config_file(tmp_path):
    config = load_config("emoji:demo", ["--config.steps=7"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    assert load_config(str(path)) == config
    assert load_config(str(path), ["--config.steps=8"]).steps == 8
    with pytest.raises(ConfigError, match=r"is a folder: name its config, --config=.*"):
        load_config(str(tmp_path))


def test_configs_are_a_part_of_the_package_in_a_clone_too():
    from pixelflow_jax.configs import pixnerd

    assert pathlib.Path(pixnerd.__file__) == ROOT / "configs" / "pixnerd.py"
    assert pixnerd.get_config() == load_config("pixnerd")


def test_every_config_is_listed_with_its_variants():
    assert {"emoji", "pixnerd", "pixelflow", "pixelgen"} <= set(config_files.names())
    names = ("demo", "shipped", "styles", "styles256")
    assert config_files.variants("emoji") == names
    summary, variants = config_files.described("emoji")
    assert summary.startswith("emoji: Quick start") and "demo, shipped" in variants


def test_a_config_without_variants_is_listed_too(tmp_path):
    (tmp_path / "mine.py").write_text('"""Mine."""\n' + MINE)
    assert config_files.variants(str(tmp_path / "mine.py")) == ()
    assert config_files.described(str(tmp_path / "mine.py"))[0].endswith("Mine.")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--version"], 0, pixelflow_jax.__version__),
        (["config", "list"], 0, "demo, shipped"),
        (["config", "show", "emoji:demo", "--config.steps=3"], 0, '"steps": 3,'),
        (["config", "show", "emoji:none"], 1, "No variant 'none'"),
        (["config"], 2, "pixelflow config show"),
        (["trane"], 2, "There is no command 'trane'"),
        ([], 2, "pixelflow VERB"),
        (["train", "--help"], 0, "--workdir"),
        (["sample", "--workdir=nowhere"], 1, "No weights at"),
        (["prepare", "--help"], 0, "text-features"),
        (["convert", "--help"], 0, "to-torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_have_verbs(arguments, code, words, capsys):
    try:
        command(*arguments)
        ended = 0
    except SystemExit as stop:
        ended = stop.code or 0
    said = capsys.readouterr()
    assert ended == code and words in said.out + said.err, said


def test_assets_go_by_name():
    assert resources.asset("emoji") == ROOT / "assets" / "emoji.safetensors"
    for name in ("emojis", "", "../assets/emoji", "emoji.safetensors"):
        assert resources.asset(name) is None


def test_once_installed_configs_and_assets_are_parts_of_the_package(tmp_path):
    """Laid out as setup.py says and .ci/wheel tries, in a folder without a clone."""
    package = tmp_path / "site" / "pixelflow_jax"
    shutil.copytree(ROOT / "pixelflow_jax", package)
    for name in ("configs", "assets"):
        shutil.copytree(ROOT / name, package / name)
    code = (
        "import pixelflow_jax, pixelflow_jax.configs.pixnerd as module\n"
        "from pixelflow_jax import resources\n"
        "config = pixelflow_jax.load_config('pixnerd:xl16_256')\n"
        "assert config == module.get_config('xl16_256')\n"
        "print(resources.asset('emoji'), pixelflow_jax.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}/site", "JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{package}/") == 2
