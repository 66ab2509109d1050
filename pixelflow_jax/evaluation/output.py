"""Samples on disk: a PNG each, a grid, an .npz, and how they came out of the noise."""

import pathlib
import re

import numpy as np

from pixelflow_jax.data.images import grid, save_animation, save_png, to_uint8
from pixelflow_jax.evaluation.generate import Generated

SHOWN = 400  # images a grid may hold; more cannot be looked at
SMALL = 96  # pixels below which images are enlarged in a grid


def write_samples(
    folder: pathlib.Path,
    generated: Generated,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    columns: int,
    first: int = 0,
    stages: bool = False,
) -> dict[str, pathlib.Path]:
    """Write everything about some samples into `folder`; returns the paths by kind.

    `images/000012_flags.png` for image number 12, `grid.png`, `samples.npz` ("arr_0"
    uint8 [n, h, w, 3] and "labels", as the ADM evaluation suite reads it), if the steps
    were recorded, `trajectory.gif` with the clean image implied at each step, and with
    `stages` the strip `stages.png`: an image's state at the end of each stage, a row an
    image (PixelFlow, Figure 3).
    """
    images = to_uint8(generated.images)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True), first):
        name = re.sub(r"[^A-Za-z0-9]+", "-", class_names[label])
        save_png(folder / "images" / f"{number:06d}_{name}.png", image)
    paths = {"images": folder / "images", "grid": folder / "grid.png"}
    names = _row_names(labels[:SHOWN], class_names, columns)
    save_png(paths["grid"], _grid(images, columns, names))
    paths["npz"] = folder / "samples.npz"
    np.savez(paths["npz"], images, labels=labels)
    if stages:
        paths["stages"] = folder / "stages.png"
        save_png(paths["stages"], _strip(generated.stages))
    if generated.clean is not None:
        frames = [*to_uint8(generated.clean), images]
        paths["trajectory"] = folder / "trajectory.gif"
        frames = np.stack([_grid(frame, columns, names) for frame in frames])
        save_animation(paths["trajectory"], frames, fps=10)
    return paths


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


def _row_names(
    labels: np.ndarray, class_names: tuple[str, ...], columns: int
) -> list[str] | None:
    """The class of each row of a grid; None where a row holds several."""
    rows = [labels[i : i + columns] for i in range(0, len(labels), columns)]
    if any(len(set(row)) > 1 for row in rows):
        return None
    return [class_names[row[0]] for row in rows]


def _grid(images: np.ndarray, columns: int, names: list[str] | None) -> np.ndarray:
    scale = max(1, SMALL // images.shape[1])
    return grid(images[:SHOWN], columns, row_labels=names, scale=scale)
