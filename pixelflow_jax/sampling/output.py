"""Samples on disk: a PNG each, a grid, an .npz, and how they came out of the noise."""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from pixelflow_jax.data.images import grid, save_animation, save_png, to_uint8
from pixelflow_jax.sampling.batches import Generated

SHOWN = 400  # images a grid may hold; more cannot be looked at
SMALL = 96  # pixels below which images are enlarged in a grid
SLUG, LABEL = 40, 32  # characters of a prompt in a file's name, and beside a grid's row


def write_samples(
    folder: pathlib.Path,
    generated: Generated,
    names: Sequence[str],
    columns: int,
    *,
    labels: np.ndarray | None = None,
    first: int = 0,
    stages: bool = False,
    facts: dict | None = None,
) -> dict[str, pathlib.Path]:
    """Write everything about some samples into `folder`; returns the paths by kind.

    `names` says what each image is of, a class or a prompt. `images/000012_flags.png`
    for image number 12, `grid.png`, `samples.json` with the file, the number and the
    whole name of every image behind `facts`, `samples.npz` ("arr_0" uint8 [n, h, w, 3]
    and "labels", as the ADM evaluation suite reads it, or "prompts" without labels), if
    the steps were recorded, `trajectory.gif` with the clean image implied at each step,
    and with `stages` the strip `stages.png`: an image's state at the end of each stage,
    a row an image (PixelFlow, Figure 3).
    """
    images = to_uint8(generated.images)
    paths = {"images": folder / "images", "grid": folder / "grid.png"}
    files = _write_images(paths["images"], images, names, first)
    rows = _row_names(names[:SHOWN], columns)
    save_png(paths["grid"], _grid(images, columns, rows))
    paths["json"] = folder / "samples.json"
    kind = "prompt" if labels is None else "class"
    listed = [
        {"file": file, "number": number, kind: name}
        for number, (file, name) in enumerate(zip(files, names, strict=True), first)
    ]
    whole = {**(facts or {}), "images": listed}
    text = json.dumps(whole, indent=1, ensure_ascii=False)
    paths["json"].write_text(text, encoding="utf-8")
    paths["npz"] = folder / "samples.npz"
    about: dict[str, Any] = {"labels": labels}
    if labels is None:
        about = {"prompts": np.array(names)}
    np.savez(paths["npz"], images, **about)
    if stages:
        paths["stages"] = folder / "stages.png"
        save_png(paths["stages"], _strip(generated.stages))
    if generated.clean is not None:
        frames = [*to_uint8(generated.clean), images]
        paths["trajectory"] = folder / "trajectory.gif"
        frames = np.stack([_grid(frame, columns, rows) for frame in frames])
        save_animation(paths["trajectory"], frames, fps=10)
    return paths


def _write_images(
    folder: pathlib.Path, images: np.ndarray, names: Sequence[str], first: int
) -> list[str]:
    """A file an image; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (image, name) in enumerate(zip(images, names, strict=True), first):
        slug = re.sub(r"[^A-Za-z0-9]+", "-", name)[:SLUG].strip("-")
        files.append(f"{number:06d}{slug and '_'}{slug}.png")
        save_png(folder / files[-1], image)
    return files


def _strip(stages: tuple[np.ndarray, ...]) -> np.ndarray:
    """States [n, h_k, w_k, 3] of every stage as n rows of equally large pictures."""
    height = stages[-1].shape[1]
    shown = SHOWN // len(stages)
    columns = []
    for states in stages:
        pictures, times = to_uint8(states[:shown]), height // states.shape[1]
        columns.append(pictures.repeat(times, axis=1).repeat(times, axis=2))
    rows = np.stack(columns, 1).reshape(-1, *columns[0].shape[1:])
    return _grid(rows, len(stages), None)


def _row_names(names: Sequence[str], columns: int) -> list[str] | None:
    """What each row of a grid is of, shortened; None where a row holds several."""
    rows = [names[i : i + columns] for i in range(0, len(names), columns)]
    if any(len(set(row)) > 1 for row in rows):
        return None
    cut = lambda name: name if len(name) <= LABEL else f"{name[: LABEL - 3]}..."
    return [cut(row[0]) for row in rows]


def _grid(images: np.ndarray, columns: int, names: list[str] | None) -> np.ndarray:
    scale = max(1, SMALL // images.shape[1])
    return grid(images[:SHOWN], columns, row_labels=names, scale=scale)
