"""Lines of JSON that outlive whoever writes them."""

import base64
import json
import os
import pathlib

import numpy as np

from pixelflow_jax.data.images import encode_image

RESULTS, POINTS, PICTURES = "study.jsonl", "points.jsonl", "pictures.jsonl"


def append(path: pathlib.Path, line: dict) -> None:
    """Add a line in one write, and wait until it is on the disk.

    Lines of several processes do not mix. One that was torn by a crash stays alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
        text = ("\n" if torn else "") + json.dumps(line) + "\n"
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: pathlib.Path) -> list[dict]:
    """All whole lines of a file, none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(_parsed, lines) if line is not None]


def picture(name: str, image: np.ndarray) -> dict:
    """An image uint8 [h, w, 3] as a line."""
    encoded = encode_image(image, "png", 100)
    return {"name": name, "png": base64.b64encode(encoded).decode()}


def write_picture(line: dict, folder: pathlib.Path) -> None:
    """The file of a line that `picture` made."""
    (folder / line["name"]).write_bytes(base64.b64decode(line["png"]))


def _parsed(text: str) -> dict | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
