"""Every command of the package explains itself."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# What the help of each command must name: its flags or its own commands.
FLAGS = {
    "pixelflow_jax.__main__": ["train", "config list", "quickstart"],
    "pixelflow_jax.main": ["--config", "--workdir", "--mode"],
    "pixelflow_jax.quickstart": ["--workdir"],
    "pixelflow_jax.prepare": ["shards", "preview", "text-features"],
    "pixelflow_jax.convert.__main__": ["from-torch", "to-torch", "inspect"],
}


def commands() -> list[str]:
    """Modules that run something when called with `python -m`."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "pixelflow_jax").rglob("*.py"))
        if any(map(is_main_guard, ast.parse(path.read_text("utf-8")).body))
    ]


def is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)


def test_every_command_has_its_flags_listed_here():
    assert set(commands()) <= set(FLAGS)


@pytest.mark.parametrize("command", commands())
def test_help_names_the_flags(command):
    run = subprocess.run(
        [sys.executable, "-m", command, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    # absl exits with 1 after printing its help, argparse with 0.
    assert run.returncode in (0, 1), run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    for flag in FLAGS.get(command, []):
        assert flag in run.stdout, run.stdout
