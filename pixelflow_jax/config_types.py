"""What a field of a config node may hold, read from its annotation."""

import dataclasses
import functools
import numbers
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Union

from pixelflow_jax import renamed, values
from pixelflow_jax.registry import implementations, is_protocol
from pixelflow_jax.values import UNIONS

SCALARS = {int: numbers.Integral, float: numbers.Real}


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The annotation of every field of a node's class, by its name."""
    return {n: without_range(one) for n, one in values.annotations(cls).items()}


def without_range(annotation: Any) -> Any:
    """An annotation's type alone, also inside unions, lists and tuples."""
    origin: Any = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return without_range(arguments[0])
    if origin not in (*UNIONS, list, tuple):
        return annotation
    inside = tuple(without_range(one) for one in arguments)
    if inside == arguments:
        return annotation
    generic: Any = Union if origin in UNIONS else origin
    return generic[inside]


def is_node(value: object) -> bool:
    """Whether a value is a config node, and not the class of one."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_node_type(wanted: Any) -> bool:
    """Whether an annotation is the class of a node, or a Protocol of some."""
    return isinstance(wanted, type) and (
        dataclasses.is_dataclass(wanted) or is_protocol(wanted)
    )


def alternatives(wanted: Any) -> Iterator[Any]:
    """All types that an annotation names, in unions, lists and tuples as well."""
    origin = typing.get_origin(wanted)
    if origin in (*UNIONS, list, tuple, dict):
        for inner in typing.get_args(wanted):
            yield from alternatives(inner)
    else:
        yield wanted


def fits(value: object, wanted: Any) -> bool:
    """Whether a value is of the type that an annotation names.

    A node fits a Protocol that it names as its base. Whole numbers are floats as well;
    booleans are no numbers.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in UNIONS:
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if origin in (list, tuple):
        return isinstance(value, origin) and _items_fit(value, arguments)
    if wanted is None:
        return value is None
    if wanted in SCALARS:
        return isinstance(value, SCALARS[wanted]) and not isinstance(value, bool)
    wanted = origin or wanted
    if not isinstance(wanted, type):
        return True
    if is_protocol(wanted):
        return wanted in type(value).__mro__
    return isinstance(value, wanted)


def _items_fit(items: Any, wanted: tuple) -> bool:
    """Whether items are of the types that a list's or tuple's annotation names."""
    if not wanted:
        return True
    if len(wanted) == 1 or wanted[1] is Ellipsis:  # of any length
        return all(fits(item, wanted[0]) for item in items)
    return len(items) == len(wanted) and all(map(fits, items, wanted))


def type_errors(node: object, path: str = "") -> list[str]:
    """All that is not as its annotation says, in a node and in the nodes inside it.

    That is of another type, or out of the range of its kind (see `values`).
    """
    problems = _unknown_attributes(node, path)
    kinds = values.annotations(type(node))
    for name, wanted in field_types(type(node)).items():
        value, where = getattr(node, name), f"{path}.{name}".lstrip(".")
        parts = _parts(where, value, wanted)
        wrong = {at: part for at, (part, one) in parts.items() if not fits(part, one)}
        for at, part in wrong.items():
            problems.append(_complaint(at, part, parts[at][1]))
        if not wrong:
            problems += values.problems(where, value, kinds[name])
        for at, (part, _) in parts.items():
            if at not in wrong:
                problems += [p for w, n in nodes(at, part) for p in type_errors(n, w)]
    return problems


def nodes(path: str, value: object) -> Iterator[tuple[str, object]]:
    """The nodes that a field's value holds, each with its path; not those inside."""
    if is_node(value):
        yield path, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from nodes(f"{path}[{i}]", item)


def _parts(path: str, value: object, wanted: Any) -> dict[str, tuple[object, Any]]:
    """What is checked apart, by path: the nodes of a list, or else the whole value."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    of_nodes = arguments and any(map(is_node_type, alternatives(arguments[0])))
    if origin in (list, tuple) and isinstance(value, origin) and of_nodes:
        return {f"{path}[{i}]": (v, arguments[0]) for i, v in enumerate(value)}
    return {path: (value, wanted)}


def _unknown_attributes(node: object, path: str) -> list[str]:
    """Attributes that were set, but are no fields."""
    cls = type(node)
    known = {*field_types(cls), *dir(cls)}
    return [
        f"{path}.{name}".lstrip(".") + f" is no field. {unknown_field(cls, name)}"
        for name in getattr(node, "__dict__", {})
        if name not in known and not name.startswith("_")  # those are its own
    ]


def unknown_field(cls: type, name: str) -> str:
    """What there is in place of a field that a class does not have."""
    fields = list(field_types(cls))
    hint = renamed.field_hint(cls.__name__, name, fields)
    return f"{hint}The fields of {cls.__name__} are {', '.join(fields)}."


def _complaint(path: str, value: object, wanted: Any) -> str:
    shown = repr(value)[:200]
    if is_node(value):
        shown = f"{type(value).__name__}(...)"
    elif isinstance(value, type):
        shown = f"{value.__name__} (a class, not a value of it)"
    if typing.get_origin(wanted) is Literal:
        return f"{path} must be one of {type_name(wanted)}, not {shown}"
    return f"{path}={shown} must be of type {type_name(wanted)}"


def type_name(wanted: Any) -> str:
    """An annotation in words that a user knows."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in UNIONS:
        return " | ".join(map(type_name, arguments))
    if origin is Literal:
        return ", ".join(map(repr, arguments))
    if origin in (list, tuple):
        inside = ["..." if one is Ellipsis else type_name(one) for one in arguments]
        return f"{origin.__name__}[{', '.join(inside)}]"
    if wanted in (None, types.NoneType):
        return "None"
    if not isinstance(wanted, type):
        return str(wanted)
    kinds = ", ".join(implementations(wanted)) if is_protocol(wanted) else ""
    return f"{wanted.__name__} ({kinds})" if kinds else wanted.__name__
