"""A sweep in a table and in pictures."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pixelflow_jax.evaluation.sweep import (
    Ledger,
    Point,
    Value,
    best,
    higher_is_better,
    main_metrics,
    points,
    words,
)

CELL, PAD = (74, 30), 8
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
# From the worst to the best: five colours of matplotlib's viridis.
COLOURS = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
)


def table(ledger: Ledger, axes: Mapping[str, Sequence[Value]]) -> str:
    """The measured points in Markdown, the best value of each metric in bold."""
    wanted = [point for point in points(axes) if ledger.get(point) is not None]
    metrics = main_metrics(ledger.get(point) or {} for point in wanted)
    winners = {metric: best(ledger, wanted, metric) for metric in metrics}
    lines = [
        _line([*axes, *metrics]),
        _line(["---"] * len(axes) + ["--:"] * len(metrics)),
    ]
    for point in wanted:
        row = ledger.get(point) or {}
        values = [
            f"**{row[m]:.4g}**" if winners[m] == point else f"{row[m]:.4g}"
            for m in metrics
        ]
        lines.append(_line([_text(point[axis]) for axis in axes] + values))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def heat_map(
    ledger: Ledger, axes: Mapping[str, Sequence[Value]], metric: str
) -> np.ndarray:
    """A metric over the two axes with the most values, uint8 [h, w, 3].

    Every cell shows the best over the other axes; the best of all has a frame.
    """
    longest = sorted(axes, key=lambda axis: -len(axes[axis]))[:2]
    across, *down = sorted(longest, key=lambda axis: len(axes[axis]), reverse=True)
    rows: Sequence[Value] = axes[down[0]] if down else ("",)
    sign = -1 if higher_is_better(metric) else 1
    grid = np.full((len(rows), len(axes[across])), np.nan)
    for values in points(axes):
        result = (ledger.get(values) or {}).get(metric)
        if result is None:
            continue
        for i, j in _cells(values, axes, (down[0] if down else None, across)):
            kept = grid[i, j]
            better = np.isnan(kept) or sign * result < sign * kept
            grid[i, j] = result if better else kept
    others = [axis for axis in axes if axis not in longest]
    title = f"{metric}, {'higher' if sign < 0 else 'lower'} is better"
    if others:
        title += f"; best over {', '.join(others)}"
    return _picture(
        grid,
        [_text(value) for value in rows],
        [_text(value) for value in axes[across]],
        (title, f"{across} across" + (f", {down[0]} down" if down else "")),
        sign,
    )


def _cells(
    point: Point, axes: Mapping[str, Sequence[Value]], shown: tuple[str | None, str]
) -> list[tuple[int, int]]:
    """The cells of a point: all of an interval's where there is no guidance."""
    places = []
    for axis in shown:
        if axis is None:
            places.append([0])
        elif axis == "interval" and point.get("scale") == 1:
            places.append(list(range(len(axes[axis]))))
        else:
            places.append([list(axes[axis]).index(point[axis])])
    return [(i, j) for i in places[0] for j in places[1]]


def _picture(
    grid: np.ndarray,
    rows: list[str],
    columns: list[str],
    titles: tuple[str, str],
    sign: int,
) -> np.ndarray:
    font, small = ImageFont.load_default(size=13), ImageFont.load_default(size=11)
    wide = max(CELL[0], *(round(small.getlength(name)) + 8 for name in columns))
    left = PAD + max(round(font.getlength(name)) for name in rows) + PAD
    top = 3 * 20 + PAD
    width = left + len(columns) * wide + PAD
    width = max(width, round(max(map(font.getlength, titles))) + 2 * PAD)
    canvas = Image.new("RGB", (width, top + len(rows) * CELL[1] + PAD), WHITE)
    draw = ImageDraw.Draw(canvas)
    for line, title in enumerate(titles):
        draw.text((PAD, PAD + 20 * line), title, fill=BLACK, font=font)
    for j, name in enumerate(columns):
        place = (left + (j + 0.5) * wide, top - 4)
        draw.text(place, name, fill=BLACK, font=small, anchor="mb")
    shares = _shares(sign * grid)
    for i, name in enumerate(rows):
        middle = top + (i + 0.5) * CELL[1]
        draw.text((left - PAD, middle), name, fill=BLACK, font=font, anchor="rm")
        for j, value in enumerate(grid[i]):
            corner = (left + j * wide, top + i * CELL[1])
            _cell(draw, corner, (wide, CELL[1]), value, shares[i, j])
    return np.asarray(canvas)


def _shares(costs: np.ndarray) -> np.ndarray:
    """0 for the worst and 1 for the best, by rank, so that outliers hide nothing."""
    flat = costs[~np.isnan(costs)]
    order = np.unique(flat)[::-1]
    shares = np.full(costs.shape, np.nan)
    for place, cost in enumerate(order):
        shares[costs == cost] = place / max(1, len(order) - 1)
    return shares


def _cell(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    size: tuple[int, int],
    value: float,
    share: float,
) -> None:
    x, y = corner
    box = (x, y, x + size[0] - 2, y + size[1] - 2)
    if np.isnan(value):
        draw.rectangle(box, outline=(200, 200, 200))
        return
    place = share * (len(COLOURS) - 1)
    low = min(int(place), len(COLOURS) - 2)
    mixed = COLOURS[low] + (place - low) * (COLOURS[low + 1] - COLOURS[low])
    red, green, blue = (round(float(part)) for part in mixed)
    frame = BLACK if share == 1 else None
    draw.rectangle(box, fill=(red, green, blue), outline=frame, width=2)
    ink = BLACK if 0.3 * red + 0.6 * green + 0.1 * blue > 120 else WHITE
    middle = (x + size[0] / 2 - 1, y + size[1] / 2 - 1)
    font = ImageFont.load_default(size=12)
    draw.text(middle, f"{value:.4g}", fill=ink, font=font, anchor="mm")


def summary(ledger: Ledger, axes: Mapping[str, Sequence[Value]]) -> list[str]:
    """The best point of each metric, in lines."""
    wanted = [point for point in points(axes) if ledger.get(point) is not None]
    lines = []
    for metric in main_metrics(ledger.get(point) or {} for point in wanted):
        point = best(ledger, wanted, metric)
        value = (ledger.get(point) or {})[metric]
        lines.append(f"best {metric}: {value:.4g} at {words(point)}")
    return lines
