"""Blocks of all pages: commands have flags that there are, Python compiles."""

import pathlib
import re
import shlex

import pytest
from absl.testing import flagsaver
from PIL import Image

from pixelflow_jax import main  # noqa: F401  defines the flags
from pixelflow_jax.cli import arguments, prepare, reference, reproduce, shared, verbs
from pixelflow_jax.config_files import load_config
from pixelflow_jax.convert import __main__ as convert
from tests.docs import pages
from tests.docs.pages import ROOT, Block, Command

LANGUAGES = {*pages.SHELL, "python", "text", "toml", "yaml", "json", "bibtex"}
LANGUAGES |= {"dockerfile", "html"}
PARSERS = {
    "prepare": prepare,
    "convert": convert,
    "reference": reference,
    "reproduce": reproduce,
}
# Programs that are no part of the project.
FOREIGN = {
    *". cd cp cat chmod curl docker export gcloud git gsutil kill kubectl".split()
}
FOREIGN |= {
    *"ls mkdir mount mpirun npm nvidia-smi pip python3 sbatch scancel squeue".split()
}
FOREIGN |= {*"srun ssh tar tensorboard xpk".split()}
SHELL = [block for block in pages.every_block() if block.language in pages.SHELL]
SHELL += [pages.examples(module) for module in PARSERS.values()]
COMMANDS = [command for block in SHELL for command in pages.commands(block)]


def told(command: Command) -> str:
    return f"{command.block.name} {shlex.join(command.words)}"


def test_blocks_say_their_language():
    blocks = pages.every_block()
    assert len(blocks) > 50
    odd = {b.name: b.language for b in blocks if b.language not in LANGUAGES}
    assert not odd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader has images: the config `images` looks at them when it is read."""
    folder = tmp_path_factory.mktemp("reader")
    for name in ("flags", "food"):
        (folder / "my_images" / name).mkdir(parents=True)
        for number in range(2):
            image = Image.new("RGB", (32, 32))
            image.save(folder / "my_images" / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=told)
def test_a_command_can_be_read(command, folder, monkeypatch):
    """Its verb, flags, config and fields are those that there are."""
    monkeypatch.chdir(folder)
    program, *words = command.words
    words = [word for word in words if word != "..." and not word.startswith("$")]
    if program == "pixelflow":
        return read(command, words)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        return subset({w for w in words if "=" not in w}, targets)
    if program in ("python", "python3") and words[:1] == ["-m"]:
        return module(words[1], words[2:])
    if program in ("python", "python3") and words[0].endswith(".py"):
        program = words[0]
    if program.startswith(("launch/", ".ci/", "docs/", "tests/", "benchmarks/")):
        assert (ROOT / program).is_file(), program
        if "pixelflow" in words:
            read(command, words[words.index("pixelflow") + 1 :])
        return
    subset({program}, FOREIGN)


def read(command: Command, words: list[str]) -> None:
    verb, *rest = words
    plans = verb == "config" and rest[0].startswith("--config=")
    if verb in ("quickstart", "config", "demo", "verify", "--version") and not plans:
        return reads_alone(verb, rest)
    if rest[:1] == ["reference"]:
        verb, rest = "reference", rest[1:]
    if verb in PARSERS:
        given, unknown = PARSERS[verb]._parser().parse_known_args(rest)
        assert all(word.startswith("--config.") for word in unknown), unknown
        config = getattr(given, "config", None) or ""
        if config and not config.startswith("runs/"):
            load_config(config, unknown)  # refuses fields that it has not
        return
    assert verb in verbs.VERBS or verb == "--help" or verb == "VERB", verb
    if verb in verbs.VERBS:
        with flagsaver.flagsaver():
            line = arguments.read(rest, verb)
            own = written(command.block)
            planned = verb in ("train", "config") or shared.CONFIG.present
            if planned and shared.CONFIG.value not in own:
                load_config(shared.CONFIG.value, line.changes)


def written(block: Block) -> set[str]:
    """Config files that the page, or the reader of it, writes."""
    of_page = pages.blocks(ROOT / block.page)
    return {b.title for b in of_page} | {"configs/mini_dit.py"}


def reads_alone(verb: str, words: list[str]) -> None:
    """A verb whose module reads its own flags."""
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    file = ROOT / f"pixelflow_jax/cli/{verb}.py"
    if file.is_file():
        text = file.read_text("utf-8")
        assert all(f'"{flag}"' in text for flag in flags), flags
    if verb == "config":
        assert words[0] in ("list", "show")
        if words[0] == "show":
            load_config(words[1], [w for w in words[2:] if w.startswith("--config")])


def module(name: str, words: list[str]) -> None:
    """A module that is run with -m; the flags of a benchmark are looked for."""
    if name.split(".")[0] in ("pixelflow_jax", "benchmarks"):
        path = ROOT / pathlib.Path(*name.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
        text = "".join(f.read_text("utf-8") for f in sources(path))
        for word in words if name.startswith("benchmarks") else ():
            flag = word.partition("=")[0]
            if flag.startswith("--") and not flag.startswith("--config."):
                assert f'"{flag}"' in text, f"{name} has no {flag}"
    else:
        subset({name}, ["venv", "pytest", "pip", "http.server", "mkdocs"])


def sources(path: pathlib.Path) -> list[pathlib.Path]:
    """Where a benchmark's flags may be defined."""
    folder = ROOT / "benchmarks"
    return [*folder.rglob("*.py")] if folder in path.parents else []


def subset(words: set[str], known) -> None:
    assert words <= {*known}, f"mistyped, or new: {sorted(words - {*known})}"


PYTHON = [block for block in pages.every_block() if block.language == "python"]


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.name)
def test_python_compiles_and_its_imports_are_there(block):
    compile(block.text, block.name, "exec")
    imports = re.findall(
        r"^(from pixelflow_jax[\w.]* import (?:\([^)]*\)|.+)|import pixelflow_jax.*)$",
        block.text,
        re.MULTILINE,
    )
    for line in imports:
        if "mini_dit" not in line:  # the page's own
            exec(compile(line, block.name, "exec"), {})


CHEAP = ("docs/architecture.md", "docs/methods/combinations.md")
CHEAP += ("docs/methods/deco.md", "docs/methods/pixelflow.md")


@pytest.mark.parametrize(
    "block", [b for b in PYTHON if b.page in CHEAP], ids=lambda block: block.name
)
def test_python_without_a_network_runs(block):
    exec(compile(block.text, block.name, "exec"), {"__name__": "page"})
