"""Fields of a config set by flags, such as --config.optimizer.lr=2e-4."""

import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags
from ml_collections import config_flags

from pixelflow_jax import values
from pixelflow_jax.config_types import (
    alternatives,
    field_types,
    is_node,
    type_name,
    unknown_field,
)
from pixelflow_jax.errors import ConfigError

Node = TypeVar("Node")
PARSERS = {
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
}
FLAG = re.compile(r"--?(?:no)?config\.([^=]+)(?:=.*)?", re.DOTALL)
PART = re.compile(r"\.?([^.\[\]]+)|\[(-?\d+)\]")


def split(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Flags that set fields of a config, and the other arguments.

    A value may follow its flag after a space.
    """
    mine, others, waiting = [], [], False
    for argument in arguments:
        if FLAG.fullmatch(argument):
            mine.append(argument)
            waiting = "=" not in argument and not argument.startswith(("--no", "-no"))
        elif waiting and not argument.startswith("-"):
            mine[-1] += f"={argument}"
            waiting = False
        else:
            others.append(argument)
            waiting = False
    return mine, others


def as_flags(changes: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Changes of fields as flags: such flags already, or values by a field's path."""
    if isinstance(changes, Mapping):
        return [f"--config.{path}={value}" for path, value in changes.items()]
    return list(changes)


def apply(config: Node, changes: Sequence[str]) -> Node:
    """A copy of a config with fields set by flags, one after the other.

    Raises ConfigError for a field that does not exist, for a whole part, and for a
    value that is of another type.
    """
    by_path: dict[str, list[str]] = {}
    for change in changes:
        match = FLAG.fullmatch(change)
        if match is None:
            raise ConfigError(f"{change} sets no field: write --config.FIELD=VALUE.")
        by_path.setdefault(match[1], []).append(change)
    for path, same in by_path.items():
        config = _set(config, path, same)
    return config


def _set(config: Node, path: str, changes: list[str]) -> Node:
    """A copy with one field set; a tuple may be given in several flags."""
    wanted = _settable(config, path, changes[-1].split("=")[0])
    parsed, arguments = flags.FlagValues(), ["", *changes]
    try:
        config_flags.DEFINE_config_dataclass(
            "config", config, flag_values=parsed, sys_argv=arguments
        )
        parsed(arguments)
    except (flags.Error, ValueError, TypeError, SyntaxError) as error:
        given = " ".join(changes)
        raise ConfigError(f"{given} must be of type {type_name(wanted)}.") from error
    return typing.cast(Node, parsed["config"].value)


def _settable(config: object, path: str, flag: str) -> Any:
    """The type of the field at a path; raises ConfigError unless a flag can set it."""
    at, wanted = config, object
    before = f"{flag} cannot be set: "
    parts = PART.findall(path)
    if "".join(f"[{i}]" if i else f".{name}" for name, i in parts) != f".{path}":
        raise ConfigError(f"{before}write --config.FIELD, --config.PART.FIELD, or so.")
    for name, index in parts:
        if index and isinstance(at, tuple):
            raise ConfigError(f"{before}set the whole tuple, now {at!r:.100}.")
        if index:
            at = _item(at, int(index), before)
            wanted = next(iter(typing.get_args(wanted)), object)
        elif not is_node(at):
            raise ConfigError(f"{before}what {name} is asked of is {str(at)[:50]!r}.")
        elif name not in field_types(type(at)):
            cls = type(at)
            raise ConfigError(
                f"{before}{cls.__name__} has no field {name!r}. "
                f"{unknown_field(cls, name)}"
            )
        else:
            wanted = field_types(type(at))[name]
            _register(values.annotations(type(at))[name])
            at = getattr(at, name)
    is_part = is_node(at) and type(None) not in alternatives(wanted)
    if is_part or isinstance(at, list):
        raise ConfigError(
            f"{before}it is a part of the config, a {type(at).__name__}. Replace whole "
            "parts in a config file; flags set single values."
        )
    return wanted


def _register(annotation: Any) -> None:
    """Let flags set fields of a kind as they set those of its type."""
    for kind in alternatives(annotation):
        if typing.get_origin(kind) is typing.Annotated:
            parser = PARSERS[typing.get_args(kind)[0]]
            config_flags.register_flag_parser_for_type(kind, parser)


def _item(items: object, index: int, before: str) -> object:
    if not isinstance(items, list | tuple):
        raise ConfigError(f"{before}[{index}] is asked of {str(items)[:50]!r}.")
    if not -len(items) <= index < len(items):
        raise ConfigError(
            f"{before}[{index}] is out of range: there are {len(items)}, the first "
            "is [0]."
        )
    return items[index]
