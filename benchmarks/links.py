"""How efficient many devices would be, by a model with its inputs: no more than that.

python -m benchmarks.links                        prints the tables of docs/scaling.md
python -m benchmarks.links --into docs/scaling.md

A step takes what one device takes alone, and the time of what is exchanged, divided by
a rate. `benchmarks.partition` says what is sent (results/partition.jsonl). The rate
between GPUs of a host is the one that comes nearest to what was measured on 2 and 4 of
them; it holds what overlaps with arithmetic. Between hosts, and between TPUs, nothing
was measured: published rates are taken, once with nothing hidden behind arithmetic and
once with all that can be.
"""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np

from benchmarks import harness, markdown
from benchmarks.partition import HOST
from pixelflow_jax.training.throughput import PEAKS

CONFIG = "pixnerd_t2i"  # whose rows the tables show
RESULTS = harness.RESULTS / "partition.jsonl"
HALF, FLOAT = 2, 4  # bytes of a number
NIC = {"400 Gbit/s a GPU": 50e9, "100 Gbit/s a GPU": 12.5e9}
SHARE = 0.4  # of a TPU's peak that a step reaches alone, as on GPUs: an assumption
LINK = 45e9  # bytes a second of a v5e's link, one way
# Ways out of a chip that a ring over the whole slice uses: two axes there and back
# where they close to rings (16 chips), one way of each where they do not.
WAYS = {"v5e:2x4": 2, "v5e:8x8": 2, "v5e:16x16": 4}


class Measured(NamedTuple):
    """An efficiency on H200s of one host, of queued steps against one in that sitting.

    `alone` is what one device takes, ms.
    """

    what: str
    parameters: float
    alone: float
    mesh: str
    devices: int
    efficiency: float


XL, FLOW, XXL = "PixNerd-XL", "PixelFlow-XL", "PixNerdText-XXL"
MEASURED = tuple(
    Measured(f"{name}, {batch}", size * 1e6, alone, mesh, devices, share / 100)
    for name, batch, size, alone, shares in (
        (XL, 32, 700.0, 74.4, (90.3, 89.4, 91.8, 93.2)),
        (XL, 128, 700.0, 253.0, (96.6, 95.9, 98.2, 97.4)),
        (FLOW, 16, 677.0, 248.0, (95.2, 94.8, 96.7, 96.4)),
        (XXL, 32, 1171.5, 164.8, (None, 86.9, None, 88.0)),
    )
    for (mesh, devices), share in zip(
        (("data", 2), ("data", 4), ("fsdp", 2), ("fsdp", 4)), shares, strict=True
    )
    if share is not None
)


def sent(mesh: str, parameters: float, devices: int, gathers: float) -> float:
    """Bytes that a GPU sends in a step, in rings over `devices` of them.

    Gradients are summed in bfloat16, and parameters are gathered in it so many times.
    """
    ring = parameters * HALF * (devices - 1) / devices
    return 2 * ring if mesh == "data" else (1 + gathers) * ring


def gathers(row: dict) -> float:
    """How often a CPU's program gathers each parameter."""
    ring = row["parameters"] * FLOAT * (row["devices"] - 1) / row["devices"]
    return row["sent_gb"].get("all-gather", 0.0) * 1e9 / ring


def fitted(mesh: str, times: float) -> float:
    """The rate, bytes a second, whose efficiencies are nearest to the measured ones."""
    rows = [row for row in MEASURED if row.mesh == mesh]
    rates = np.geomspace(30e9, 3000e9, 2000)
    errors = [
        sum((predicted(row, rate, times) - row.efficiency) ** 2 for row in rows)
        for rate in rates
    ]
    return float(rates[int(np.argmin(errors))])


def predicted(row: Measured, rate: float, times: float) -> float:
    """The efficiency of a measured row by the model."""
    exchanged = sent(row.mesh, row.parameters, row.devices, times) / rate * 1e3
    return row.alone / (row.alone + exchanged)


def on_gpus(row: dict, nic: float, times: float) -> float:
    """The efficiency of a program on GPUs of several hosts; `nic` bytes a second each.

    A ring leaves a host once, so that a GPU's network card carries the part of one of
    its GPUs. In a hybrid mesh gradients are summed over hosts once more, each GPU its
    own part, when all within the host is done.
    """
    count, mesh, size = row["devices"], row["mesh"], float(row["parameters"])
    inner = "data" if mesh == "data" else "fsdp"
    hosts, rate = max(1, count // HOST), fitted(inner, times)
    if mesh == "hybrid":
        near = sent("fsdp", size, HOST, times) / rate
        seconds = near + sent("data", size / HOST, hosts, 0) / nic
    else:
        whole = sent(inner, size, count, times)
        seconds = max(whole / rate, whole / HOST / nic if hosts > 1 else 0.0)
    alone = next(m.alone for m in MEASURED if m.what == f"{XXL}, {row['batch']}") / 1e3
    return alone / (alone + seconds)


def on_tpus(row: dict) -> tuple[float, float]:
    """The efficiency of a program on a slice: with nothing hidden, and with all."""
    alone = row["tflop"] * 1e12 / (PEAKS["TPU v5e"] * SHARE)
    seconds = exchanged_gb(row) * 1e9 / (WAYS[row["where"]] * LINK)
    return alone / (alone + seconds), alone / max(alone, seconds)


def exchanged_gb(row: dict) -> float:
    """GB that a device sends in a step."""
    return row["near_gb"] + row["far_gb"]


def memory_table(rows: list[dict]) -> str:
    """What a device holds."""
    columns = ["compiled for", "mesh", "images a device", "parameters GB"]
    columns += ["optimizer GB", "averages GB", "activations and other temporaries GB"]
    names = ("parameters_gb", "optimizer_gb", "ema_gb", "temporary_gb")
    lines = [
        [row["where"], row["mesh"], row["batch"], *(f"{row[n]:.2f}" for n in names)]
        for row in rows
    ]
    return markdown.table(columns, lines)


def exchange_table(rows: list[dict]) -> str:
    """What a device sends."""
    columns = ["compiled for", "mesh", "exchanges a step", "GB sent", "by kind"]
    lines = []
    for row in rows:
        kinds = sorted(row["sent_gb"].items(), key=lambda pair: -pair[1])
        told = ", ".join(f"{kind} {gb:.2f}" for kind, gb in kinds if gb >= 0.005)
        count = row["near_count"] + row["far_count"]
        lines.append(
            [row["where"], row["mesh"], count, f"{exchanged_gb(row):.2f}", told]
        )
    return markdown.table(columns, lines)


def efficiency_table(rows: list[dict]) -> str:
    """What the model makes of it."""
    columns = ["devices", "mesh", "images a device", "links", "efficiency"]
    virtual = [row for row in rows if "virtual" in row["where"]]
    times = next(gathers(row) for row in virtual if row["mesh"] == "fsdp")
    lines = []
    for row in rows:
        name = f"{row['devices']} H200" if row in virtual else row["where"]
        head = [name, row["mesh"], row["batch"]]
        if row not in virtual:
            low, high = (f"{100 * share:.0f}" for share in on_tpus(row))
            ways = f"{WAYS[row['where']]} x 45 GB/s"
            lines.append([*head, ways, f"{low} to {high} %"])
            continue
        for speed, nic in NIC.items():
            within = row["devices"] <= HOST
            share = f"{100 * on_gpus(row, nic, times):.0f} %"
            lines.append([*head, "NVLink" if within else speed, share])
            if within:
                break
    return markdown.table(columns, lines)


def measured_table(times: float) -> str:
    """What was measured, with the model's figure beside."""
    columns = ["training step, images a GPU", "mesh", "measured", "model"]
    lines = []
    for row in MEASURED:
        share = predicted(row, fitted(row.mesh, times), times)
        mesh = f"{row.mesh}={row.devices}"
        measured = f"{100 * row.efficiency:.1f} %"
        lines.append([row.what, mesh, measured, f"{100 * share:.1f} %"])
    return markdown.table(columns, lines)


def main() -> None:
    """Print the tables, or fill their places in a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--into", type=pathlib.Path, help="a page with their places")
    args = parser.parse_args()
    rows = [row for row in harness.read(args.json) if row["config"].startswith(CONFIG)]
    split = next(row for row in rows if row["mesh"] == "fsdp")
    tables = {
        "measured": measured_table(gathers(split)),
        "memory": memory_table(rows),
        "exchanges": exchange_table(rows),
        "efficiency": efficiency_table(rows),
    }
    for name, text in tables.items():
        if args.into:
            markdown.fill(args.into, name, text)
        else:
            print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
