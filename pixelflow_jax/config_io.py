"""Config nodes (keyword-only dataclasses) as JSON-able dicts, back, and compared."""

import dataclasses
import math
import numbers
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags

from pixelflow_jax.config_types import (
    UNIONS,
    alternatives,
    field_types,
    fits,
    is_node,
    nodes,
    unknown_field,
)
from pixelflow_jax.errors import ConfigError

CLASS = "class"  # the key under which a node's class is written

# Flags set a field of `Literal` by its text; which ones it may have is checked later.
config_flags.register_flag_parser_for_type(typing.Literal, flags.ArgumentParser())


class _Absent:
    """Stands in a difference for a field that one of the two does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def to_dict(node: object) -> Any:
    """A node as nested dicts, lists and scalars; infinities become strings."""
    if is_node(node):
        values = {
            name: to_dict(getattr(node, name)) for name in field_types(type(node))
        }
        return {CLASS: type(node).__name__, **values}
    if isinstance(node, list | tuple):
        return [to_dict(item) for item in node]
    if node is None or isinstance(node, bool | str):
        return node
    if isinstance(node, numbers.Integral):
        return int(node)
    if isinstance(node, numbers.Real):
        return float(node) if math.isfinite(node) else str(float(node))
    return node


def from_dict(data: object, classes: Iterable[type]) -> Any:
    """The node that `to_dict` wrote; its class must be one of `classes`.

    Fields that `data` lacks take their defaults. Raises ConfigError for a class or
    field that does not exist, or lacks and has no default (a file of another version).
    """
    known = {cls.__name__: cls for cls in classes}
    if not isinstance(data, dict):
        raise ConfigError(f"This config is no node, but {str(data)[:100]!r}.")
    return _node(data, known)


def _node(data: dict, known: dict[str, type]) -> Any:
    values = dict(data)
    name = values.pop(CLASS, None)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"This config holds a node of class {name!r:.100}, which this version of "
            f"pixelflow_jax does not know; it knows {', '.join(sorted(known))}."
        )
    cls = known[name]
    types = field_types(cls)
    for field in sorted(set(values) - set(types)):
        raise ConfigError(
            f"This config sets {name}.{field}, which this version does not know. "
            f"{unknown_field(cls, field)}"
        )
    required = {f.name for f in dataclasses.fields(cls) if _required(f)}
    missing = sorted(required - set(values))
    if missing:
        raise ConfigError(
            f"This config lacks {name}.{', '.join(missing)}, which has no default."
        )
    return cls(**{k: _restored(v, types[k], known) for k, v in values.items()})


def _required(field: dataclasses.Field) -> bool:
    nothing = dataclasses.MISSING
    return field.default is nothing and field.default_factory is nothing


def _restored(value: object, wanted: Any, known: dict[str, type]) -> Any:
    """A field's value, with what JSON cannot say: nodes, tuples, infinities."""
    if isinstance(value, dict):
        return _node(value, known)
    if isinstance(value, list):
        return _restored_items(value, wanted, known)
    if value in ("inf", "-inf", "nan") and float in alternatives(wanted):
        return value if fits(value, wanted) else float(value)
    return value


def _restored_items(items: list, wanted: Any, known: dict[str, type]) -> Any:
    """A list, or, where the field's type is none, a tuple."""
    kinds = typing.get_args(wanted) if typing.get_origin(wanted) in UNIONS else [wanted]
    kinds = [kind for kind in kinds if typing.get_origin(kind) in (list, tuple)]
    inner = [typing.get_args(kind) for kind in kinds]
    inside = inner[0][0] if inner and inner[0] else object
    restored = [_restored(item, inside, known) for item in items]
    is_list = any(typing.get_origin(kind) is list for kind in kinds) or wanted is list
    return restored if is_list else tuple(restored)


def walk(node: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """A node and all nodes inside it, each with its path ("a.b[0]"; the root: "")."""
    yield path, node
    for name in field_types(type(node)):
        where = f"{path}.{name}".lstrip(".")
        for inner, item in nodes(where, getattr(node, name)):
            yield from walk(item, inner)


def differences(old: object, new: object, path: str = "") -> dict[str, tuple]:
    """Fields in which two `to_dict` results differ: {"a.b[0].c": (old, new)}."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get(CLASS) != new.get(CLASS):
            return {path or CLASS: (old.get(CLASS), new.get(CLASS))}
        changed = {}
        for key in [*old, *(k for k in new if k not in old)]:
            name = f"{path}.{key}" if path else key
            changed |= differences(old.get(key, ABSENT), new.get(key, ABSENT), name)
        return changed
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        changed = {}
        for i, pair in enumerate(zip(old, new, strict=True)):
            changed |= differences(*pair, f"{path}[{i}]")
        return changed
    return {} if old == new else {path: (old, new)}


def is_under(path: str, roots: Iterable[str]) -> bool:
    """Whether the field at `path` is one of `roots`, or a part of one."""
    return any(path == r or path.startswith((f"{r}.", f"{r}[")) for r in roots)
