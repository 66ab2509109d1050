"""Which config classes there are: those of this package, and those that others bring.

A Protocol says what its kind can do, such as `models.interface.DenoiserConfig`; classes
that name it as their base are of that kind. They are looked for in all modules of the
Protocol's own sub-package, and among the entry points of the group that is called like
that sub-package, whose values are classes, or modules that hold some:

    [project.entry-points."pixelflow_jax.models"]
    mine = "my_package.model"
"""

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
import types
from collections.abc import Iterator
from typing import Any, Protocol

from pixelflow_jax.errors import ConfigError


@functools.cache
def implementations(protocol: type) -> dict[str, type[Any]]:
    """The config classes of a kind by their names, found once.

    Raises ConfigError, naming the package, for an entry point that cannot be loaded or
    that brings no config class, and for two classes of one name.
    """
    package = ".".join(protocol.__module__.split(".")[:2])
    classes: dict[str, type] = {}
    for cls in (*_own(package, protocol), *_brought(package, protocol)):
        other = classes.setdefault(cls.__name__, cls)
        if other is not cls:
            raise ConfigError(
                f"Two classes are called {cls.__name__}, one of {other.__module__} and "
                f"one of {cls.__module__}: rename one, or uninstall its package."
            )
    return classes


def is_protocol(cls: type) -> bool:
    """Whether a class says what a kind of classes can do, and is none of them."""
    return cls is not Protocol and bool(getattr(cls, "_is_protocol", False))


def group_of(protocol: type) -> str:
    """The group of entry points that bring classes of a kind."""
    return ".".join(protocol.__module__.split(".")[:2])


def _own(package: str, protocol: type) -> Iterator[type]:
    root = importlib.import_module(package)
    for info in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not info.ispkg:
            yield from _classes_of(importlib.import_module(info.name), protocol)


def _brought(group: str, protocol: type) -> Iterator[type]:
    for entry in sorted(importlib.metadata.entry_points(group=group)):
        package = entry.dist.name if entry.dist else "an unknown package"
        where = f"The entry point {entry.name} = {entry.value!r} ({group}) of {package}"
        try:
            brought = entry.load()
        except Exception as error:  # whatever that package does when it is imported
            raise ConfigError(
                f"{where} cannot be loaded, {type(error).__name__}: {error}. Update "
                f"{package}, or uninstall it."
            ) from error
        is_module = isinstance(brought, types.ModuleType)
        classes = list(_classes_of(brought, object)) if is_module else [brought]
        if not classes or not all(_is_config(cls) and _kinds(cls) for cls in classes):
            raise ConfigError(
                f"{where} brings no {protocol.__name__}: it must name a dataclass "
                f"whose base is {protocol.__module__}.{protocol.__name__}, or a module "
                "of such."
            )
        yield from (cls for cls in classes if protocol in cls.__mro__)


def _classes_of(module: types.ModuleType, protocol: type) -> Iterator[type]:
    """The classes of a kind that a module, or a package below it, defines."""
    for _, cls in inspect.getmembers(module, _is_config):
        inside = f"{cls.__module__}.".startswith(f"{module.__name__}.")
        if inside and protocol in cls.__mro__:
            yield cls


def _is_config(thing: object) -> bool:
    return isinstance(thing, type) and dataclasses.is_dataclass(thing)


def _kinds(cls: type) -> list[type]:
    """The Protocols that a class names as its bases."""
    return [base for base in cls.__mro__ if is_protocol(base)]
