"""What each of many devices would hold and exchange: compiled, never run.

python -m benchmarks.partition --config configs/pixnerd_t2i.py:pretrain_256 \\
    --devices 8 64 256 --mesh fsdp hybrid --batch 32
python -m benchmarks.partition --topology v5e:2x4 v5e:8x8 --batch 4

A training step with flow matching alone, its layers scanned, is partitioned by XLA: for
as many virtual devices of a CPU, which stand for GPUs, or for TPUs that are described
by libtpu. `state` is exact; `temporary` is XLA's plan, which on CPUs keeps bfloat16
numbers as float32 ones in many places: an upper bound for GPUs. What is exchanged is
read from the program: the bytes that a device sends in a step, by kind, each loop's
body as often as it runs. "hybrid" splits the state within a host, and copies it over
hosts. `benchmarks.links` makes times of them.
"""

import argparse
import math
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

# Before jax starts: as many devices as are asked for.
if "--topology" not in sys.argv and "--devices" in sys.argv:
    numbers = [int(word) for word in sys.argv if word.isdigit()]
    wanted = f"--xla_force_host_platform_device_count={max(numbers)}"
    # Machine code for it is made in haste, as nothing runs.
    wanted += " --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {wanted}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"

from benchmarks import tpu  # noqa: E402  first: it sets what libtpu reads

import jax  # isort: skip  # noqa: E402
import numpy as np  # isort: skip  # noqa: E402

from benchmarks import harness  # isort: skip  # noqa: E402
from pixelflow_jax import build  # isort: skip  # noqa: E402
from pixelflow_jax.experiment import Experiment  # isort: skip  # noqa: E402
from pixelflow_jax.losses.flow_matching import FlowMatching  # isort: skip  # noqa: E402
from pixelflow_jax.mesh import MeshShape  # isort: skip  # noqa: E402
from pixelflow_jax.training.step import abstract_state  # isort: skip  # noqa: E402
from pixelflow_jax.training.throughput import TRAINING_PASSES  # isort: skip  # noqa: E402

CONFIG = "configs/pixnerd_t2i.py:pretrain_256"
HOST = 8  # devices of a host, between which exchange is fast
MESHES = ("data", "fsdp", "hybrid")
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
KINDS += ("collective-permute",)
HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+)(?: \(.*)?\{$")
EXCHANGE = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
CALLS = re.compile(r"(body|condition|calls|to_apply|branch_computations)=\{?([^},]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
IOTA = re.compile(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](T\([\d,]+\))?")
# Groups along named axes, of devices in their order or in another one.
NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](T\([\d,]+\))?\))? \{([^}]*)\}"
)
TURNS = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")


class Exchange(NamedTuple):
    """One exchange of a step: `sent` bytes by each device, `times` a step.

    `group` devices take part in each; `far` ones are of several hosts.
    """

    kind: str
    sent: float
    times: int
    group: int
    far: bool


def exchanges(text: str, devices: int) -> Iterator[Exchange]:
    """The exchanges of a compiled program, from its text."""
    bodies, entry = _computations(text)
    for name, times in _times(bodies, entry).items():
        for line in bodies[name]:
            match = EXCHANGE.search(line)
            if match is None:
                continue
            shape, kind, start = match.groups()
            size, (group, far) = _bytes(shape), _group(line, devices)
            if "all-reduce-scatter" in name:  # of TPUs: each device keeps its part
                kind, size = "reduce-scatter", size // group
            if group > 1:
                sent = _sent(kind, size, group, bool(start))
                yield Exchange(kind, sent, times, group, far)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, by its name, and the name of the first."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            current = header[2]
            bodies[current] = []
            entry = current if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            bodies[current].append(line)
    return bodies, entry


def _times(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs in a step; a loop's as often as it turns."""
    times: dict[str, int] = dict.fromkeys(bodies, 0)

    def visit(name: str, count: int) -> None:
        times[name] += count
        for line in bodies[name]:
            called_by = CALLS.findall(line)
            turns = _turns(line, bodies, dict(called_by).get("condition", ""))
            for how, called in called_by:
                inner = count * turns if how == "body" else count
                for one in called.split(","):
                    if (callee := one.strip().lstrip("%")) in bodies:
                        visit(callee, inner)

    visit(entry, 1)
    return {name: count for name, count in times.items() if count}


def _turns(line: str, bodies: dict[str, list[str]], condition: str) -> int:
    """How often a loop turns: as it says, or as its condition compares with."""
    if trips := TRIPS.search(line):
        return int(trips[1])
    lines = "\n".join(bodies.get(condition.strip().lstrip("%"), []))
    return max(map(int, TURNS.findall(lines)), default=1)


def _bytes(shape: str) -> int:
    """The bytes of an array or a tuple of arrays, as XLA writes its type."""
    return sum(
        SIZES.get(dtype, 4) * math.prod(int(n) for n in sizes.split(",") if n)
        for dtype, sizes in ARRAY.findall(shape)
    )


def _group(line: str, devices: int) -> tuple[int, bool]:
    """How many devices exchange, and whether they are of several hosts."""
    if iota := IOTA.search(line):
        groups, size, dims, transposed = iota.groups()
        ids = _ordered(dims, transposed)
        first = ids.reshape(int(groups), int(size))[0]
    elif named := NAMED.search(line):
        mesh, dims, transposed, chosen = named.groups()
        axes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
        ids = _ordered(dims or str(devices), transposed)
        ids = ids.reshape([int(n) for n in axes.values()])
        along = re.findall(r"'(\w+)'", chosen)
        first = ids[tuple(slice(None) if a in along else 0 for a in axes)].ravel()
    elif listed := LISTED.search(line):
        first = np.array([int(n) for n in listed[1].split(",")])
    else:
        first = np.arange(devices)  # no groups: all together
    return len(first), len(set(first // HOST)) > 1


def _ordered(dims: str, transposed: str | None) -> np.ndarray:
    """The numbers of devices as XLA writes their order: [4,2]T(1,0)."""
    shape = [int(n) for n in dims.split(",")]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(n) for n in re.findall(r"\d+", transposed or "")] or None)


def _sent(kind: str, size: int, group: int, started: bool) -> float:
    """Bytes that a device sends, in a ring, for a result of `size` bytes."""
    if kind == "all-gather":
        # What starts one holds its input as well.
        whole = size * group / (group + 1) if started else size
        return whole * (group - 1) / group
    if kind == "reduce-scatter":
        return size * (group - 1)
    if kind == "all-reduce":
        return 2 * size * (group - 1) / group
    return size * (group - 1) / group if kind == "all-to-all" else size


def shape_of(mesh: str, devices: int) -> MeshShape:
    """The mesh of one of MESHES."""
    if mesh == "data":
        return MeshShape(data=-1)
    if mesh == "fsdp" or devices <= HOST:
        return MeshShape(data=1, fsdp=-1)
    return MeshShape(data=-1, fsdp=HOST)


def measure(
    experiment: Experiment, devices: list, mesh: str, batch: int, where: str
) -> dict:
    """One program: what a device holds and sends; `batch` images each."""
    count = len(devices)
    experiment.mesh = shape_of(mesh, count)
    (program, *_), *_ = tpu.training(experiment, devices, batch * count).parts
    found = list(exchanges(program.as_text(), count))
    plan = program.memory_analysis()
    flops = build.objective(experiment).forward_flops(*experiment.data.shapes[0])
    row = {"config": experiment.name, "where": where, "devices": count, "mesh": mesh}
    row |= {"batch": batch, "tflop": TRAINING_PASSES * flops * batch / 1e12}
    row |= held(experiment, devices)
    row |= {"temporary_gb": plan.temp_size_in_bytes / 1e9}
    for near, name in ((True, "near"), (False, "far")):
        sent = [e.sent * e.times for e in found if e.far != near]
        row[f"{name}_gb"] = sum(sent) / 1e9
        row[f"{name}_count"] = sum(e.times for e in found if e.far != near)
    kinds = {k: sum(e.sent * e.times for e in found if e.kind == k) for k in KINDS}
    return row | {"sent_gb": {k: v / 1e9 for k, v in kinds.items() if v}}


def prepared(path: str, encoded: bool) -> Experiment:
    """A config with flow matching alone and its layers scanned.

    `encoded` texts went through their encoder ahead of time, so that the step has none.
    """
    config = harness.load_config(path)
    config.terms, config.adaptive_weight = [FlowMatching()], None
    config.model.stack.scan = True
    if encoded:
        config.conditioner.features = "encoded"  # a folder that nothing opens here
    return config


def held(config: Experiment, devices: list) -> dict:
    """GB of a run's state on each device, by what it is."""
    mesh, settings = config.mesh.build(devices), build.step_settings(config)
    state = abstract_state(build.objective(config), settings, mesh)

    def gb(tree: object) -> float:
        parts = [
            math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
            for a in jax.tree.leaves(tree)
        ]
        return sum(parts) / 1e9

    count = sum(a.size for a in jax.tree.leaves(state.params))
    return {
        "parameters": count,
        "parameters_gb": gb(state.params),
        "optimizer_gb": gb(state.opt_state),
        "ema_gb": gb(state.ema),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default=CONFIG)
    add("--devices", type=int, nargs="+", default=[8], help="virtual ones")
    add("--topology", nargs="+", default=[], help="of TPUs, such as v5e:2x4")
    add("--mesh", nargs="+", default=["fsdp"], choices=MESHES)
    add("--batch", type=int, default=32, help="images a device")
    add("--encoded", type=int, default=0, help="1: texts are encoded ahead of time")
    add("--json", type=pathlib.Path, help="append the records here")
    return parser.parse_args()


def main() -> None:
    """Compile every combination; each record is written at once."""
    args = arguments()
    places = [(name, lambda n=name: tpu.tpu_devices(n)) for name in args.topology]
    if not places:
        places = [(f"{n} virtual", lambda n=n: jax.devices()[:n]) for n in args.devices]
    for where, devices in places:
        for mesh in args.mesh:
            found = devices()
            if mesh == "hybrid" and len(found) <= HOST:
                continue  # one host: the same as fsdp
            config = prepared(args.config, bool(args.encoded))
            row = measure(config, list(found), mesh, args.batch, where)
            row["encoded"] = bool(args.encoded)
            harness.print_table([row])
            harness.append(args.json, {**harness.environment(), "rows": [row]})


if __name__ == "__main__":
    main()
