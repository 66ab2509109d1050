"""What was trained, on disk, until it is measured: a stop in between loses nothing."""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.study.training import Trained
from pixelflow_jax.atomic import atomic_write
from pixelflow_jax.tensors.paths import by_path, nested

AVERAGE, LOSSES, SECONDS = "average:", "losses", "segment_seconds"


def place(folder: pathlib.Path, row: str, seeds: Sequence[int], steps: int):
    """The file of a row's seeds after that many steps."""
    name = f"{row}_{'_'.join(map(str, seeds))}_{steps}.npz"
    return folder / "trained" / name


def save(path: pathlib.Path, trained: Trained) -> None:
    """Write averages and losses; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        f"{AVERAGE}{name}/{leaf}": array
        for name, tree in jax.device_get(trained.averages).items()
        for leaf, array in by_path(tree).items()
    }
    arrays |= {LOSSES: trained.losses, SECONDS: np.array(trained.segment_seconds)}
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def load(path: pathlib.Path) -> Trained | None:
    """What `save` wrote; None where there is no such file."""
    if not path.exists():
        return None
    averages: dict[str, dict] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            if key.startswith(AVERAGE):
                name, _, leaf = key.removeprefix(AVERAGE).partition("/")
                averages.setdefault(name, {})[leaf] = arrays[key]
        losses, seconds = arrays[LOSSES], arrays[SECONDS].tolist()
    trees = {name: nested(leaves) for name, leaves in averages.items()}
    return Trained(jax.device_put(trees), losses, seconds)
