"""Do several processes train, draw and measure as one does?

python -m benchmarks.processes [--steps 50] [--models PixNerd,...] [--meshes 8x1x1,...]

Tiny models of every kind are trained on eight virtual CPU devices, laid out as several
meshes: by one process, by two that launch/local.sh starts, and by four with the
variables of SLURM. Prints a table: the largest relative difference of a loss from that
of one process, over all steps; whether what is drawn with the same weights has the same
bytes; and the difference of the held-out loss.
"""

import argparse
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixelflow_jax.experiment import Experiment

ROOT = pathlib.Path(__file__).resolve().parents[1]
DRAWN = (2, 2, 2)  # images and held-out loss are compared on this one
DEVICES = 8
WORKER = [sys.executable, "-m", "benchmarks.processes", "--worker"]
BOUND = 1e-5


def environment(devices: int) -> dict[str, str]:
    """Of a process with so many virtual devices; it compiles fast."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    flags += " --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own}


def meshes_of(text: str) -> list[tuple[int, ...]]:
    """Sizes of data, fsdp and tensor: "2x2x2" with commas between."""
    return [tuple(map(int, mesh.split("x"))) for mesh in text.split(",")]


def free_port() -> int:
    """One at which processes can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started(launcher: str, words: list[str], count: int) -> list[subprocess.Popen]:
    """`count` processes of a command, eight devices together; how they find each other.

    "alone", "local.sh" (one process that starts them) or "SLURM" (its variables).
    """
    env = environment(DEVICES // count)
    if launcher == "alone":
        return [subprocess.Popen(words, env=env, cwd=ROOT)]
    if launcher == "local.sh":
        env |= {"PROCESSES": str(count), "PORT": str(free_port())}
        return [subprocess.Popen([ROOT / "launch/local.sh", *words], env=env, cwd=ROOT)]
    port = str(free_port())
    common = {"SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "localhost"}
    common |= {"SLURM_NTASKS": str(count), "JAX_COORDINATOR_PORT": port}
    tasks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]
    return [
        subprocess.Popen(words, env=env | common | task, cwd=ROOT) for task in tasks
    ]


def work(arguments: argparse.Namespace) -> None:
    """What each process does: all models on all meshes, a row each into a file."""
    from pixelflow_jax import backend, distributed

    backend.configure()
    given = arguments.coordinator, arguments.num_processes, arguments.process_id
    joining = distributed.find(*given)
    if joining is not None:
        distributed.join(joining, saves=True)
    import jax

    done = arguments.out / f"{arguments.name}.jsonl"
    known = {line["key"] for line in rows(done)}
    for model in arguments.models.split(","):
        for sizes in meshes_of(arguments.meshes):
            key = f"{model} {sizes}"
            if key in known:
                continue
            row = {"key": key, **measured(model, sizes, arguments)}
            if jax.process_index() == 0:
                with done.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def measured(model: str, sizes: tuple, arguments: argparse.Namespace) -> dict:
    """Losses of the training; on one of the meshes also what is drawn and measured."""
    import jax

    from benchmarks.tiny_runs import MODELS
    from pixelflow_jax import build
    from pixelflow_jax.mesh import MeshShape
    from pixelflow_jax.training.loop import train
    from pixelflow_jax.validate import validated

    begun = time.monotonic()
    config = MODELS[model]()
    config.steps = arguments.steps
    data, fsdp, tensor = sizes
    config.mesh = MeshShape(data=data, fsdp=fsdp, tensor=tensor)
    run = build.training_run(validated(config))
    place = f"{arguments.name}_{model}_{data}{fsdp}{tensor}"
    train(run, arguments.out / place)
    lines = []
    if jax.process_index() == 0:
        text = (arguments.out / place / "metrics.jsonl").read_text()
        lines = [json.loads(line)["loss"] for line in text.splitlines()]

    row = {"losses": lines, "seconds": time.monotonic() - begun}
    return row | (drawn(config) if sizes == DRAWN else {})


def drawn(config: "Experiment") -> dict:
    """A digest of images, and the held-out loss, of weights that all processes make."""
    import jax
    import numpy as np

    from pixelflow_jax import build
    from pixelflow_jax.sampling.batches import Weights

    # None of them zero.
    rng = np.random.default_rng(0)
    draw = lambda s: np.float32(rng.standard_normal(s.shape) * 0.1)
    params = jax.tree.map(draw, build.network(config).shapes())
    side = config.data.image_size
    generator = build.generator(config, side, side)
    reader = config.conditioner.caption_encoder()
    given = {"label": np.arange(4, dtype=np.int32) % 3}
    if reader is not None:
        given = reader(("a red apple", "a cat, asleep", "a flag", ""))
    frozen = config.conditioner.load()
    images = generator(Weights(params, frozen), given).images
    loss = build.heldout_loss(config, params, 16)
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    return {"images": digest, "heldout": loss["loss"]}


def rows(path: pathlib.Path) -> list[dict]:
    """The lines of a file, none where it is not there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


LAUNCHES = {"one": ("alone", 1), "two": ("local.sh", 2), "four": ("SLURM", 4)}


def table(out: pathlib.Path) -> tuple[str, bool]:
    """What was found, in Markdown, and whether all of it is as it should be."""
    one = {row["key"]: row for row in rows(out / "one.jsonl")}
    lines = [
        "| model and mesh (data, fsdp, tensor) | processes | losses | images | held-out"
        " loss |",
        "|---|---|---|---|---|",
    ]
    good = True
    for name, (launcher, count) in list(LAUNCHES.items())[1:]:
        for row in rows(out / f"{name}.jsonl"):
            wanted = one[row["key"]]
            pairs = zip(row["losses"], wanted["losses"], strict=True)
            apart = max(abs(a - b) / abs(b) for a, b in pairs)
            good = good and apart <= BOUND
            images = held = ""
            if "images" in row:
                same = row["images"] == wanted["images"]
                images = "the same bytes" if same else "OTHER BYTES"
                off = abs(row["heldout"] - wanted["heldout"]) / abs(wanted["heldout"])
                held = f"{off:.1e}" if off else "the same"
                good = good and same and off <= BOUND
            shown = f"{count} ({launcher}) | {apart:.1e} | {images} | {held}"
            lines.append(f"| {row['key']} | {shown} |")
    return "\n".join(lines), good


def main() -> None:
    """Start all, compare, and print the table; exits with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--models", default="PixNerd,PixelFlow,PixelGen,PixNerdText")
    parser.add_argument("--launches", default="one,two,four")
    parser.add_argument("--meshes", default="8x1x1,1x8x1,2x2x2,4x1x2")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    parser.add_argument("--num_processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--process_id", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    out = arguments.out or pathlib.Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    # One model after the other: what is done can be compared.
    for model in arguments.models.split(","):
        for name in arguments.launches.split(","):
            launcher, count = LAUNCHES[name]
            words = [*WORKER, f"--name={name}", f"--out={out}"]
            words += [f"--steps={arguments.steps}", f"--models={model}"]
            words += [f"--meshes={arguments.meshes}"]
            codes = [process.wait() for process in started(launcher, words, count)]
            if any(codes):
                print(f"{model}, {name}: ended with {codes}", file=sys.stderr)
    text, good = table(out)
    print(text)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
