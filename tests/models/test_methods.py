"""A method is one file of a model or of a slot, and one config; nothing else knows it.

Beside the names that the package offers, only the converter of a method's official
weights, and files of the same method, may import it.
"""

import ast
import pathlib

import pytest

from pixelflow_jax.config_files import load_config, variants

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "pixelflow_jax"
# The files of each newer method, and the slot's file that names what it may hold.
METHODS = {
    "asymflow": ("flow/asymmetric.py", "flow/basis.py", "cli/basis.py"),
    "deco": ("models/deco.py", "models/deco_text.py", "losses/frequency.py"),
    "pixelrepa": ("losses/adapter.py", "losses/perceptual.py"),
    "pixeldit2": (
        *("models/pixeldit2.py", "models/pixeldit2_text.py", "models/grounding.py"),
        *("conditioning/grounded.py", "teachers/dinov3.py"),
    ),
}
SHARED = ("losses/perceptual.py", "cli/basis.py")  # slots, and a command of its own


def imports(path: pathlib.Path) -> set[str]:
    """The modules that a file imports, as paths in the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.replace(".", "/") + ".py" for name in names}
    return {name.removeprefix("pixelflow_jax/") for name in found}


@pytest.mark.parametrize("method", METHODS)
def test_no_other_file_knows_a_method(method):
    own = METHODS[method]
    alone = {name for name in own if name not in SHARED}
    assert all((PACKAGE / name).is_file() for name in own)
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name in own or name == "__init__.py" or path.parent.name == "convert":
            continue
        assert not imports(path) & alone, name


# Configs that are no paper's, whose heads the fast attention kernels take.
NO_PAPERS = [
    *(f"combinations:{name}" for name in variants("combinations")),
    *(f"pixeldit2_t2i:{name}" for name in variants("pixeldit2_t2i")),
    *("asymflow:emoji", "deco:emoji", "deco_t2i:emoji"),
]


@pytest.mark.parametrize("name", NO_PAPERS)
def test_heads_are_of_64_or_128_channels(name):
    model = load_config(name).model
    assert model.width / model.heads in (64, 128)
