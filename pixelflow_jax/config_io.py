"""Config nodes (keyword-only dataclasses) as JSON-able dicts, back, and compared."""

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Iterable, Iterator

from absl import flags
from ml_collections import config_flags

CLASS = "class"  # the key under which a node's class is written

# Flags set a field of `Literal` by its text; which ones it may have is checked later.
config_flags.register_flag_parser_for_type(typing.Literal, flags.ArgumentParser())


class _Absent:
    """Stands in a difference for a field that one of the two does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def to_dict(node: object) -> object:
    """A node as nested dicts, lists and scalars; infinities become strings."""
    if dataclasses.is_dataclass(node):
        fields = dataclasses.fields(node)
        values = {f.name: to_dict(getattr(node, f.name)) for f in fields}
        return {CLASS: type(node).__name__, **values}
    if isinstance(node, list | tuple):
        return [to_dict(item) for item in node]
    if isinstance(node, float) and math.isinf(node):
        return str(node)
    return node


def from_dict(data: object, classes: Iterable[type]) -> object:
    """The node that `to_dict` wrote; its class must be one of `classes`.

    Fields that `data` lacks take their defaults. Raises ValueError for a class or field
    that does not exist, or lacks and has no default (a file of another version).
    """
    known = {cls.__name__: cls for cls in classes}

    def build(data: object) -> object:
        if isinstance(data, list):
            return [build(item) for item in data]
        if not isinstance(data, dict):
            return data
        values = dict(data)
        name = values.pop(CLASS, None)
        if name not in known:
            raise ValueError(
                f"This config holds a node of class {name!r}, which this version of "
                f"pixelflow_jax does not know; it knows {', '.join(sorted(known))}."
            )
        defaults = known[name]
        fields = {f.name: f for f in dataclasses.fields(defaults)}
        unknown = sorted(set(values) - set(fields))
        if unknown:
            raise ValueError(
                f"This config sets {name}.{', '.join(unknown)}, which this version "
                f"does not know; the fields of {name} are {', '.join(fields)}."
            )
        required = [name for name, field in fields.items() if _required(field)]
        missing = sorted(set(required) - set(values))
        if missing:
            raise ValueError(
                f"This config lacks {name}.{', '.join(missing)}, which has no default."
            )
        return defaults(**{k: _restore(build(v), fields[k]) for k, v in values.items()})

    return build(data)


def _required(field: dataclasses.Field) -> bool:
    nothing = dataclasses.MISSING
    return field.default is nothing and field.default_factory is nothing


def _restore(value: object, field: dataclasses.Field) -> object:
    """Undo what JSON cannot say: infinities and tuples."""
    if value in ("inf", "-inf") and isinstance(field.default, float):
        return float(value)
    if isinstance(value, list) and not _is_list(field):
        return _as_tuple(value)
    return value


def _as_tuple(value: object) -> object:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _is_list(field: dataclasses.Field) -> bool:
    return getattr(field.type, "__origin__", field.type) is list


def type_errors(node: object) -> list[str]:
    """Scalars, and tuples of them, whose type is not the one their field declares."""
    found = []
    for path, one in walk(node):
        for field in dataclasses.fields(one):
            value = getattr(one, field.name)
            if not _fits(value, field.type):
                name = f"{path}.{field.name}".lstrip(".")
                simple = isinstance(field.type, type) and not typing.get_args(
                    field.type
                )
                wanted = field.type.__name__ if simple else field.type
                found.append(f"{name}={value!r} must be of type {wanted}")
    return found


def walk(node: object, path: str = "") -> Iterator[tuple[str, object]]:
    """A node and all nodes inside it, each with its path ("a.b[0]"; the root: "")."""
    yield path, node
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), f"{path}.{field.name}".lstrip(".")
        inside = {name: value}
        if isinstance(value, list | tuple):
            inside = {f"{name}[{i}]": item for i, item in enumerate(value)}
        for name, item in inside.items():
            if dataclasses.is_dataclass(item):
                yield from walk(item, name)


def _fits(value: object, wanted: object) -> bool:
    """Whether a value has the type of a field; True for types that are not scalars."""
    arguments = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if typing.get_origin(wanted) is tuple:
        return isinstance(value, tuple) and all(
            _fits(item, arguments[0]) for item in value
        )
    if wanted in (bool, str, types.NoneType):
        return isinstance(value, wanted)
    kinds = {int: numbers.Integral, float: numbers.Real}
    if wanted in kinds:
        return isinstance(value, kinds[wanted]) and not isinstance(value, bool)
    return True


def differences(old: object, new: object, path: str = "") -> dict[str, tuple]:
    """Fields in which two `to_dict` results differ: {"a.b[0].c": (old, new)}."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get(CLASS) != new.get(CLASS):
            return {path or CLASS: (old.get(CLASS), new.get(CLASS))}
        found = {}
        for key in [*old, *(k for k in new if k not in old)]:
            name = f"{path}.{key}" if path else key
            found |= differences(old.get(key, ABSENT), new.get(key, ABSENT), name)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = {}
        for i, pair in enumerate(zip(old, new, strict=True)):
            found |= differences(*pair, f"{path}[{i}]")
        return found
    return {} if old == new else {path: (old, new)}


def is_under(path: str, roots: Iterable[str]) -> bool:
    """Whether the field at `path` is one of `roots`, or a part of one."""
    return any(path == r or path.startswith((f"{r}.", f"{r}[")) for r in roots)
