"""A run so small that compiling is what takes the time: programs are cached on disk."""

import contextlib
import dataclasses
import getpass
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from pixelflow_jax import build
from pixelflow_jax.data.folder import ImageFolder
from pixelflow_jax.data.loader import Data
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.settings import Sampling
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.log import Logging
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.training.run import TrainingRun
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.validate import validated

CACHE = pathlib.Path(tempfile.gettempdir()) / f"pixelflow_jax-{getpass.getuser()}"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
# Thousands of programs of one operation each take as long as the large ones together.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 16
PATIENCE = 600  # seconds, which only what hangs takes on a machine that is busy
CLASSES = ("Cats & Dogs", "flags", "plants")


def write_images(root: pathlib.Path, count: int = 24, size: int = SIZE) -> pathlib.Path:
    """`count` smooth random images in three class folders."""
    rng = np.random.default_rng(0)
    for k in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        folder = root / CLASSES[k % len(CLASSES)]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{k:03d}.png")
    return root


def model(**fields) -> PixNerd:
    """A PixNerd of two blocks on four tokens."""
    small = {
        "num_classes": len(CLASSES),
        "patch": 8,
        "width": 32,
        "heads": 4,
        "depth": 2,
        "feature_layer": 1,
        "decoder": NeuralField(width=8, depth=1),
        "stack": StackConfig(remat="none"),
    }
    return PixNerd(**small | fields)


def experiment(images: str | pathlib.Path, **fields) -> Experiment:
    """A run of a few steps, with everything switched on that a step may do."""
    source = ImageFolder(path=str(images), holdout=0.25)
    small = {
        "name": "tiny",
        "seed": 3,
        "steps": 6,
        "batch_size": 8,
        "data": Data(source=source, image_size=SIZE, threads=2),
        "model": model(),
        "optimizer": AdamW(lr=1e-2, warmup=2, clip=0.1, weight_decay=0.01),
        "ema": (0.9, 0.5),
        "precision": Precision(compute="float32"),
        "checkpoint": Checkpointing(every=3),
        "log": Logging(every=1, preview_every=0, preview_count=4),
        "sampling": Sampling(
            grid=Grid(steps=3),
            guidance=ClassifierFree(scale=2.0, low=0.1, high=1.0),
            batch_size=8,
        ),
    }
    return Experiment(**small | fields)


VALID: set[str] = set()  # configs that have been asked for what is wrong with them


def run(images: pathlib.Path, devices: int = 1, initial=None, **fields) -> TrainingRun:
    """The run of `experiment` on the first `devices` devices, laid out by `mesh`."""
    shape = fields.pop("mesh", MeshShape())
    config = experiment(images, **fields)
    if repr(config) not in VALID:  # to ask takes a second
        VALID.add(repr(validated(config)))
    return on_devices(build.training_run(config, initial), devices, shape)


def on_devices(
    ready: TrainingRun, devices: int = 1, shape: MeshShape | None = None
) -> TrainingRun:
    """A run on fewer devices than there are: eight take turns, and wait for others."""
    mesh = (shape or MeshShape()).build(jax.devices()[:devices])
    return dataclasses.replace(ready, mesh=mesh)


class Finished(NamedTuple):
    """A run that has ended: others look at the same, and write to copies alone."""

    images: pathlib.Path
    workdir: pathlib.Path
    state: TrainState

    def copy(self, folder: pathlib.Path) -> pathlib.Path:
        """What it left behind, in another folder, which is returned."""
        return shutil.copytree(self.workdir, folder, dirs_exist_ok=True)


def saved_state(run: TrainingRun, workdir: pathlib.Path) -> TrainState:
    """The newest checkpoint of a run."""
    reader = Checkpointer(workdir / "checkpoints", None)
    with contextlib.closing(reader):
        state, _ = reader.restore(reader.latest(), run.abstract_state(), run.config)
        return state


def assert_identical(one: object, other: object) -> None:
    """Two pytrees of arrays are equal to the last bit."""
    flat, others = jax.tree.leaves_with_path(one), jax.tree.leaves(other)
    assert len(flat) == len(others) > 0
    for (path, a), b in zip(flat, others, strict=True):
        name = jax.tree_util.keystr(path)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


def history(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl; floats as written, to the last bit."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def write_config(path: pathlib.Path, images: pathlib.Path, changes: str = "") -> str:
    """A config file for the command line; `changes` are lines that edit `config`."""
    body = "\n".join("    " + line for line in changes.splitlines())
    path.write_text(
        "import tiny\n\n\ndef get_config():\n"
        f"    config = tiny.experiment({str(images)!r})\n{body}\n    return config\n"
    )
    return str(path)


def environment(
    devices: int = 1, cache: bool = True, optimised: bool = False
) -> dict[str, str]:
    """The environment of a command on CPU; its config files can import this module.

    It compiles as these tests do, or as users do (`optimised`), for fewer devices.
    """
    count = "--xla_force_host_platform_device_count="
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [f for f in flags if not (optimised or f.startswith(count))]
    changes = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join([*kept, f"{count}{devices}"]),
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), str(ROOT)]),
    }
    if cache:
        changes["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
        changes["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    return {**os.environ, **changes}


class Commands(NamedTuple):
    """A process of tests/commands.py, and the environment that it has."""

    environment: dict[str, str]
    process: subprocess.Popen


_COMMANDS: list[Commands] = []  # the one that runs


def commands_in(environment: dict[str, str]) -> subprocess.Popen:
    """The process that runs commands in an environment, for all that follow."""
    environment = {k: v for k, v in environment.items() if k != "PYTEST_CURRENT_TEST"}
    if _COMMANDS and _COMMANDS[0].environment != environment:
        former = _COMMANDS.pop().process
        former.kill(), former.wait()
    if not _COMMANDS:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "commands.py")],
            stdin=subprocess.PIPE,  # it ends when this is closed
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        _COMMANDS.append(Commands(environment, process))
    return _COMMANDS[0].process


def outcomes(
    commands: dict[str, list], devices: int = 1, optimised: bool = False
) -> dict[str, dict]:
    """Code, out and error of many commands, whose arguments are given by name."""
    arguments = [[str(argument) for argument in line] for line in commands.values()]
    process = commands_in(environment(devices, optimised=optimised))
    clock = threading.Timer(PATIENCE, process.kill)
    clock.start()
    try:
        print(json.dumps(arguments), file=process.stdin, flush=True)
        answer = process.stdout.readline()
    finally:
        clock.cancel()
    if not answer:
        _COMMANDS.clear()
    assert answer, f"the process of {list(commands)} has ended"
    return dict(zip(commands, json.loads(answer), strict=True))


def command(
    *arguments: object, devices: int = 1, cache: bool = True, limits: str = ":"
) -> subprocess.Popen:
    """Start `python -m pixelflow_jax.main` with these arguments, after `limits`."""
    return subprocess.Popen(
        ["sh", "-c", f'{limits}; exec "$@"', "sh"]
        + [sys.executable, "-m", "pixelflow_jax.main", *map(str, arguments)],
        cwd=ROOT,
        env=environment(devices, cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(
    process: subprocess.Popen, timeout: float = PATIENCE
) -> tuple[int, str, str]:
    """Its exit code, standard output and standard error."""
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, error
