"""The memory that converting a checkpoint takes, against the checkpoint's size.

python -m benchmarks.convert_memory --config configs/pixelflow.py:xl4_256

Writes official weights of the config's model (random values, float32) to a temporary
folder, converts them there and back in processes of their own, and prints the peak of
each process's resident memory (files it maps are in it), which the kernel counts.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from benchmarks import harness
from pixelflow_jax.convert import families
from pixelflow_jax.models.interface import DenoiserConfig
from pixelflow_jax.tensors import safetensors_files as safe
from pixelflow_jax.tensors import torch_files as pytorch
from pixelflow_jax.tensors.lazy import LazyTensor

# Says its own peak: what os.wait4 tells begins at the memory of the process it forks.
COMMAND = """
import re, sys
from pixelflow_jax.convert.__main__ import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1], file=sys.stderr)
sys.exit(code)
"""


def official(model: DenoiserConfig) -> dict[str, LazyTensor]:
    """Official tensors of a model, drawn when they are read."""
    shapes, found = families.shapes_of(model), {}
    for row in families.table_of(model):
        found |= row.official_shapes(shapes)
    return {
        key: _random(shape, seed) for seed, (key, shape) in enumerate(found.items())
    }


def _random(shape: tuple[int, ...], seed: int) -> LazyTensor:
    def fetch(i: int | None) -> np.ndarray:
        return np.random.default_rng(seed).random(shape, np.float32)

    return LazyTensor(shape, np.dtype(np.float32), fetch)


def peak(*arguments: object) -> int:
    """The most resident memory of a command, in bytes; it must succeed."""
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return int(run.stderr.split()[-1]) * 1024


def measure(model: DenoiserConfig, torch: bool) -> tuple[int, int, dict[str, int]]:
    """The weights' size, the peak of `inspect`, which reads none, and of each command.

    All in bytes.
    """
    tensors = official(model)
    size = sum(tensor.nbytes for tensor in tensors.values())
    suffixes = [".safetensors", ".pt"] if torch else [".safetensors"]
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        safe.write(folder / "official.safetensors", tensors, {})
        if torch:
            pytorch.write(folder / "official.pt", tensors)
        for suffix in suffixes:
            source, out = folder / f"official{suffix}", folder / f"ours{suffix[1:]}"
            safer = folder / f"safer-{suffix[1:]}.safetensors"
            commands = {
                "from-torch": (source, out),
                "to-torch": (out, folder / f"back{suffix}"),
                "to-safetensors": (source, safer),
            }
            for name, paths in commands.items():
                found[f"{name} {suffix}"] = peak(name, *paths)
        return size, peak("inspect", source), found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/pixelflow.py:xl4_256")
    parser.add_argument("--no-torch", action="store_true", help="safetensors alone")
    arguments = parser.parse_args()
    model = harness.load_config(arguments.config).model
    size, idle, found = measure(model, not arguments.no_torch)
    print(f"weights of {size / 1e9:.2f} GB; to look at them takes {idle / 1e9:.2f} GB")
    print("| command | peak GB | of the weights |\n|---|---|---|")
    for name, most in found.items():
        print(f"| {name} | {most / 1e9:.2f} | {most / size:.2f} |")


if __name__ == "__main__":
    main()
