"""What the figures of the pages on methods share: drawings, and images side by side.

Each script beside this one draws one figure, from the root of the repository:

    python docs/figures/paths.py
"""

import pathlib

import numpy as np
from PIL import Image

from pixelflow_jax.data.emoji.source import Emoji, read_emoji_entries, render_emoji

FOLDER = pathlib.Path(__file__).parent
GAP = 4  # white pixels between images


def drawings(size: int, **which) -> np.ndarray:
    """The training drawings of some emoji, float32 [n, size, size, 3] in [-1, 1]."""
    source = Emoji(**which).open("train", size)
    return source.images.astype(np.float32) / 127.5 - 1


def drawing(name: str, size: int) -> np.ndarray:
    """The drawing of that official name, float32 [size, size, 3] in [-1, 1]."""
    entries = [entry for entry in read_emoji_entries() if entry.names[0] == name]
    return render_emoji(entries[:1], size)[1][0].astype(np.float32) / 127.5 - 1


def enlarge(image: np.ndarray, side: int) -> np.ndarray:
    """An image with every pixel repeated, up to `side` pixels."""
    times = side // image.shape[0]
    return image.repeat(times, 0).repeat(times, 1)


def save(rows: list[list[np.ndarray]], name: str, colours: int = 0) -> None:
    """Write rows of images [s, s, 3] in [-1, 1] as one PNG, beside the scripts."""
    side = max(image.shape[0] for row in rows for image in row)
    step = side + GAP
    sheet = Image.new(
        "RGB", (step * len(rows[0]) - GAP, step * len(rows) - GAP), "white"
    )
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            pixels = np.clip((image + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
            sheet.paste(Image.fromarray(enlarge(pixels, side)), (x * step, y * step))
    if colours:
        sheet = sheet.quantize(colours)
    sheet.save(FOLDER / name, optimize=True)


def plot(name: str, width: float = 7.2, height: float = 2.6):
    """A matplotlib figure, and a function that writes it as an SVG here."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": name, "font.size": 8})
    figure = pyplot.figure(figsize=(width, height), layout="constrained")
    write = lambda: figure.savefig(FOLDER / name, metadata={"Date": None})
    return figure, write
