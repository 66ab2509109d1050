"""Config files, by path or by name: which there are, and the experiments they give.

A config file is Python, with a function `get_config()` that returns an `Experiment`.
Where it takes an argument, that is the name of a variant; a dict `VARIANTS` of the
file, from names to functions, lets all be listed. A function `finish(config)` may
choose what follows from fields that flags have set, such as the classes of a folder. A
run's `config.json` is a config file as well.
Files that come with the package go by their names: "pixnerd:xl16_256" is the variant
xl16_256 of configs/pixnerd.py.
"""

import ast
import contextlib
import difflib
import inspect
import json
import os
import pathlib
import re
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence

from pixelflow_jax import config_overrides, renamed, resources
from pixelflow_jax.config_types import is_node, unknown_field
from pixelflow_jax.errors import ConfigError, UserError
from pixelflow_jax.evaluation.paper import PaperRow
from pixelflow_jax.experiment import Experiment, node_classes

MOST = 2**25  # bytes of a config in JSON
EXAMPLE = "--config=emoji or --config=pixnerd:xl16_256"


def load_config(
    name: str, changes: Sequence[str] | Mapping[str, object] = ()
) -> Experiment:
    """The experiment of NAME, NAME:VARIANT, FILE.py, FILE.py:VARIANT or FILE.json.

    `changes` set single fields, {"steps": 100} or as flags, ["--config.steps=100"].
    Raises ConfigError, in one paragraph, for whatever keeps it from being used.
    """
    path, variant = find(name)
    flags = config_overrides.as_flags(changes)
    if path.suffix == ".json":
        return config_overrides.apply(_from_json(path), flags)
    config, finish = _from_python(path, variant)
    config = config_overrides.apply(config, flags)
    with _explained(path):
        return finish(config)


def names() -> list[str]:
    """The config files that come with the package."""
    files = resources.folder("configs").glob("[!_]*.py")
    return sorted(path.stem for path in files)


def variants(name: str) -> tuple[str, ...]:
    """The variants that a config file lists in its `VARIANTS`, by name or path."""
    path, _ = find(name)
    with _explained(path):
        return tuple(getattr(_module(path), "VARIANTS", ()))


def paper_rows(name: str) -> tuple[PaperRow, ...]:
    """The rows of its paper that a config file lists for a variant in its `PAPER`.

    Raises ConfigError, which names the variants that have some.
    """
    path, variant = find(name)
    with _explained(path):
        module = _module(path)
        listed = getattr(module, "PAPER", {})
        if variant is None:
            (parameter,) = inspect.signature(module.get_config).parameters.values()
            variant = parameter.default
    if variant not in listed:
        have = ", ".join(f"{path.stem}:{one}" for one in listed) or "none of this file"
        raise ConfigError(
            f"No figures of a paper are listed for {name}: {have} can be reproduced."
        )
    return tuple(listed[variant])


def described(name: str) -> list[str]:
    """What a config file is for, and its variants, in lines."""
    path, _ = find(name)
    with _explained(path):
        summary = (_module(path).__doc__ or "").strip().split("\n")[0]
    listed = textwrap.wrap(", ".join(variants(name)), 84)
    return [f"{name}: {summary}", *(f"    {line}" for line in listed)]


def find(name: str) -> tuple[pathlib.Path, str | None]:
    """The file that a name or path stands for, and the variant named behind it.

    A path wins where a file lies there. Raises ConfigError where there is none.
    """
    parts = name.split(":")
    if len(parts) > 1 and not parts[-1] and not pathlib.Path(name).exists():
        raise ConfigError(
            f"{name} names no variant behind the colon: name one, or leave it away."
        )
    for count in range(len(parts), 0, -1):
        path = pathlib.Path(":".join(parts[:count])).expanduser()
        if path.is_file() and path.suffix in (".py", ".json"):
            return path, ":".join(parts[count:]) or None
    ours = resources.folder("configs") / f"{parts[0]}.py"
    if parts[0] in names():
        return ours, ":".join(parts[1:]) or None
    raise ConfigError(_not_there(parts[0]))


def _not_there(name: str) -> str:
    """Says that there is no such config, and what there is."""
    path, ours = pathlib.Path(name).expanduser(), names()
    if path.is_dir() and (path / "config.json").is_file():
        return f"{name} is a folder: name its config, --config={path / 'config.json'}."
    if path.is_file():
        return f"The config file {name} must end in .py or .json."
    near = difflib.get_close_matches(path.stem, ours, 1)
    meant = f" Did you mean --config={near[0]}?" if near else ""
    return (
        f"There is no config file {name!r}.{meant} Give the path of one, or the name "
        f"of one that comes with the package, such as {EXAMPLE}. There are "
        f"{', '.join(ours)}."
    )


def _from_json(path: pathlib.Path) -> Experiment:
    if (size := path.stat().st_size) > MOST:
        raise ConfigError(
            f"The config file {path} cannot be read: it has {size:,} bytes, which no "
            "config has."
        )
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"The config file {path} cannot be read: {error}") from error
    if not isinstance(data, dict) or "class" not in data:
        raise ConfigError(
            f"{path} holds no config of an experiment: give the config.json of a run's "
            "workdir. To begin with published weights, set --config.init_from."
        )
    try:
        return Experiment.from_dict(data)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from error


def _from_python(
    path: pathlib.Path, variant: str | None
) -> tuple[Experiment, Callable[[Experiment], Experiment]]:
    """What the file gives, and what it does when fields were set."""
    with _explained(path):
        module = _module(path)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ConfigError(
                "it has no get_config(), which must return an Experiment."
            )
        takes = len(inspect.signature(get_config).parameters)
        if variant is not None and not takes:
            raise ConfigError(f"it has no variants, so there is no {variant!r}.")
        config = get_config(*([] if variant is None else [variant]))
        if not isinstance(config, Experiment):
            kind = "a module" if inspect.ismodule(config) else repr(config)
            raise ConfigError(
                f"get_config() must return an Experiment, not {kind[:100]}."
            )
        return config, getattr(module, "finish", lambda config: config)


def _module(path: pathlib.Path) -> types.ModuleType:
    """The file as a module, run anew from its text.

    Bytecode that Python keeps beside it is passed by: it is told from the text by size
    and second alone, which two edits one after the other may share.
    """
    module = types.ModuleType(f"pixelflow_config_{path.stem}")
    module.__file__ = os.path.abspath(path)
    sys.modules[module.__name__] = module  # where pickle looks for its classes
    exec(compile(path.read_bytes(), module.__file__, "exec"), vars(module))
    return module


@contextlib.contextmanager
def _explained(path: pathlib.Path) -> Iterator[None]:
    """Turns whatever goes wrong in a config file into a ConfigError that says where."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # config files are code, and may even call exit()
        if isinstance(error, ConfigError):
            raise ConfigError(f"{path} cannot be used: {error}") from error
        if isinstance(error, UserError):  # of what it opens
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [f.lineno for f in frames if f.filename == os.path.abspath(path)]
        lines = [line for line in own if line is not None]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        hint = _hint(error, path, lines[-1]) if lines else ""
        raise ConfigError(
            f"{where} cannot be used: {reason}. {hint}".rstrip()
        ) from error


def _hint(error: BaseException, path: pathlib.Path, line: int) -> str:
    """What a config file should say instead, where that is known."""
    if isinstance(error, ImportError):
        return _import_now(path, line)
    if isinstance(error, AttributeError) and is_node(error.obj):
        return unknown_field(type(error.obj), error.name or "")
    match = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    cls = node_classes().get(match[1]) if match else None
    return unknown_field(cls, match[2]) if match and cls else ""


def _import_now(path: pathlib.Path, line: int) -> str:
    """The import on a line of a config file, in today's words where they are others."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.lineno == line and node.module:
            names = {a.name: renamed.NAMES.get(a.name, a.name) for a in node.names}
            then = {(node.module, name) for name in names}
            now = {(_home(node.module, name), name) for name in names.values()}
            if now != then:
                imports = [f"from {home} import {name}" for home, name in sorted(now)]
                return f"Write: {'; '.join(imports)}."
    return ""


def _home(module: str, name: str) -> str:
    """The module in which a name of an old module is now."""
    cls = node_classes().get(name)
    return cls.__module__ if cls else renamed.module_of(module)
