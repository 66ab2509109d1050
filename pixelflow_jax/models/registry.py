"""Which denoisers there are: those of this package, and those that others bring.

Another package brings its own by an entry point of the group `pixelflow_jax.models`,
whose value is a module or a class in one:

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

from pixelflow_jax import models
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.models.interface import DenoiserConfig

GROUP = "pixelflow_jax.models"


@functools.cache
def denoiser_classes() -> dict[str, type[DenoiserConfig]]:
    """The config class of every denoiser by its name, found once.

    Raises ConfigError, naming the package, for an entry point that cannot be loaded or
    that brings no denoiser, and for two classes of one name.
    """
    classes: dict[str, type[DenoiserConfig]] = {}
    for cls in (*_own_classes(), *_brought_classes()):
        other = classes.setdefault(cls.__name__, cls)
        if other is not cls:
            raise ConfigError(
                f"Two denoisers are called {cls.__name__}, one of {other.__module__} "
                f"and one of {cls.__module__}: rename one, or uninstall its package."
            )
    return classes


def _own_classes() -> Iterator[type[DenoiserConfig]]:
    for info in pkgutil.iter_modules(models.__path__, f"{models.__name__}."):
        yield from _classes_of(importlib.import_module(info.name))


def _brought_classes() -> Iterator[type[DenoiserConfig]]:
    for entry in sorted(importlib.metadata.entry_points(group=GROUP)):
        package = entry.dist.name if entry.dist else "an unknown package"
        where = f"The entry point {entry.name} = {entry.value!r} ({GROUP}) of {package}"
        try:
            brought = entry.load()
        except Exception as error:  # whatever that package does when it is imported
            raise ConfigError(
                f"{where} cannot be loaded, {type(error).__name__}: {error}. Update "
                f"{package}, or uninstall it."
            ) from error
        is_module = isinstance(brought, types.ModuleType)
        classes = list(_classes_of(brought)) if is_module else [brought]
        if not classes or not all(map(_is_denoiser, classes)):
            raise ConfigError(
                f"{where} brings no denoiser: it must name a dataclass whose base is "
                "pixelflow_jax.models.interface.DenoiserConfig, or a module of such."
            )
        yield from classes


def _classes_of(module: types.ModuleType) -> Iterator[type[DenoiserConfig]]:
    """The denoisers that a module, or a package below it, defines."""
    for _, cls in inspect.getmembers(module, _is_denoiser):
        if f"{cls.__module__}.".startswith(f"{module.__name__}."):
            yield cls


def _is_denoiser(thing: object) -> bool:
    if not isinstance(thing, type) or not dataclasses.is_dataclass(thing):
        return False
    return DenoiserConfig in thing.__mro__
