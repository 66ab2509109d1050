"""A claim as a picture: every seed a dot, every row's mean a line."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.study.rows import ROWS, Claim
from benchmarks.study.tables import Lines, name_of, spread

LEFT, WIDE, HIGH, TOP = 390, 420, 26, 44
INK, DOT, FAINT = (30, 30, 30), (59, 82, 139), (215, 215, 215)


def dots(claim: Claim, lines: Lines) -> np.ndarray | None:
    """What decides of every seed, uint8 [h, w, 3]; None where nothing was run."""
    metric = claim.metric
    names = [n for n in claim.rows if spread(lines.get(n, []), metric)]
    if not names:
        return None
    values = {n: [line["results"][metric] for line in lines[n]] for n in names}
    every = [value for row in values.values() for value in row]
    low, high = min(every), max(every)
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room
    place = lambda value: LEFT + WIDE * (value - low) / (high - low)
    font = ImageFont.load_default(size=13)
    canvas = Image.new("RGB", (LEFT + WIDE + 20, TOP + HIGH * len(names) + 12), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 6), claim.title, fill=INK, font=font)
    draw.text((LEFT, 24), f"{name_of(metric)} {low:.4g}", fill=INK, font=font)
    draw.text((LEFT + WIDE, 24), f"{high:.4g}", fill=INK, font=font, anchor="ra")
    for number, name in enumerate(names):
        middle = TOP + HIGH * (number + 0.5)
        draw.text((8, middle), ROWS[name].label, fill=INK, font=font, anchor="lm")
        draw.line((LEFT, middle, LEFT + WIDE, middle), fill=FAINT)
        x = place(float(np.mean(values[name])))
        draw.line((x, middle - 9, x, middle + 9), fill=INK, width=2)
        for value in values[name]:
            x = place(value)
            draw.ellipse((x - 4, middle - 4, x + 4, middle + 4), outline=DOT, width=2)
    return np.asarray(canvas)
