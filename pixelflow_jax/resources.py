"""The configs and assets that come with the package, in a clone and in a wheel."""

import importlib.abc
import importlib.machinery
import pathlib
import sys
from collections.abc import Iterable
from typing import Literal, get_args

PACKAGE = pathlib.Path(__file__).resolve().parent
Name = Literal["configs", "assets"]


def folder(name: Name) -> pathlib.Path:
    """That folder: within an installed package, beside the package in a clone."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def asset(name: str) -> pathlib.Path | None:
    """The file of a model that comes with the package, such as "emoji"; else None."""
    path = folder("assets") / f"{name}.safetensors"
    return path if path.stem == name and path.is_file() else None


def assets() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(path.stem for path in folder("assets").glob("*.safetensors"))


class _Beside(importlib.abc.MetaPathFinder):
    """Finds `pixelflow_jax.configs` beside the package, where it lies in a clone."""

    def find_spec(
        self, fullname: str, path: Iterable[str] | None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The folder as a package; asked where it is not within this one."""
        package, _, name = fullname.rpartition(".")
        for known in get_args(Name):
            if (package, name) == (PACKAGE.name, known) and folder(known).is_dir():
                spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
                spec.submodule_search_locations = [str(folder(known))]
                return spec
        return None


def install() -> None:
    """Let the folders be imported as parts of the package, wherever they lie."""
    if not any(isinstance(finder, _Beside) for finder in sys.meta_path):
        sys.meta_path.append(_Beside())
