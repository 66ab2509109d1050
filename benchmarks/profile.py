"""Where the time of a training step or of sampling goes, kernel by kernel.

python -m benchmarks.profile --case pixnerd-train-32
python -m benchmarks.profile --case 'train configs/pixelgen.py:xl_256 32 terms=flow'

A case is a row of `speed` or a case in words (`case.Case.parse`). Traces a few runs and
shares the time of all kernels among kinds (matrix products, attention, elementwise,
optimizer, ...) and among the lines of our code. "idle" is the time of the device
between kernels, the host's part between two runs included.
"""

import argparse
import collections
import os
import pathlib
import re
import tempfile
from collections.abc import Callable
from typing import NamedTuple

os.environ["XLA_FLAGS"] = (
    # Kernels inside a command buffer cannot be told apart.
    os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
)

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip

from benchmarks import speed  # isort: skip
from benchmarks.case import SAMPLE, Case, build  # isort: skip
from benchmarks.work import Work  # isort: skip

KINDS = {
    "communication": r"nccl",
    "attention": r"fmha|flash|sdpa|cudnn.*attention|(short|long)_attention",
    "field kernel": r"neural_field_(forward|backward)",
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|gemv|splitk|convolve",
    "copies": r"memcpy|memset|copy",
}
OPTIMIZER = re.compile(r"/optax/|pixelflow_jax/training/(state|optimizer|update)")
FUSION = re.compile(r"fusion|reduce|transpose|concatenate|slice|loop|input|wrapped")


class Place(NamedTuple):
    """Where in the code an operation comes from, and whether it moves the weights."""

    label: str
    optimizer: bool


class Trace(NamedTuple):
    """Milliseconds a run of every (kernel name, HLO operation), and between kernels."""

    kernels: collections.Counter
    idle: float


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--case", required=True, help="its name or its words")
    parser.add_argument("--runs", type=int, default=0, help="0: 3, of sampling 1")
    parser.add_argument("--top", type=int, default=40, help="kernels to list")
    return parser.parse_args()


def named(text: str) -> Case:
    """The row of the speed table of that name, or the case in words."""
    rows = {row.case.name: row.case for row in speed.ROWS}
    return rows[text] if text in rows else Case.parse(text)


def main() -> None:
    """Trace the case and print the tables."""
    args = arguments()
    case = named(args.case)
    runs = args.runs or (1 if case.what == SAMPLE else 3)
    found, built = traced(build(case), runs)
    places = source_places(built.program.as_text())
    busy = sum(found.kernels.values())
    print(
        f"{case.label}: compiled in {built.seconds:.0f} s; kernels take {busy:.1f} ms"
    )
    place = lambda kernel: places.get(kernel[1], Place("?", False))
    kinds = by(found.kernels, lambda kernel: kind(*kernel, place(kernel).optimizer))
    kinds["idle"] = found.idle
    _table("kind", kinds, 30)
    _table("line", by(found.kernels, lambda k: place(k).label), args.top)
    _table("kernel", by(found.kernels, lambda k: " ".join(k)[:100]), args.top)
    rows = [{"case": case.label, "kernels_ms": busy, "kinds_ms": dict(kinds)}]
    harness.append(args.json, harness.record(rows))


def traced(work: Work, runs: int) -> tuple[Trace, harness.Compiled]:
    """Compile the work, warm up and trace some runs."""
    with jax.set_mesh(work.mesh), tempfile.TemporaryDirectory() as folder:
        built = harness.compiled(work.program, *work.shapes)
        held = work.arguments()

        def run(times: int) -> None:
            nonlocal held
            for _ in range(times):
                out = built.program(*held)
                held = work.following(held, out)
            jax.block_until_ready(out)

        run(2)
        with jax.profiler.trace(folder):
            run(runs)
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        return read_trace(path, runs), built


def read_trace(path: pathlib.Path, runs: int) -> Trace:
    """The kernels of a trace of that many runs; empty without a GPU."""
    kernels, spans = collections.Counter(), []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if "Stream" not in line.name:
                continue
            for event in line.events:
                stats = dict(event.stats)
                operation = str(stats.get("hlo_op", ""))
                kernels[event.name, operation] += event.duration_ns / 1e6 / runs
                spans.append((event.start_ns, event.start_ns + event.duration_ns))
    return Trace(kernels, between(spans) / 1e6 / runs)


def between(spans: list[tuple[float, float]]) -> float:
    """The time between the first begin and the last end that no span covers."""
    idle, reached = 0.0, min((begin for begin, _ in spans), default=0.0)
    for begin, end in sorted(spans):
        idle += max(0.0, begin - reached)
        reached = max(reached, end)
    return idle


def kind(name: str, operation: str, optimizer: bool) -> str:
    """What sort of work a kernel does."""
    for label, pattern in KINDS.items():
        if re.search(pattern, name.lower()):
            return label
    if optimizer:
        return "optimizer"
    if FUSION.search(operation or name):
        return "elementwise"
    return re.sub(r"[\d_.]+$", "", operation or name)[:40]


def source_places(program: str) -> dict[str, Place]:
    """The place in the code each HLO operation comes from (a fusion: its root's).

    Read from the tables of files, functions and stack frames that head an HLO text.
    """
    files = dict(re.findall(r'^(\d+) "(.+\.py)"$', program, re.MULTILINE))
    entry = r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)"
    places = {
        number: (files.get(file, "?"), line)
        for number, file, line in re.findall(entry, program, re.MULTILINE)
    }
    frame = r"^(\d+) \{file_location_id=(\d+)"
    framed = re.findall(frame, program, re.MULTILINE)
    frames = {number: places.get(at, ("?", "")) for number, at in framed}
    found = {}
    for name, metadata in re.findall(r"%([\w.-]+) = .*metadata=\{(.*?)\}", program):
        operation = re.search(r'op_name="([^"]*)"', metadata)
        operation = operation[1] if operation else ""
        at = re.search(r"stack_frame_id=(\d+)", metadata)
        file, line = frames.get(at[1], ("?", "")) if at else ("?", "")
        way = "recomputed" if "rematted" in operation else "forward"
        way = "backward" if way == "forward" and "transpose" in operation else way
        where = f"{pathlib.Path(file).name}:{line}"
        label = f"{where} {way} {operation.rpartition('/')[2]}"
        found[name] = Place(label, bool(OPTIMIZER.search(file)))
    return found


def by(
    kernels: collections.Counter, label: Callable[[tuple], str]
) -> collections.Counter:
    """The times added up by label."""
    found = collections.Counter()
    for kernel, milliseconds in kernels.items():
        found[label(kernel)] += milliseconds
    return found


def _table(title: str, times: collections.Counter, count: int) -> None:
    print(f"\n{'ms':>9}  {title}")
    for label, milliseconds in times.most_common(count):
        print(f"{milliseconds:9.3f}  {label}")


if __name__ == "__main__":
    main()
