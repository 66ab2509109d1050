"""Config nodes (keyword-only dataclasses) as JSON-able dicts, back, and compared."""

import dataclasses
import math
from collections.abc import Iterable

CLASS = "class"  # the key under which a node's class is written


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

    Raises ValueError for a class or field that does not exist (a file of another
    version).
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
                f"This config sets {name}.{', '.join(unknown)}, which this version does "
                f"not know; the fields of {name} are {', '.join(fields)}."
            )
        return defaults(**{k: _restore(build(v), fields[k]) for k, v in values.items()})

    return build(data)


def _restore(value: object, field: dataclasses.Field) -> object:
    """Undo what JSON cannot say: infinities and tuples."""
    if value in ("inf", "-inf") and isinstance(field.default, float):
        return float(value)
    if isinstance(value, list) and not _is_list(field):
        return tuple(value)
    return value


def _is_list(field: dataclasses.Field) -> bool:
    return getattr(field.type, "__origin__", field.type) is list


def differences(old: object, new: object, path: str = "") -> dict[str, tuple]:
    """Fields in which two `to_dict` results differ: {"a.b[0].c": (old, new)}."""
    if isinstance(old, dict) and isinstance(new, dict):
        if old.get(CLASS) != new.get(CLASS):
            return {path or CLASS: (old.get(CLASS), new.get(CLASS))}
        found = {}
        for key in [*old, *(k for k in new if k not in old)]:
            name = f"{path}.{key}" if path else key
            found |= differences(old.get(key), new.get(key), name)
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = {}
        for i, pair in enumerate(zip(old, new, strict=True)):
            found |= differences(*pair, f"{path}[{i}]")
        return found
    return {} if old == new else {path: (old, new)}
