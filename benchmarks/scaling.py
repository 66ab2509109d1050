"""How a training step's cost grows with batch, resolution, depth, and devices.

python -m benchmarks.scaling --cache CACHE            measures, then draws
python -m benchmarks.scaling --axis devices           on 1, 2 and 4 devices of a host
python -m benchmarks.scaling --plot | --markdown      from results/scaling.jsonl alone

PixNerd-XL/16 with flow matching, its layers scanned so that compiling stays short
(written out, a step is some per cent faster). Where the resolution grows, the batch
shrinks, so that a step sees equally many tokens; a batch above 128 keeps less for the
backward pass and computes more again. Drawing needs the extra "bench". The axis of
devices is one of its own (`benchmarks.devices`), with its results in devices.jsonl.
"""

import argparse
import collections
import os
import pathlib
from typing import Any

from benchmarks import devices, harness, markdown, speed, suite
from benchmarks.case import FLOW, TRAIN, Case, changes, current_words

DEVICES = "devices"  # the axis that is measured and shown apart
FIGURE = harness.ROOT / "docs" / "gallery" / "scaling.png"
CONFIG = "configs/pixnerd.py:xl16_256"
BATCH, SIZE = 32, 256  # where the three sweeps meet
BATCHES = (8, 16, 32, 64, 128, 256)
LARGEST = 128  # larger batches keep the blocks' inputs alone, to fit into 80 GB
SIZES = (256, 512, 1024)
DEPTHS = (12, 18, 24, 36)
COLUMNS = ["batch", "images/s", "ms", "MFU", "peak GB", "limit ms"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    suite.add_arguments(parser)
    devices.add_arguments(parser)
    add = parser.add_argument
    add("--config", default=CONFIG)
    add("--axis", nargs="+", default=list(AXES), choices=[*AXES, DEVICES])
    add("--scan", type=int, default=1, choices=(0, 1), help="0 writes layers out")
    add("--plot", action="store_true", help="draw what is measured, run nothing")
    add("--markdown", action="store_true", help="render, run nothing")
    add("--into", type=pathlib.Path, help="fill the place there")
    add("--figure", type=pathlib.Path, default=FIGURE)
    args = parser.parse_args()
    if DEVICES in args.axis and len(args.axis) > 1:
        parser.error(f"--axis {DEVICES} is measured alone, in a sitting of its own")
    if args.json is None:
        name = DEVICES if DEVICES in args.axis else "scaling"
        args.json = harness.RESULTS / f"{name}.jsonl"
    return args


def axis(name: str, config: str = CONFIG, scan: int = 1) -> dict[int, Case]:
    """The cases along "batch", "resolution" or "depth", by the value on the axis."""

    def case(batch: int = BATCH, size: int = SIZE, depth: int = 0) -> Case:
        own = FLOW | changes(scan=scan, remat="full" if batch > LARGEST else "")
        own |= changes(size=size if size != SIZE else "", depth=depth or "")
        words = [f"batch={batch}", f"size={size}", f"depth={depth or 'own'}"]
        return Case(
            what=TRAIN, config=config, batch=batch, changes=own, name=" ".join(words)
        )

    if name == "batch":
        return {batch: case(batch) for batch in BATCHES}
    if name == "resolution":
        fitting = {size: max(1, BATCH * SIZE**2 // size**2) for size in SIZES}
        return {size: case(batch, size) for size, batch in fitting.items()}
    return {depth: case(depth=depth) for depth in DEPTHS}


AXES = {"batch": "images a step", "resolution": "pixels a side", "depth": "blocks"}


def measured(args: argparse.Namespace) -> dict[str, dict[int, dict]]:
    """By axis and value the newest row of the results."""
    rows = speed.newest(harness.read(args.json))
    found: dict[str, dict[int, dict]] = collections.defaultdict(dict)
    for name in AXES:
        for value, case in axis(name, args.config, args.scan).items():
            row = rows.get(case.label)
            if row is not None and current_words(row["changes"]) == case.changes:
                found[name][value] = row
    return found


def render(found: dict[str, dict[int, dict]]) -> str:
    """A table for each axis, with what it was measured on."""
    parts, done = [], []
    for name, points in found.items():
        lines = [[value, *_cells(row)] for value, row in points.items()]
        parts.append(markdown.table([AXES[name], *COLUMNS], lines))
        done += [row for row in points.values() if "failed" not in row]
    return "\n\n".join([*parts, markdown.source(done)])


def _cells(row: dict) -> list[object]:
    if "failed" in row:
        return [row["batch"], row["failed"], *[""] * (len(COLUMNS) - 2)]
    share = f"{100 * row['mfu']:.1f} %"
    speeds = [row["images_s"], row["ms"], share]
    return [row["batch"], *speeds, row["peak_gb"], row["limit_ms"]]


def draw(found: dict[str, dict[int, dict]], path: pathlib.Path) -> None:
    """Images/s (above) and peak memory (below) along every axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        2, len(found), figsize=(4.2 * len(found), 6.4), squeeze=False, sharex="col"
    )
    share = reference(found)
    for (name, points), above, below in zip(found.items(), *panels, strict=True):
        draw_speed(above, points, share)
        draw_memory(below, points)
        for panel in (above, below):
            mark_failures(panel, points)
            panel.set_xscale("log", base=2)
            panel.set_xlim(min(points) / 1.15, max(points) * 1.15)
            panel.set_xticks(list(points), _ticks(name, points), minor=False)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        above.set_title(name if name == "batch" else f"{name} (batch)")
        below.set_xlabel(AXES[name])
    panels[0, 0].set_ylabel("images/s")
    panels[1, 0].set_ylabel("peak memory, GB")
    panels[0, 0].legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def reference(found: dict[str, dict[int, dict]]) -> float:
    """The MFU where the sweeps meet, or of any point in its place."""
    done = [r for points in found.values() for r in points.values() if "mfu" in r]
    nearest = sorted(done, key=lambda row: abs(row["batch"] - BATCH))
    return nearest[0]["mfu"] if nearest else 0.0


def draw_speed(panel: Any, points: dict[int, dict], share: float) -> None:
    """Measured points, the arithmetic limit, and `share` of that limit."""
    done = {v: row for v, row in points.items() if "failed" not in row}
    limit = {v: row["images_s"] / row["mfu"] for v, row in done.items()}
    panel.plot(*_line(limit), color="0.6", label="FLOPs at the matmul rate")
    scaled = {value: share * rate for value, rate in limit.items()}
    panel.plot(*_line(scaled), "--", color="0.6", label=f"{100 * share:.0f} % of that")
    speeds = {value: row["images_s"] for value, row in done.items()}
    panel.plot(*_line(speeds), "o-", label="measured")
    panel.set_yscale("log", base=2)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")


def draw_memory(panel: Any, points: dict[int, dict]) -> None:
    """Measured peaks; XLA's plan where the device keeps no statistics."""
    peaks = {
        value: row["program_gb"] if row["peak_gb"] is None else row["peak_gb"]
        for value, row in points.items()
        if "failed" not in row
    }
    panel.plot(*_line(peaks), "o-")
    panel.set_ylim(0, 1.1 * max(peaks.values(), default=1))


def mark_failures(panel: Any, points: dict[int, dict]) -> None:
    """Say at its place on the axis why a point is missing."""
    for value, row in points.items():
        if "failed" in row:
            place = {"transform": panel.get_xaxis_transform(), "ha": "center"}
            panel.text(value, 0.03, row["failed"], rotation=90, fontsize=7, **place)


def _ticks(name: str, points: dict[int, dict]) -> list[str]:
    if name == "batch":
        return [str(value) for value in points]
    return [f"{value} ({row['batch']})" for value, row in points.items()]


def _line(values: dict[int, float]) -> tuple[list, list]:
    return list(values), list(values.values())


def over_devices(args: argparse.Namespace) -> None:
    """Measure on more and more devices, or only render what was measured."""
    if not args.markdown:
        suite.run(devices.cases(args), args)
    text = devices.read(args)
    if args.into:
        markdown.fill(args.into, DEVICES, text)
    else:
        print(text)


def main() -> None:
    """Measure, then draw; or only draw or render what was measured."""
    args = arguments()
    if DEVICES in args.axis:
        over_devices(args)
        return
    if not (args.plot or args.markdown):
        sweeps = [axis(name, args.config, args.scan).values() for name in args.axis]
        cases = {case.key: case for sweep in sweeps for case in sweep}
        suite.run(list(cases.values()), args)
    found = measured(args)
    if args.markdown and args.into:
        figure = pathlib.Path(os.path.relpath(args.figure, args.into.parent))
        text = f"![Cost of a training step]({figure.as_posix()})\n\n{render(found)}"
        markdown.fill(args.into, "scaling", text)
    elif args.markdown:
        print(render(found))
    elif found:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
