"""What the kernels for TPUs would gain: predicted cycles, with no TPU at hand.

pip install libtpu
python -m benchmarks.tpu_kernels --json benchmarks/results/tpu_kernels.jsonl

Each operation is compiled for one v5e as XLA fuses it and as our kernel. XLA estimates
the cycles of what it compiles, not those of kernels: theirs are the larger of the bytes
they read and write, at the rate that XLA's estimate has for a copy, and of what a
program of theirs takes to compute (PROGRAMS). The estimate is of a single run with
nothing beside it, and meant for comparing: its copy runs at 40 % of the memory's rate.
"""

import argparse
import fnmatch
import functools
import math
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import tpu  # first: it sets the environment

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip

from benchmarks import harness  # isort: skip
from pixelflow_jax import sharding  # isort: skip
from pixelflow_jax.doctor.kernels import (  # isort: skip
    adaln,
    field,
    qkv,
    swiglu,
    with_gradient,
)
from pixelflow_jax.nn.kernels.choice import Kernels  # isort: skip
from pixelflow_jax.nn.packing import Packing  # isort: skip

WIDTH, HIDDEN, HEADS, HEAD_WIDTH = 1152, 3072, 16, 72  # of the XL models
PLACES = (("pixnerd 8", 8, (256,)), ("pixelflow 1", 1, (64, 256, 1024, 4096)))
FIELD = (8 * 256, 256, 64, 128)  # patches, pixels, width and hidden width
# Instructions of one program by the compiler's schedule (LIBTPU_INIT_ARGS=
# "--xla_jf_dump_to=DIR --xla_jf_dump_llo_text=true", schedule-analysis_final_bundles),
# and the tokens or patches that it is for.
PROGRAMS = {
    "adaln_residual_forward": (909, 128),
    "adaln_residual_backward": (2219, 128),
    "qkv_norm_rope_forward": (7793, 128),
    "qkv_norm_rope_backward": (11117, 128),
    "neural_field_forward": (485, 1),
    "neural_field_backward": (871, 1),
}
GIGAHERTZ = 1.5  # of a v5e
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
SHAPE = re.compile(r"\b(bf16|f32|s32)\[([\d,]*)\]")
BYTES = {"bf16": 2, "f32": 4, "s32": 4}


class Case(NamedTuple):
    """An operation of kernels and arrays, its inputs' and its results' shapes."""

    function: Callable[..., tuple]
    inputs: list[tuple[int, ...]]
    outs: list[tuple[int, ...]]
    rows: int  # tokens or patches


def cases() -> dict[str, Case]:
    """All operations that have a kernel on some platform."""
    found = {}
    for title, b, lengths in PLACES:
        packing, n = Packing((b,) * len(lengths), lengths), sum(lengths)
        tokens, wide = (b, n, WIDTH), (b, n, HIDDEN)
        chunks = [(b, 6 * WIDTH)] * len(lengths)
        heads = [(b, n, HEADS, HEAD_WIDTH)] * 3
        bind = functools.partial
        of = {
            "adaln": (bind(adaln, packing), [tokens] * 2 + chunks, [tokens] * 2),
            "qkv": (bind(qkv, HEADS, packing), [(b, n, 3 * WIDTH)], heads),
            "swiglu": (bind(swiglu, packing), [wide, wide, (HIDDEN, WIDTH)], [tokens]),
        }
        found |= {f"{name} {title}": Case(*c, b * n) for name, c in of.items()}
    patches, pixels, width, hidden = FIELD
    z = (patches, pixels, width)
    found["field 8"] = Case(field, [z, (patches, 2 * width * hidden)], [z], patches)
    return found


def compiled(function: Callable, shapes: list[tuple[int, ...]]) -> str:
    """The program for one chip, as text."""
    mesh = sharding.MeshShape().build(tpu.tpu_devices("v5e:2x2")[:1])
    whole = sharding.replicated(mesh)
    given = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes]
    return tpu.compiled(function, mesh, *(tpu.on(whole, a) for a in given)).as_text()


def estimated(text: str) -> int:
    """XLA's estimate of all that it compiled itself."""
    return sum(map(int, CYCLES.findall(text)))


def copy_rate() -> float:
    """Bytes a cycle of a copy, by XLA's estimate."""
    shape = (8, 4096, WIDTH)
    text = compiled(lambda a: a + 1, [shape])
    return 2 * 2 * math.prod(shape) / estimated(text)


def launched(text: str, rows: int, rate: float) -> dict[str, dict]:
    """The bytes of each kernel of a program, and its cycles."""
    found = {}
    for line in text.splitlines():
        name = re.search(r"(\w+?_(?:forward|backward))_kernel", line)
        if "tpu_custom_call" not in line or name is None:
            continue
        key = next(known for known in PROGRAMS if known in name[1])
        shapes = line.split("backend_config")[0].split("operand_layout_constraints")
        moved = _bytes(shapes[0].split("custom-call")[0]) + _bytes(shapes[1])
        instructions, share = PROGRAMS[key]
        compute = instructions * rows // share
        cycles = max(round(moved / rate), compute)
        found[key] = {"mb": moved / 1e6, "compute": compute, "cycles": cycles}
    return found


def _bytes(text: str) -> int:
    """The sum of the shapes in a text, where rows fill whole registers."""
    total = 0
    for kind, sizes in SHAPE.findall(text):
        *rows, lanes = (int(size) for size in sizes.split(",") if size) or (1,)
        total += BYTES[kind] * math.prod(rows) * math.ceil(lanes / 128) * 128
    return total


def measure(name: str, case: Case, rate: float) -> list[dict]:
    """A row for XLA and for our kernels, forward alone and with the gradients."""
    rows = []
    for way, outs in (("forward", []), ("forward and backward", case.outs)):
        for variant, word in (("xla", "xla"), ("mosaic", "mosaic")):
            kernels = Kernels(blocks=word, field=word, attention="xla")
            function = functools.partial(case.function, kernels)
            if outs:
                function = with_gradient(function, len(outs))
            text = compiled(function, [*case.inputs, *outs])
            ours = launched(text, case.rows, rate)
            cycles = estimated(text) + sum(k["cycles"] for k in ours.values())
            row = {"case": f"{name} {way}", "variant": variant, "cycles": cycles}
            rows.append(row | {"us": cycles / GIGAHERTZ / 1e3, "kernels": ours})
    return rows


def main() -> None:
    """Predict the chosen operations, and record each as it comes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--json", type=pathlib.Path, help="append the records here")
    args = parser.parse_args()
    rate = copy_rate()
    for name, case in cases().items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in args.only):
            rows = [row | {"copy_rate": rate} for row in measure(name, case, rate)]
            harness.report(rows, args.json)


if __name__ == "__main__":
    main()
