"""Writes docs/configuration.md, the fields of a config, from the classes themselves.

Run from the root of the repository: python docs/make_configuration.py
"""

import dataclasses
import inspect
import pathlib
import re
import typing
from typing import Any

from pixelflow_jax import values
from pixelflow_jax.config_types import field_types, is_node, type_name
from pixelflow_jax.experiment import node_classes
from pixelflow_jax.registry import is_protocol

PAGE = pathlib.Path(__file__).with_name("configuration.md")
PACKAGE = "pixelflow_jax."
NONE = dataclasses.MISSING
INTRODUCTION = """\
# Configuration

Written by `docs/make_configuration.py` from the classes; do not edit it by hand.

A config is an `Experiment`. A config file returns one from `get_config`, and any field
can be set on the command line by its path, `--config.optimizer.lr=2e-4`. Every value
must lie in its range: files, flags and Python are checked alike, before anything is
built, and all that is wrong is told at once. `inf` and `nan` are no finite numbers.

Parts that may be of several classes name them; a package of your own can bring more
(see [Add a method](add_a_method.md)).
"""


def page() -> str:
    """The whole page."""
    own = {n: c for n, c in node_classes().items() if c.__module__.startswith(PACKAGE)}
    names = sorted(own, key=lambda name: (name != "Experiment", name))
    return "\n".join([INTRODUCTION, *(section(own[name]) for name in names)])


def section(cls: Any) -> str:
    """A class: its first sentence, and a table of its fields."""
    text = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) ", text)[0]
    lines = [f"## {cls.__name__}", "", sentence, ""]
    fields = dataclasses.fields(cls)
    if not fields:
        return "\n".join([*lines, "It has no fields.", ""])
    lines += ["| field | type | range | default |", "|---|---|---|---|"]
    for field in fields:
        kind = values.annotations(cls)[field.name]
        cells = [
            f"`{field.name}`",
            type_cell(field_types(cls)[field.name]),
            values.describe(kind),
            default(field),
        ]
        lines.append(f"| {' | '.join(one.replace(' | ', ' or ') for one in cells)} |")
    return "\n".join([*lines, ""])


def type_cell(kind: Any) -> str:
    """A field's type; classes of parts lead to their sections."""
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(f"`{one!r}`" for one in typing.get_args(kind))
    text = type_name(kind)
    if typing.get_origin(kind) or is_protocol(kind) or dataclasses.is_dataclass(kind):
        known = "|".join(sorted(node_classes(), key=len, reverse=True))
        return re.sub(rf"\b({known})\b", lambda m: f"[{m[0]}](#{m[0].lower()})", text)
    return text


def default(field: dataclasses.Field) -> str:
    """A field's default; of parts, what differs from their own defaults."""
    if field.default is NONE and field.default_factory is NONE:
        return "required"
    if field.default_factory is NONE:
        return f"`{short(field.default)}`"
    return f"`{short(field.default_factory())}`"


def short(value: Any) -> str:
    """A value as one writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(short, value))}]"
    if not is_node(value):
        return repr(value)
    changed = [
        f"{field.name}={short(getattr(value, field.name))}"
        for field in dataclasses.fields(value)
        if default(field) != f"`{short(getattr(value, field.name))}`"
    ]
    return f"{type(value).__name__}({', '.join(changed)})"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
