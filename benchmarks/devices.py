"""How a training step grows with the devices of one host: `scaling --axis devices`.

Each config trains with flow matching alone on 1, 2 and 4 devices, with the parameters
on every one ("data") and split over all ("fsdp"), at the same batch a device; every
program has the devices that its mesh names, and no others. The efficiency is the images
a second of queued steps, of as many times those of one device in the same sitting.
"""

import argparse
import statistics

from benchmarks import harness, markdown
from benchmarks.case import FLOW, TRAIN, Case, changes

# A config and the batch of a device.
POINTS = (
    "configs/pixnerd.py:xl16_256=32",
    "configs/pixnerd.py:xl16_256=128",
    "configs/pixelflow.py:xl4_256=16",
)
COUNTS = (1, 2, 4)
MESHES = ("data", "fsdp")
COLUMNS = ["a step on", "batch a device", "mesh", "images/s", "ms", "efficiency"]
COLUMNS += ["peak GB"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the axis of devices takes besides."""
    add = parser.add_argument
    add("--points", nargs="+", default=list(POINTS), help="CONFIG=BATCH of a device")
    add("--devices", type=int, nargs="+", default=list(COUNTS), help="of the host")
    add("--change", nargs="*", default=[], help="more changes of configs: FIELD=VALUE")


def cases(args: argparse.Namespace) -> list[Case]:
    """A case for each config, batch, mesh and number of devices; one for one device."""
    words = dict(word.split("=", 1) for word in args.change)
    own = FLOW | changes(**words)
    found = []
    for point in args.points:
        config, _, batch = point.rpartition("=")
        base = Case(
            what=TRAIN,
            config=config,
            batch=int(batch),
            changes=own,
            name=f"{config.split('/')[-1]} {batch}",
        )
        for count in args.devices:
            for mesh in MESHES if count > 1 else MESHES[:1]:
                found.append(base.on_mesh(f"{mesh}={count}"))
    return found


def render(rows: list[dict]) -> str:
    """The newest rows as a table, with each one's efficiency."""
    lines = []
    for row in rows:
        mesh = {k.removeprefix("mesh."): v for k, v in row["changes"].items()}
        count, axis = max((mesh.get(axis, 1), axis) for axis in MESHES)
        name = row["config"].split("/")[-1]
        place = f"{axis}={count}" if count > 1 else "one device"
        head = [name, row["batch"] // count, place]
        if "failed" in row:
            lines.append([*head, row["failed"], "", "", ""])
            continue
        share = efficiency(row, rows)
        told = "" if share is None else f"{100 * share:.1f} %"
        peaks = row.get("peaks_gb") or [row["peak_gb"] or row["program_gb"]]
        lines.append(
            [*head, speed(row), row["queued_ms"], told, statistics.mean(peaks)]
        )
    done = [row for row in rows if "failed" not in row]
    return "\n\n".join([markdown.table(COLUMNS, lines), markdown.source(done)])


def speed(row: dict) -> float:
    """Images a second of queued steps."""
    return row["batch"] / row["queued_ms"] * 1e3


def efficiency(row: dict, rows: list[dict]) -> float | None:
    """Speed as a part of so many times that of one device; None: it is not known."""
    count = row["mesh_size"]
    for other in rows:
        if "failed" not in other and other["mesh_size"] == 1:
            if (other["config"], other["batch"] * count) == (
                row["config"],
                row["batch"],
            ):
                return speed(row) / speed(other) / count
    return None


def newest(rows: list[dict], wanted: list[Case]) -> list[dict]:
    """The last row of each wanted case, in their order."""
    by_label = {row["case"]: row for row in rows if "case" in row}
    return [by_label[case.label] for case in wanted if case.label in by_label]


def read(args: argparse.Namespace) -> str:
    """The table of what stands in the results file."""
    return render(newest(harness.read(args.json), cases(args)))
