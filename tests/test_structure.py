"""The house rules, read from the source: CONTRIBUTING.md explains them.

Every rule is a function from modules to complaints. It is run twice: on the package,
where nothing may be found, and on a small piece of bad code, where something must be.
"""

import ast
import functools
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

import pixelflow_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "pixelflow_jax"

# A unit is a sub-package or a module directly under the package.
FLOORS = {
    **dict.fromkeys(["errors", "atomic", "backend", "compat"], 0),
    **dict.fromkeys(["renamed", "resources", "values", "digests"], 0),
    **dict.fromkeys(["registry", "paths", "peers", "mesh"], 1),
    **dict.fromkeys(["config_types", "distributed", "remote"], 2),
    **dict.fromkeys(["config_io", "config_overrides", "remote_runs"], 3),
    **dict.fromkeys(["config_versions"], 4),
    **dict.fromkeys(["flow", "nn", "data", "tensors", "sharding"], 4),
    **dict.fromkeys(["models", "encoders", "teachers"], 5),
    **dict.fromkeys(["conditioning"], 6),
    **dict.fromkeys(["losses", "sampling"], 7),
    **dict.fromkeys(["training", "evaluation"], 8),
    **dict.fromkeys(["experiment"], 9),
    **dict.fromkeys(["build", "config_files"], 10),
    **dict.fromkeys(["validate"], 11),
    **dict.fromkeys(["pretrained", "doctor"], 12),
    **dict.fromkeys(["cli", "convert", "demo"], 13),
    **dict.fromkeys(["main", "prepare", "quickstart"], 14),
    **dict.fromkeys(["__main__"], 15),
}
# Imports within one floor, or from above, and why.
NEIGHBOURS = {
    ("nn", "sharding"): "the stack's activation constraint",
    ("validate", "pretrained"): "the kinds of differences that fine-tuning knows",
    ("convert", "cli"): "commands read their flags and refuse alike",
    ("demo", "cli"): "commands read their flags and refuse alike",
    ("cli", "convert"): "a paper is reproduced from its official weights",
    ("models", "teachers"): "a denoiser may look through a frozen encoder",
    ("tensors", "nn"): "weights are cast to a precision as they are read",
}
# Names the package's own __init__ offers, and the unit each comes from.
FACADE = {
    name: module.split(".")[0]
    for module, names in pixelflow_jax.HOMES.items()
    for name in names.split()
} | {"__version__": "compat"}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60

# NNX builds parameters; jax transforms functions, optax steps, keys are arguments.
FORBIDDEN_NNX = set(
    "jit grad value_and_grad scan remat Optimizer ModelAndOptimizer Dropout BatchNorm "
    "EMA MultiMetric".split()
)
# Written in pieces, so that this file does not break its own rule.
FORBIDDEN_WORDS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b|/wo" + r"rk/")
MOVES = ("os.replace", "os.rename", "os.renames", "shutil.move")
OUTPUT = ("build", "dist", "runs")
TEXT_FILES = (".py", ".md", ".toml", ".yaml", ".yml", ".sh", ".ipynb", "Makefile")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Module(NamedTuple):
    """One source file of the package."""

    name: str  # dotted, without the package: "flow.path"; "" for its __init__
    source: str
    tree: ast.Module
    is_init: bool

    @property
    def unit(self) -> str:
        return self.name.split(".")[0]

    def at(self, node: ast.AST) -> str:
        return f"{PACKAGE}.{self.name}:{node.lineno}".replace(".:", ":")


def module(name: str, source: str, is_init: bool = False) -> Module:
    return Module(name, source, ast.parse(source), is_init)


@functools.cache
def package() -> list[Module]:
    """All source files; rules only read them."""
    modules = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        is_init = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_init else parts)
        modules.append(module(name, path.read_text(encoding="utf-8"), is_init))
    return modules


def imports(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every imported module, or name of a module, as an absolute dotted path."""
    here = [PACKAGE, *filter(None, module.name.split("."))]
    base = here if module.is_init else here[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = base[: len(base) + 1 - node.level] if node.level else []
            source = ".".join([*start, *filter(None, [node.module])])
            yield from ((node, f"{source}.{alias.name}") for alias in node.names)


def public_functions(module: Module) -> Iterator[tuple[Function, bool]]:
    """Public functions and methods of public classes, and whether each is a method."""

    def visit(body: list[ast.stmt], in_class: bool):
        for node in body:
            if node_is_private(node):
                continue
            if isinstance(node, ast.ClassDef):
                yield from visit(node.body, True)
            elif isinstance(node, Function):
                yield node, in_class

    return visit(module.tree.body, False)


def node_is_private(node: ast.AST) -> bool:
    return getattr(node, "name", "").startswith("_")


def floors(modules: list[Module]) -> Iterator[str]:
    """A file imports only from the floors below it."""
    for module in modules:
        if not module.name:
            continue  # the façade stands outside the house
        if module.unit not in FLOORS:
            yield f"{PACKAGE}.{module.unit} has no floor: give it one in {__file__}"
            continue
        for node, name in imports(module):
            parts = name.split(".")
            if parts[0] != PACKAGE:
                continue
            target = parts[1] if len(parts) > 1 else "compat"
            target = FACADE.get(target, target)
            if not allowed(module.unit, target):
                yield (
                    f"{module.at(node)} (floor {FLOORS[module.unit]}) imports "
                    f"{target} (floor {FLOORS.get(target, 'unknown')})"
                )


def allowed(unit: str, target: str) -> bool:
    if unit == target or (unit, target) in NEIGHBOURS:
        return True
    return target in FLOORS and FLOORS[target] < FLOORS[unit]


def no_configs(modules: list[Module]) -> Iterator[str]:
    """Nothing in the package imports configs."""
    for module in modules:
        for node, name in imports(module):
            if name.split(".")[0] == "configs":
                yield f"{module.at(node)} imports {name}"


def data_without_jax(modules: list[Module]) -> Iterator[str]:
    """The data loaders know no jax."""
    for module in modules:
        for node, name in imports(module):
            if module.unit == "data" and name.split(".")[0] in ("jax", "flax", "optax"):
                yield f"{module.at(node)} imports {name}"


def partition_specs(modules: list[Module]) -> Iterator[str]:
    """Only sharding.py writes partition specs."""
    for module in modules:
        if module.name != "sharding" and "PartitionSpec" in module.source:
            yield f"{PACKAGE}.{module.name} mentions PartitionSpec"


def one_atomic_writer(modules: list[Module]) -> Iterator[str]:
    """Only atomic.py moves files into place."""
    for module in modules:
        if module.name == "atomic":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in MOVES:
                yield f"{module.at(node)} uses {ast.unparse(node)}"
        for node, name in imports(module):
            if name in MOVES:
                yield f"{module.at(node)} imports {name}"


def empty_inits(modules: list[Module]) -> Iterator[str]:
    """Only the package's own __init__ holds code; others may have a docstring."""
    for module in modules:
        has_docstring = ast.get_docstring(module.tree) is not None
        if module.is_init and module.name and module.tree.body[has_docstring:]:
            yield f"{PACKAGE}.{module.name} has code in its __init__"


def docstrings(modules: list[Module]) -> Iterator[str]:
    """Every module with code, public class and public function has a docstring."""
    for module in modules:
        if module.tree.body and not ast.get_docstring(module.tree):
            yield f"{PACKAGE}.{module.name} has no docstring"
        classes = (n for n in module.tree.body if isinstance(n, ast.ClassDef))
        functions = (function for function, _ in public_functions(module))
        for node in [*classes, *functions]:
            if not node_is_private(node) and not ast.get_docstring(node):
                yield f"{module.at(node)} {node.name} has no docstring"


def annotations(modules: list[Module]) -> Iterator[str]:
    """Public functions annotate their parameters and what they return."""
    for module in modules:
        for function, is_method in public_functions(module):
            if function.returns is None:
                yield f"{module.at(function)} {function.name} has no return annotation"
            decorators = {ast.unparse(d) for d in function.decorator_list}
            has_self = is_method and "staticmethod" not in decorators
            spec = function.args
            positional = [*spec.posonlyargs, *spec.args][has_self:]
            for argument in [*positional, *spec.kwonlyargs, spec.vararg, spec.kwarg]:
                if argument is not None and argument.annotation is None:
                    where = f"{module.at(function)} {function.name}"
                    yield f"{where}: {argument.arg} has no annotation"


def budgets(modules: list[Module]) -> Iterator[str]:
    """Files and functions stay short: a reason to think, not to cut blindly."""
    for module in modules:
        length = len(module.source.splitlines())
        if length > MAX_FILE_LINES:
            yield f"{PACKAGE}.{module.name} has {length} of {MAX_FILE_LINES} lines"
        for node in ast.walk(module.tree):
            if isinstance(node, Function):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    spent = f"{length} of {MAX_FUNCTION_LINES} lines"
                    yield f"{module.at(node)} {node.name} has {spent}"


def nnx_builds_only(modules: list[Module]) -> Iterator[str]:
    """NNX builds pytrees; it transforms, optimizes and drops nothing."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_NNX:
                if ast.unparse(node.value).split(".")[-1] == "nnx":
                    yield f"{module.at(node)} uses nnx.{node.attr}"
        for node, name in imports(module):
            prefix, _, last = name.rpartition(".")
            if prefix == "flax.nnx" and last in FORBIDDEN_NNX:
                yield f"{module.at(node)} imports nnx.{last}"


def dead_config_fields(modules: list[Module]) -> Iterator[str]:
    """Every field of a config is read somewhere, its own validation aside.

    A config is a dataclass with kw_only=True; a read is any `x.field`.
    """
    read = {name for module in modules for name in attributes_read(module.tree)}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and is_config(node):
                for field in fields(node):
                    if field not in read:
                        yield f"{module.at(node)} {node.name}.{field} is never read"


def attributes_read(node: ast.AST) -> Iterator[str]:
    if isinstance(node, Function) and node.name == "__post_init__":
        return
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield node.attr
    for child in ast.iter_child_nodes(node):
        yield from attributes_read(child)


def is_config(node: ast.ClassDef) -> bool:
    return any(
        isinstance(decorator, ast.Call)
        and ast.unparse(decorator.func).split(".")[-1] == "dataclass"
        and any(
            word.arg == "kw_only" and ast.unparse(word.value) == "True"
            for word in decorator.keywords
        )
        for decorator in node.decorator_list
    )


def fields(node: ast.ClassDef) -> list[str]:
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and isinstance(item.target, ast.Name)
        and "ClassVar" not in ast.unparse(item.annotation)
    ]


LONG_FUNCTION = "def f():\n" + "    pass\n" * MAX_FUNCTION_LINES
CONFIG = "@dataclasses.dataclass(kw_only=True)\nclass C:\n    rate: float = 1.0\n"

# A rule, and pieces of code it must complain about: (module, source).
RULES: list[tuple[Callable, list[tuple[str, str]]]] = [
    (
        floors,
        [
            ("flow.path", "from pixelflow_jax.models import base"),
            ("flow.path", "from pixelflow_jax.nn.embed import Embed"),
            ("flow.path", "from ..training import loop"),
            ("nn.stack", "def f():\n    import pixelflow_jax.teachers.lpips"),
            ("models.base", "from pixelflow_jax import Pipeline"),
            ("training.loop", "from pixelflow_jax.evaluation import fid"),
            ("experiment", "from pixelflow_jax import pipeline"),
            ("novelty", "import math"),
            ("main", "from pixelflow_jax import novelty"),
        ],
    ),
    (no_configs, [("experiment", "from configs import emoji")]),
    (
        data_without_jax,
        [
            ("data.loader", "import jax.numpy as jnp"),
            ("data.x", "from flax import nnx"),
        ],
    ),
    (
        partition_specs,
        [("models.base", "from jax.sharding import PartitionSpec as P")],
    ),
    (
        one_atomic_writer,
        [
            ("data.shards", "import os\nos.replace(partial, path)"),
            ("data.shards", "from os import replace"),
            ("training.log", "import shutil\nshutil.move(partial, path)"),
        ],
    ),
    (empty_inits, [("flow", "from pixelflow_jax.flow import path")]),
    (
        docstrings,
        [
            ("flow.path", "x = 1"),
            ("flow.path", '"""D."""\ndef f(): pass'),
            ("flow.path", '"""D."""\nclass C: pass'),
            ("flow.path", '"""D."""\nclass C:\n    """D."""\n    def f(self): pass'),
        ],
    ),
    (
        annotations,
        [
            ("flow.path", "def f(x) -> int: pass"),
            ("flow.path", "def f(x: int): pass"),
            ("flow.path", "def f(*, x) -> int: pass"),
            ("flow.path", "class C:\n    def f(self, x) -> int: pass"),
            ("flow.path", "class C:\n    @staticmethod\n    def f(x) -> int: pass"),
        ],
    ),
    (
        budgets,
        [("flow.path", "\n" * (MAX_FILE_LINES + 1)), ("flow.path", LONG_FUNCTION)],
    ),
    (
        nnx_builds_only,
        [
            ("models.base", "from flax import nnx\nnnx.jit(f)"),
            ("models.base", "import flax\nflax.nnx.Dropout(0.1)"),
            ("models.base", "from flax.nnx import Optimizer"),
        ],
    ),
    (
        dead_config_fields,
        [
            ("flow.path", CONFIG),
            ("flow.path", CONFIG + "c = C()\nc.rate = 2.0"),
            ("flow.path", CONFIG + "    def __post_init__(self): assert self.rate"),
        ],
    ),
]
GOOD = {
    "flow.path": """
        'D.'
        import jax
        from pixelflow_jax.flow import time
    """,
    "nn.stack": """
        'D.'
        from flax import nnx
        from pixelflow_jax import sharding
        class Stack(nnx.Module):
            'D.'
            def shape(self, depth: int) -> int:
                'D.'
    """,
    "models.base": """
        'D.'
        @dataclasses.dataclass(kw_only=True)
        class Base:
            'D.'
            rate: float = 1.0
            def twice(self) -> float:
                'D.'
                return 2 * self.rate
    """,
    "main": """
        'D.'
        from pixelflow_jax import Pipeline, __version__, data
    """,
}


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES])
def test_the_package_keeps_the_rule(rule):
    complaints = list(rule(package()))
    assert not complaints, "\n".join([rule.__doc__, *complaints])


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        pytest.param(rule, *case, id=f"{rule.__name__}-{number}")
        for rule, cases in RULES
        for number, case in enumerate(cases)
    ],
)
def test_the_rule_bites(rule, name, source):
    assert list(rule([module(name, source, is_init=rule is empty_inits)]))


@pytest.mark.parametrize("rule", [rule for rule, _ in RULES])
def test_the_rule_leaves_good_code_alone(rule):
    good = [module(name, textwrap.dedent(source)) for name, source in GOOD.items()]
    assert not list(rule([*good, module("flow", "", is_init=True)]))


def test_importing_the_package_loads_little():
    facade = next(module for module in package() if not module.name)
    loaded = {
        alias.name
        for node in facade.tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert loaded == {"compat", "importlib", "renamed", "resources", "typing"}


def test_what_the_package_offers_is_listed_loaded_and_typed_alike():
    """`__all__`, the homes that names come from, and what a type checker reads."""
    facade = next(module for module in package() if not module.name)
    (typed,) = [node for node in facade.tree.body if isinstance(node, ast.If)]
    imports = {
        (node.module, alias.name)
        for node in typed.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {
        (f"{PACKAGE}.{module}", name)
        for module, names in pixelflow_jax.HOMES.items()
        for name in names.split()
    }
    assert imports == homes
    offered = {*pixelflow_jax.__all__} - {"__version__"}
    assert (
        {name for _, name in homes}
        == offered
        == {*dir(pixelflow_jax)} - {"__version__"}
    )
    for name in offered:
        assert getattr(pixelflow_jax, name).__name__.endswith(name)


def test_no_unfinished_business():
    """No notes to self, and no path of one particular machine, in any text file."""
    complaints = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in text_files(ROOT)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if FORBIDDEN_WORDS.search(line)
    ]
    assert not complaints, "\n".join(complaints)


def text_files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The text files below a folder, but for hidden folders and build output."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            hidden = path.name.startswith(".") and path.name != ".ci"
            if not hidden and path.name not in OUTPUT:
                yield from text_files(path)
        elif path.name.endswith(TEXT_FILES) or path.parent.name == ".ci":
            yield path


@pytest.mark.parametrize(
    "line", ["# TO" + "DO: later", "x  # FIX" + "ME", "/wo" + "rk/x"]
)
def test_the_forbidden_words_are_found(line):
    assert FORBIDDEN_WORDS.search(line)
