"""The configs and assets that come with the package, in a clone and in a wheel."""

import pathlib
from typing import Literal

PACKAGE = pathlib.Path(__file__).resolve().parent


def folder(name: Literal["configs", "assets"]) -> pathlib.Path:
    """That folder: within an installed package, beside the package in a clone."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def asset(name: str) -> pathlib.Path | None:
    """The file of a model that comes with the package, such as "emoji"; else None."""
    path = folder("assets") / f"{name}.safetensors"
    return path if path.stem == name and path.is_file() else None
