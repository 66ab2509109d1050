"""What files of version 0.1.0 give: python tests/old_files.py FOLDER OUT RUN ...

Reads the runs and weights of FOLDER, tests/files/v1, and writes OUT.npz and OUT.json as
the code of then wrote expected.npz and expected.json beside them. The RUNs go on.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np
from flax import traverse_util
from safetensors.numpy import load_file

from pixelflow_jax import build
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.solver import Heun
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.sampling.batches import Generator
from pixelflow_jax.training.checkpoint import Checkpointer
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.run import TrainingRun
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.validate import validated

RUNS = {
    "run": [0, 2],
    "run_perceptual": [0, 2],
    "run_text": ["a red cat", "a big blue dog on a mat"],
    "run_cascade": [0, 1],
}
EXPORTS = (("run", "0.9"), ("run", "raw"), ("run_text", "0.9"))
UNTIMED = ("images_per_second", "seconds", "utilisation", "time")


def digest(array: object) -> str:
    """Type, shape and content of an array, in short."""
    array = np.ascontiguousarray(array)
    head = f"{array.dtype}{list(array.shape)}".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()[:16]


def digests(tree: dict) -> dict[str, str]:
    """The digest of every array, by its path."""
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: digest(array) for path, array in flat.items()}


def state_facts(state: TrainState) -> dict:
    """What is in a state, to the last bit."""
    state = jax.device_get(state)
    carry = traverse_util.flatten_dict(state.carry, sep="/")
    return {
        "params": digests(state.params),
        "ema": digests(state.ema),
        "carry": {path: float(a) for path, a in carry.items()},
        "opt_state": [digest(a) for a in jax.tree.leaves(state.opt_state)],
    }


def config_of(name: str) -> Experiment:
    """The config of a run, from its workdir."""
    text = pathlib.Path(name, "config.json").read_text()
    return Experiment.from_dict(json.loads(text))


def restored(run: TrainingRun, workdir: pathlib.Path, step: int) -> TrainState:
    """The state of a run after a step."""
    with contextlib.closing(Checkpointer(workdir / "checkpoints", None)) as saved:
        abstract = run.abstract_state()
        return saved.restore(step, abstract, run.config, run.read_config)[0]


def drawn(weights: str, wanted: list, ema: str = "") -> np.ndarray:
    """Two images by one way of sampling for all, float32."""
    pipeline = Pipeline.from_pretrained(weights, ema)
    how = {"solver": Heun(), "grid": Grid(steps=4)}
    guidance = ClassifierFree(scale=1.5)
    return pipeline.generate(wanted, seed=3, guidance=guidance, **how).images


def samples() -> dict[str, np.ndarray]:
    """Images of every run and average, and of what was published from one."""
    arrays = {}
    for name, wanted in RUNS.items():
        for ema in ("0.9", "0.5", "raw") if name == "run" else ("0.9", "raw"):
            arrays[f"sample/{name}/{ema}"] = drawn(name, wanted, ema)
    arrays["sample/published"] = drawn("published", RUNS["run"])
    arrays["sample/single"] = drawn("single.safetensors", RUNS["run"])
    for name in ("run", "run_cascade", "published"):  # by the settings stored there
        wanted = RUNS.get(name, RUNS["run"])
        arrays[f"default/{name}"] = Pipeline.from_pretrained(name)(wanted, seed=3)
    return arrays


def exports() -> dict:
    """Digests of what the command exports, by run, average and tensor."""
    tensors = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, ema in EXPORTS:
            out = pathlib.Path(folder) / f"{name}-{ema}"
            command = [sys.executable, "-m", "pixelflow_jax", "export"]
            options = [f"--workdir={name}", f"--out={out}", f"--ema={ema}"]
            subprocess.run([*command, *options], check=True)
            tensors[f"{name}/{ema}"] = digests(load_file(out / "model.safetensors"))
    return tensors


def resumed(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """The steps after the checkpoint of a run, from a copy of its workdir."""
    config, steps = config_of(name), {}
    config.checkpoint = dataclasses.replace(config.checkpoint, every=1, keep=10)
    run = build.training_run(validated(config))
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / name
        shutil.copytree(name, workdir)
        train(run, workdir)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        for line in lines[-5:]:
            state = restored(run, workdir, line["step"])
            steps[str(line["step"])] = {
                "metrics": {
                    key: value
                    for key, value in line.items()
                    if not any(word in key for word in UNTIMED)
                },
                **state_facts(state),
            }
    flat = traverse_util.flatten_dict(jax.device_get(state.params), sep="/")
    return {
        f"resumed/{name}/8/{path}": np.asarray(a) for path, a in flat.items()
    }, steps


def main() -> None:
    """All numbers, to OUT.npz and OUT.json."""
    folder, out, *names = sys.argv[1:]
    # A program of then drew both images; an image's last bits depend on that.
    Generator.per_device = lambda self, count: count
    out = pathlib.Path(out).absolute()
    os.chdir(folder)
    arrays = samples()
    facts = {"exports": exports(), "resumed": {}}
    for name in names:
        more, facts["resumed"][name] = resumed(name)
        arrays |= more
    np.savez_compressed(out.with_suffix(".npz"), **arrays)
    out.with_suffix(".json").write_text(json.dumps(facts, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
