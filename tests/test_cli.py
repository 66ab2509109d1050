"""Every command of the package explains itself, and takes its own flags alone."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest
from absl import flags

from pixelflow_jax import __main__ as commands
from pixelflow_jax import __version__, main
from pixelflow_jax.cli import foreign_flags, terminal, verbs
from pixelflow_jax.paths import printable
from tests.bad_input.row import command

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What the help of each module must name: its flags or its own commands.
MODULES = {
    "pixelflow_jax.__main__": [*verbs.VERBS, *verbs.OTHERS],
    "pixelflow_jax.main": [*verbs.VERBS, "--mode"],
    "pixelflow_jax.quickstart": ["--workdir", "--steps"],
    "pixelflow_jax.demo.__main__": ["--weights", "--port", "--most-images"],
    "pixelflow_jax.prepare": ["shards", "preview", "text-features"],
    "pixelflow_jax.convert.__main__": ["from-torch", "to-torch", "inspect"],
}
OTHER_COMMANDS = [
    *("quickstart", "config", "prepare", "convert", "reproduce", "verify", "demo"),
    *(f"prepare {name}" for name in ("shards", "preview", "basis", "text-features")),
    *(
        f"convert {name}"
        for name in ("from-torch", "to-torch", "to-safetensors", "inspect")
    ),
]


def modules() -> list[str]:
    """Modules that run something when called with `python -m`."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "pixelflow_jax").rglob("*.py"))
        if any(map(is_main_guard, ast.parse(path.read_text("utf-8")).body))
    ]


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def test_every_module_that_runs_is_listed_here():
    assert set(modules()) == set(MODULES)


@pytest.mark.parametrize("words", [["config", "list"], ["evaluate", "--help"]])
def test_a_reader_that_goes_away_is_no_error(words):
    """As `| head` does."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "pixelflow_jax", *words]
    run = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert (run.returncode, run.stderr) == (commands.NOBODY_READS, "")


@pytest.mark.parametrize("module", MODULES)
def test_the_help_of_a_module(module):
    run = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    for word in MODULES[module]:
        assert word in run.stdout, run.stdout


def said(capsys, *arguments: str) -> str:
    """What a command prints that ends well."""
    try:
        command(*arguments)
    except SystemExit as stop:
        assert stop.code in (0, None), capsys.readouterr().err
    return capsys.readouterr().out


def own_flags() -> list[flags.Flag]:
    """Every flag that the package defines, but for --mode."""
    by_module = flags.FLAGS.flags_by_module_dict()
    mine = [own for name, own in by_module.items() if "pixelflow_jax.cli" in name]
    return [flag for module in mine for flag in module]


@pytest.mark.parametrize("verb", verbs.VERBS)
@pytest.mark.parametrize("asked", ["--help", "-h"])
def test_the_help_of_a_verb_shows_its_flags_and_no_others(verb, asked, capsys):
    text = said(capsys, verb, asked)
    shown = set(re.findall(r"^  --([a-z0-9_]+)\b", text, re.MULTILINE))
    assert shown == {*verbs.VERBS[verb].flags(), "config"}
    assert text.count(f"  pixelflow {verb} ") >= 3
    assert max(map(len, text.splitlines())) <= verbs.WIDTH


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_the_alias_gives_the_same_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main.parse_flags(["main", f"--mode={verb}", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == said(capsys, verb, "--help")


def test_every_flag_belongs_to_a_verb():
    assert all(verbs.owners(flag.name) for flag in own_flags())
    for verb in verbs.VERBS.values():
        assert len(set(verb.flags())) == len(verb.flags())


@pytest.mark.parametrize("words", OTHER_COMMANDS)
def test_the_help_of_the_other_commands_has_examples(words, capsys):
    text = said(capsys, *words.split(), "--help")
    examples = re.findall(rf"^  pixelflow {words}\b.*", text, re.MULTILINE)
    assert len(examples) >= 3, text


def test_the_version(capsys):
    assert said(capsys, "--version").strip() == __version__
    assert commands.main([]) == 2


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_words_of_other_tools_are_answered_with_flags_that_there_are(verb):
    for word in foreign_flags.BY_WORD:
        answer = foreign_flags.ours(word, verb)
        assert answer is not None
        for name in re.findall(r"--([a-z0-9_]+)(?![a-z0-9_.])", answer):
            assert name in flags.FLAGS and verbs.owners(name), answer


def test_texts_that_a_terminal_would_obey_are_escaped():
    text = printable("a\x1b[31mb\u202ec\n", terminal.KEPT)
    assert text == "a\\x1b[31mb\\u202ec\n"
    assert printable("naïve 猫 🐈") == "naïve 猫 🐈"


def test_a_terminal_of_another_encoding_is_no_error():
    run = subprocess.run(
        [sys.executable, "-m", "pixelflow_jax", "smäple→"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=600,
    )
    assert run.returncode == 2
    assert b"There is no command 'sm\\xe4ple" in run.stderr


def test_a_long_message_is_told_in_three_lines():
    listed = "\n".join(f"  - problem {i}" for i in range(26))
    text = terminal.folded(f"It cannot run:\n{listed}\nTake another.")
    assert len(text.splitlines()) == 3
    assert "problem 6; and 19 more;\n  Take another." in text
    assert terminal.folded("one\ntwo\nthree") == "one\ntwo\nthree"
