"""Do several processes train, draw and measure as one does?

python -m benchmarks.processes [--steps 50] [--models PixNerd,...] [--meshes 8x1x1,...]

Tiny models of every kind are trained on eight virtual CPU devices, laid out as several
meshes: by one process, by two that launch/local.sh starts, and by four with the
variables of SLURM. Prints a table: the largest relative difference of the loss of a
step from that of one process, over all steps; and whether what is drawn with the same
weights, and the held-out loss of these, have the same bytes. --steps 0 does without
training. The rows are added to benchmarks/results/processes.jsonl (--results).
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
RESULTS = ROOT / "benchmarks" / "results" / "processes.jsonl"
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
    """The loss of every step of a training, and what is drawn and measured."""
    from benchmarks.tiny_runs import MODELS
    from pixelflow_jax.mesh import MeshShape

    begun = time.monotonic()
    config = MODELS[model]()
    config.steps = arguments.steps
    data, fsdp, tensor = sizes
    config.mesh = MeshShape(data=data, fsdp=fsdp, tensor=tensor)
    place = arguments.out / f"{arguments.name}_{model}_{data}{fsdp}{tensor}"
    row = {"losses": trained(config, place)} if arguments.steps else {}
    return row | drawn(config) | {"seconds": time.monotonic() - begun}


def trained(config: "Experiment", workdir: pathlib.Path) -> list[float]:
    """The loss of each step, in the first process; others give none."""
    import jax

    from pixelflow_jax import build
    from pixelflow_jax.training.loop import train
    from pixelflow_jax.validate import validated

    train(build.training_run(validated(config)), workdir)
    if jax.process_index():
        return []
    text = (workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    # Each step has its line, however seldom a run reports.
    assert [line["step"] for line in lines] == list(range(1, config.steps + 1))
    return [line["loss"] for line in lines]


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


def compared(out: pathlib.Path) -> list[dict]:
    """A row for each model, mesh and number of processes: how it differs from one."""
    one = {row["key"]: row for row in rows(out / "one.jsonl")}
    found = []
    for name, (launcher, count) in list(LAUNCHES.items())[1:]:
        for row in rows(out / f"{name}.jsonl"):
            wanted = one[row["key"]]
            result = {"key": row["key"], "processes": count, "launcher": launcher}
            if "losses" in row:
                pairs = list(zip(row["losses"], wanted["losses"], strict=True))
                apart = max(abs(a - b) / abs(b) for a, b in pairs)
                result |= {"steps": len(pairs), "loss_difference": apart}
            if "images" in row:
                same = {k: row[k] == wanted[k] for k in ("images", "heldout")}
                result |= {"images_same": same["images"]}
                result |= {"heldout_same": same["heldout"]}
            found.append(result)
    return found


def merged(path: pathlib.Path, new: list[dict]) -> list[dict]:
    """The rows of a file with those of today added or put in their places."""
    every: dict[tuple, dict] = {}
    for row in [*rows(path), *new]:
        place = row["key"], row["processes"]
        every[place] = every.get(place, {}) | row
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(every.values(), key=lambda row: (row["processes"], row["key"]))
    path.write_text("".join(json.dumps(row) + "\n" for row in ordered))
    return ordered


def table(found: list[dict]) -> tuple[str, bool]:
    """Rows as Markdown, and whether all of it is as it should be."""
    lines = [
        "| model and mesh | processes | largest relative difference of a loss |"
        " images | held-out loss |",
        "|---|---|---|---|---|",
    ]
    words = {True: "the same bytes", False: "OTHER BYTES", None: "-"}
    good = True
    for row in found:
        apart = row.get("loss_difference")
        same = [row.get("images_same"), row.get("heldout_same")]
        good = good and (apart or 0) <= BOUND and False not in same
        cells = [row["key"], f"{row['processes']} ({row['launcher']})"]
        cells += ["-" if apart is None else f"{apart:.1e}", *(words[s] for s in same)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines), good


def main() -> None:
    """Start all, compare, and print the table; exits with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--models", default="PixNerd,PixelFlow,PixelGen,PixNerdText")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
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
    text, good = table(merged(arguments.results, compared(out)))
    print(text)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
