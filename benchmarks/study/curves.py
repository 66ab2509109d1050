"""Networks of several sizes: loss and distance against the compute of training."""

import math
from typing import Any

import numpy as np

from benchmarks.study.rows import ROWS, Claim
from benchmarks.study.tables import Lines, Spread, spread

PASSES = 3  # of a forward pass's operations, in a step: forward and backward


def compute(line: dict, share: float = 1.0) -> float:
    """Operations of a row's training, or of a share of it, of one seed."""
    images = share * line["steps"] * line["batch"]
    return PASSES * 1e6 * line["forward_mflops"] * images


def rows(claim: Claim, lines: Lines) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of a table: what was spent, and what it came to."""
    columns = ["", "params", "TFLOP a run", "ms a step", "training loss, last segment"]
    columns += ["denoising, trained on", "denoising, held out", "FD-lite0"]
    found: list[list[object]] = []
    for name in (name for name in claim.rows if name in lines):
        first = lines[name][0]
        last = Spread.of([line["losses"][-1] for line in lines[name]])
        digits = {"denoising": 4, "denoising_heldout": 4, "fd_lite0": 1}
        pairs = [(spread(lines[name], metric), d) for metric, d in digits.items()]
        found.append(
            [
                ROWS[name].label,
                f"{first['params'] / 1e6:.2f}M",
                f"{compute(first) / 1e12:.3g}",
                f"{first['train_ms_a_step']:.1f}",
                last.words(4),
                *(one.words(d) if one else "not measured" for one, d in pairs),
            ]
        )
    return columns, found


def draw(claim: Claim, lines: Lines) -> np.ndarray | None:
    """Three panels, uint8 [h, w, 3]; None where fewer than two sizes were run.

    The training loss along every run, the loss of denoising at its end, and FD-lite0:
    each against the operations of training. A point is a seed.
    """
    names = [name for name in claim.rows if name in lines]
    if len(names) < 2:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for number, name in enumerate(names):
        _one(panels, lines[name], ROWS[name].label, f"C{number}")
    heads = "training loss, mean of segments", "loss at fixed times, at the end"
    for panel, head in zip(panels, (*heads, "FD-lite0"), strict=True):
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(lambda value, _: "")
        panel.set_title(head, fontsize=10)
        panel.set_xlabel("operations of training")
        panel.grid(alpha=0.3)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_minor_formatter(lambda value, _: f"{value:.3g}")
    panels[0].legend(fontsize=8)
    panels[1].plot([], [], "o", color="0.4", label="drawings held out")
    panels[1].plot([], [], "x", color="0.4", label="drawings trained on")
    panels[1].legend(fontsize=8)
    figure.canvas.draw()
    canvas: Any = figure.canvas
    image = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    pyplot.close(figure)
    return image


def _one(panels, lines: list[dict], label: str, colour: str) -> None:
    """A size: of every seed a curve and its points."""
    for seed, line in enumerate(lines):
        count, whole, results = len(line["losses"]), compute(line), line["results"]
        places = [compute(line, (i + 0.5) / count) for i in range(count)]
        name = label if seed == 0 else None
        panels[0].plot(places, line["losses"], ".-", color=colour, label=name)
        for metric, mark in (("denoising_heldout", "o"), ("denoising", "x")):
            panels[1].plot(whole, results.get(metric, math.nan), mark, color=colour)
        panels[2].plot(whole, results["fd_lite0"], "o", color=colour)
