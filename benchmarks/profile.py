"""Where a training step's time goes, kernel by kernel.

python -m benchmarks.profile --config configs/pixnerd.py:xl16_256 --batch 32

Traces a few steps and shares the time of all kernels among kinds (matrix products,
attention, custom kernels, fusions, copies) and among the lines of our code.
"""

import argparse
import collections
import os
import pathlib
import re
import tempfile

os.environ["XLA_FLAGS"] = (
    # Kernels inside a command buffer cannot be told apart.
    os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
)

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip

from benchmarks.train_step import configured, random_batch  # isort: skip
from pixelflow_jax.training.step import fresh_state, make_step  # isort: skip

STEPS = 3
KINDS = {
    "matrix products": r"gemm|cutlass|nvjet|xmma|cublas|gemv|splitk",
    "attention": r"fmha|flash|sdpa|cudnn",
    "field kernel": r"field_(forward|backward)",
    "copies": r"memcpy|memset|copy",
    "communication": r"nccl",
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--remat", default="", help="empty: the config's")
    parser.add_argument("--unroll", type=int, default=0)
    parser.add_argument("--field_remat", default="none")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--top", type=int, default=40, help="kernels to list")
    return parser.parse_args()


def main() -> None:
    """Trace the step and print both tables."""
    args = arguments()
    names = ("batch", "remat", "unroll", "field_remat", "attention")
    config = configured(args.config, {name: getattr(args, name) for name in names})
    recipe, mesh = config.recipe(), config.mesh.build()
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        state = fresh_state(recipe, config.ema, mesh)
        inputs = (random_batch(config, mesh), {})
        step = jax.jit(make_step(recipe), donate_argnums=0)
        program, seconds = harness.compiled(step, state, *inputs)
        for _ in range(3):
            state, metrics = program(state, *inputs)
        jax.block_until_ready(metrics)
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                state, metrics = program(state, *inputs)
            jax.block_until_ready(metrics)
        (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
        kernels = timed_kernels(trace)
    lines = source_lines(program.as_text())
    print(f"compiled in {seconds:.0f} s; kernels take {sum(kernels.values()):.1f} ms")
    _table("kind", by(kernels, lambda kernel: kind(*kernel)), 30)
    _table("line", by(kernels, lambda kernel: lines.get(kernel[1], "?")), args.top)
    _table("kernel", by(kernels, lambda kernel: " ".join(kernel)[:100]), args.top)


def timed_kernels(trace: pathlib.Path) -> collections.Counter:
    """Milliseconds a step of every (kernel name, HLO operation)."""
    found = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if "GPU" not in plane.name:
            continue
        for line in plane.lines:
            if "Stream" not in line.name:
                continue
            for event in line.events:
                stats = dict(event.stats)
                operation = str(stats.get("hlo_op", ""))
                found[event.name, operation] += event.duration_ns / 1e6 / STEPS
    return found


def kind(name: str, operation: str) -> str:
    """What sort of work a kernel does."""
    for label, pattern in KINDS.items():
        if re.search(pattern, name.lower()):
            return label
    return re.sub(r"[\d_.]+$", "", operation or name)[:40]


def source_lines(program: str) -> dict[str, str]:
    """The place in the code each HLO operation comes from (a fusion: its root's).

    Read from the tables of files, functions and stack frames that head an HLO text.
    """
    files = dict(re.findall(r'^(\d+) "(.+\.py)"$', program, re.MULTILINE))
    entry = r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+)"
    places = {
        number: f"{pathlib.Path(files.get(file, '?')).name}:{line}"
        for number, file, line in re.findall(entry, program, re.MULTILINE)
    }
    frame = r"^(\d+) \{file_location_id=(\d+)"
    framed = re.findall(frame, program, re.MULTILINE)
    frames = {number: places.get(at, "?") for number, at in framed}
    found = {}
    for name, metadata in re.findall(r"%([\w.-]+) = .*metadata=\{(.*?)\}", program):
        operation = re.search(r'op_name="([^"]*)"', metadata)
        operation = operation[1] if operation else ""
        at = re.search(r"stack_frame_id=(\d+)", metadata)
        way = "recomputed" if "rematted" in operation else "forward"
        way = "backward" if way == "forward" and "transpose" in operation else way
        where = frames.get(at[1], "?") if at else "?"
        found[name] = f"{where} {way} {operation.rpartition('/')[2]}"
    return found


def by(kernels: collections.Counter, label) -> collections.Counter:
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
