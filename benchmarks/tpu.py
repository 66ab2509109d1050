"""What a TPU would be asked to do: programs compiled ahead of time, on any machine.

pip install libtpu
python -m benchmarks.tpu --topology v5e:2x4 --batch 64 --program train sampler

No TPU is needed: libtpu's compiler takes a description of the chips. Everything
reported is predicted, for each device; nothing runs. All loops over layers are written
out, because XLA counts the body of a loop once; "loops_counted_once" says how many are
left where the costs are counted, "loops" how many the program has.

`--table FILE` prints the rows of a file that `--json FILE` wrote as Markdown.

XLA counts a Pallas kernel by the estimate that it brings; splash attention has none,
and what it does is added (`benchmarks.tpu_calls`). `--attention xla` goes without it.

Compiling a whole model takes its minutes. `--blocks 1 3` compiles models of one and of
three blocks in its place, and continues all figures in a straight line to its depth;
PixelFlow-XL's 28 blocks came out within 2 % of the whole, but 12 % below in memory.
Blocks must be alike beyond the first number: PixelGen's are from the ninth on.

`batch` is that of all devices together. Training splits parameters and optimizer over
all devices (fsdp), sampling copies the parameters to each.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

# The compiler alone is wanted: no search for chips, nor for the cloud's metadata.
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}.items():
    os.environ.setdefault(name, value)

from benchmarks import harness  # noqa: E402  first: it sets the compiler's flags

from benchmarks import tpu_calls  # isort: skip  # noqa: E402

import jax  # isort: skip  # noqa: E402
import numpy as np  # isort: skip  # noqa: E402
from jax.experimental import topologies  # isort: skip  # noqa: E402
from jax.sharding import Mesh  # isort: skip  # noqa: E402

from pixelflow_jax import build  # isort: skip  # noqa: E402

from pixelflow_jax import sharding  # isort: skip  # noqa: E402
from pixelflow_jax.experiment import Experiment  # isort: skip  # noqa: E402
from pixelflow_jax.flow.solver import Euler  # isort: skip  # noqa: E402
from pixelflow_jax.models.interface import Network  # isort: skip  # noqa: E402
from pixelflow_jax.nn.stack import StackConfig  # isort: skip  # noqa: E402
from pixelflow_jax.sampling.batches import Weights  # isort: skip  # noqa: E402
from pixelflow_jax.config_io import walk  # isort: skip  # noqa: E402
from pixelflow_jax.losses.flow_matching import FlowMatching  # isort: skip  # noqa: E402
from pixelflow_jax.training.step import abstract_state, make_step  # isort: skip  # noqa: E402
from pixelflow_jax.training.throughput import PEAKS  # isort: skip  # noqa: E402


class Chip(NamedTuple):
    """Published rates of one chip: bf16 operations a second, bytes a second, bytes."""

    flops: float
    bandwidth: float
    memory: float


CHIPS = {
    "v5e": Chip(PEAKS["TPU v5e"], 819e9, 16e9),
    "v5p": Chip(PEAKS["TPU v5"], 2765e9, 95e9),
}
ATTENTIONS = ("auto", "xla")
# By default gathers of split parameters become loops of partial products, and XLA
# counts the body of each once: 40 % of the operations would be missing.
OPTIONS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


class Place(NamedTuple):
    """A topology such as "v5e:2x4", and how many images all of its chips share."""

    topology: str
    batch: int


class Part(NamedTuple):
    """A compiled program without loops, and how often what it does is done."""

    program: object
    times: int = 1


class Programs(NamedTuple):
    """A program as it would run, and the parts that its costs are the sum of."""

    whole: object
    parts: tuple[Part, ...]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", nargs="+", default=["configs/pixnerd.py:xl16_256"])
    parser.add_argument("--topology", nargs="+", default=["v5e:2x4"])
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--program", nargs="+", default=["train"], choices=PROGRAMS)
    parser.add_argument("--terms", nargs="+", default=["flow"], choices=["flow", "all"])
    parser.add_argument("--attention", nargs="+", default=["auto"], choices=ATTENTIONS)
    parser.add_argument("--blocks", type=int, nargs=2, help="depths to compile instead")
    parser.add_argument("--json", type=pathlib.Path, help="append the record here")
    parser.add_argument("--table", type=pathlib.Path, help="print this file instead")
    return parser.parse_args()


def measure(
    config: str,
    program: str,
    terms: str,
    attention: str,
    where: Place,
    depth: int | None = None,
) -> dict:
    """One program for one topology, of a model of `depth` blocks if that is given."""
    experiment = written_out(harness.load_config(config), terms)
    experiment.kernels.attention = attention
    topology, batch = where
    row = {"config": experiment.name, "topology": topology, "batch": batch}
    row |= {"program": program, "terms": terms, "attention": attention}
    if depth:
        experiment.model.depth = depth
        experiment.model.feature_layer = min(experiment.model.feature_layer, depth)
    try:
        programs = PROGRAMS[program](experiment, tpu_devices(topology), batch)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {**row, "fits": False, "why": str(error).splitlines()[0]}
    return row | prediction(programs, _chip(row))


def continued(config: str, *where: object, blocks: tuple[int, int]) -> dict:
    """`measure` of the whole model, by a straight line through two depths."""
    depth = harness.load_config(config).model.depth
    first, second = (measure(config, *where, depth=count) for count in blocks)
    return straight(first, second, blocks, depth)


def straight(first: dict, second: dict, blocks: tuple[int, int], depth: int) -> dict:
    """The row at `depth` on the line through those of two numbers of blocks."""
    share = (depth - blocks[0]) / (blocks[1] - blocks[0])
    at = {k: first[k] + share * (second[k] - first[k]) for k in LINEAR}
    at["attention_kernels"] = round(at["attention_kernels"])
    at["fits"] = at["peak_gb"] < _chip(first).memory / 1e9
    at["predicted_ms"] = max(at["flops_ms"], at["bytes_ms"])
    return first | at | {"blocks": list(blocks)}


def written_out(config: Experiment, terms: str = "all") -> Experiment:
    """The config with no loop over layers, and with flow matching alone if "flow".

    The adaptive balance is left out: it is computed in one of fifty steps.
    """
    if terms == "flow":
        config.terms = [FlowMatching()]
    config.adaptive_weight = None
    config.mesh = sharding.MeshShape(data=1, fsdp=-1)
    for _, node in walk(config):
        if isinstance(node, StackConfig):
            node.scan = False
    return config


def tpu_devices(topology: str) -> list:
    """The devices of a topology such as "v5e:2x4"; described, not there."""
    return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices


def training(config: Experiment, devices: list, batch: int) -> Programs:
    """The training step of the config's mesh, compiled for `devices`."""
    mesh = config.mesh.build(devices)
    objective, settings = build.objective(config), build.step_settings(config)
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((batch, size, size, 3), np.float32)
    given = {"image": image, **config.conditioner.example(batch)}
    frozen_params = objective.frozen_shapes()
    inputs = (
        abstract_state(objective, settings, mesh),
        on(sharding.batch_sharding(mesh), given),
        jax.tree.map(on, sharding.state_sharding(frozen_params, mesh), frozen_params),
    )
    step = compiled(make_step(objective, settings), mesh, *inputs, donate_argnums=0)
    return Programs(step, (Part(step),))


def sampling(config: Experiment, devices: list, batch: int) -> Programs:
    """The Euler sampler of one stage.

    XLA counts the body of its loops over steps once; the parts are the weights' cast,
    done once, and a guided step and one without guidance, each as a sampler of its own
    that is given what was cast. AdaLN's vectors, which a sampler makes ahead for all
    steps, are made in each of these.
    """
    config.sampling.solver = Euler()
    size, settings = config.data.image_size, config.sampling
    guidance, grid = settings.guidance, settings.grid
    times = grid.times(0)[:-1]
    guided = int(np.sum(guidance.active(times)))
    mesh = sharding.MeshShape().build(devices)
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    inputs = (
        on(split, jax.ShapeDtypeStruct((batch,), np.uint32)),
        on(split, config.conditioner.example(batch)),
        on(whole, jax.ShapeDtypeStruct((), np.uint32)),
        False,
    )
    network = build.network(config)
    weights = on(whole, network.shapes())

    def program(network: Network, weights: dict) -> object:
        generator = build.generator(config, size, size)
        trace = dataclasses.replace(generator, network=network).trace
        return compiled(trace, mesh, Weights(weights), *inputs, static_argnums=4)

    of_all_steps = program(network, weights)
    parts = [Part(compiled(network.cast_for_inference, mesh, weights))]
    cast = on(whole, jax.eval_shape(network.cast_for_inference, weights))
    as_given = dataclasses.replace(network, cast_for_inference=lambda params: params)
    settings.grid = dataclasses.replace(grid, steps=1)
    for scale, count in ((guidance.scale, guided), (1.0, len(times) - guided)):
        always = {"scale": scale, "low": -np.inf, "high": np.inf}
        settings.guidance = dataclasses.replace(guidance, **always)
        parts.append(Part(program(as_given, cast), count))
    return Programs(of_all_steps, tuple(parts))


def on(layout: jax.sharding.Sharding, shapes: object) -> object:
    """The same shapes, with `layout` for all of them."""
    place = lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=layout)
    return jax.tree.map(place, shapes)


def compiled(function: Callable, mesh: Mesh, *inputs: object, **how: object) -> object:
    """`function` compiled for the devices of `mesh` and for the shapes `inputs`."""
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, **how).lower(*inputs)
    of_tpu = mesh.devices.flat[0].platform == "tpu"
    return lowered.compile(compiler_options=OPTIONS if of_tpu else None)


def prediction(programs: Programs, chip: Chip) -> dict:
    """Operations, bytes and memory of a program, and its time.

    It is the larger of what the operations need at the chip's rate, a true bound, and
    what XLA's bytes need at its bandwidth. Those hold what moves inside the chip too,
    from and to its vector memory, so the time may be too long.
    """
    whole, parts = programs
    kernels = [tpu_calls.attention(part.program.as_text()) for part in parts]
    pairs = list(zip(parts, kernels, strict=True))
    flops = sum(p.times * (_cost(p, "flops") + k.flops) for p, k in pairs)
    moved = sum(p.times * (_cost(p, "bytes accessed") + k.moved) for p, k in pairs)
    memory = whole.memory_analysis()
    peak = memory.peak_memory_in_bytes
    compute, traffic = flops / chip.flops, moved / chip.bandwidth
    return {
        "tflop": flops / 1e12,
        "gbytes": moved / 1e9,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "peak_gb": peak / 1e9,
        "fits": peak < chip.memory,
        "flops_ms": compute * 1e3,
        "bytes_ms": traffic * 1e3,
        "predicted_ms": max(compute, traffic) * 1e3,
        "attention_kernels": len(tpu_calls.CALL.findall(whole.as_text())),
        "loops": _loops(whole),
        "loops_counted_once": max(_loops(part.program) for part in parts),
    }


def _cost(part: Part, name: str) -> float:
    cost = part.program.cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)[name])


def _loops(program: object) -> int:
    return len(re.findall(r" while\(", program.as_text()))


PROGRAMS = {"train": training, "sampler": sampling}
# What grows by as much with every block.
LINEAR = ("tflop", "gbytes", "arguments_gb", "temporary_gb", "peak_gb", "flops_ms")
LINEAR += ("bytes_ms", "attention_kernels")
COLUMNS = {
    "program": lambda r: f"{r['config']}, {_kind(r)}{_compiled(r)}",
    "attention": lambda r: r.get("attention", "xla"),
    "chips": lambda r: r["topology"],
    "images a chip": lambda r: f"{r['batch'] // _chips(r)}",
    "TFLOP": lambda r: f"{r['tflop']:.1f}",
    "GB, XLA's count": lambda r: f"{r['gbytes']:.0f}",
    "arguments GB": lambda r: f"{r['arguments_gb']:.1f}",
    "temporary GB": lambda r: f"{r['temporary_gb']:.1f}",
    "peak GB": lambda r: f"{r['peak_gb']:.1f} of {_chip(r).memory / 1e9:.0f}",
    "ms by FLOPs": lambda r: f"{r['flops_ms']:.0f}",
    "ms by bytes": lambda r: f"{r['bytes_ms']:.0f}",
    "predicted ms": lambda r: f"{r['predicted_ms']:.0f}",
}


def table(lines: list[str]) -> str:
    """The rows of a results file that fit, as a Markdown table."""
    rows = [row for line in lines for row in json.loads(line)["rows"]]
    cells = [
        [cell(row) for cell in COLUMNS.values()] for row in rows if row.get("fits")
    ]
    rule = ["---"] * len(COLUMNS)
    return "\n".join(f"| {' | '.join(c)} |" for c in [COLUMNS, rule, *cells])


def _kind(row: dict) -> str:
    if row["program"] == "sampler":
        return "sampler"
    return "training, all terms" if row["terms"] == "all" else "training, flow matching"


def _compiled(row: dict) -> str:
    first, second = row.get("blocks") or (0, 0)
    return f", by {first} and {second} blocks" if second else ""


def _chip(row: dict) -> Chip:
    return CHIPS[row["topology"].split(":")[0]]


def _chips(row: dict) -> int:
    return math.prod(map(int, row["topology"].split(":")[1].split("x")))


def main() -> None:
    """Compile every combination; or print a table."""
    args = arguments()
    if args.table:
        print(table(args.table.read_text().splitlines()))
        return
    names = ("config", "program", "terms", "attention", "topology", "batch")
    choices = itertools.product(*(getattr(args, name) for name in names))
    find = measure
    if args.blocks:
        find = functools.partial(continued, blocks=tuple(args.blocks))
    harness.report([find(*c[:4], Place(*c[4:])) for c in choices], args.json)


if __name__ == "__main__":
    main()
