"""Many images from a trained denoiser, in batches of one compiled program."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from tqdm import tqdm

from pixelflow_jax import sharding
from pixelflow_jax.conditioning import Conditioner
from pixelflow_jax.flow.guidance import Guidance
from pixelflow_jax.flow.path import Stage
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.solver import Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.base import DenoiserConfig, Network
from pixelflow_jax.sampler import Samples, image_keys, sample


class Generated(NamedTuple):
    """Images float32 [n, h, w, c], nominally [-1, 1]; `clean` [steps, n, h, w, c]."""

    images: np.ndarray
    clean: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """Samples class-conditional images of `size` (height, width).

    `batch_size` images are drawn at a time, spread over the mesh; image i depends on
    (seed, i) and its label alone.
    """

    model: DenoiserConfig
    network: Network
    conditioner: Conditioner
    stages: tuple[Stage, ...]
    prediction: Prediction
    guidance: Guidance
    solver: Solver
    grid: Grid
    size: tuple[int, int]
    batch_size: int
    mesh: jax.sharding.Mesh

    def __call__(
        self,
        params: dict,
        labels: np.ndarray,
        *,
        seed: int = 0,
        first: int = 0,
        record: bool = False,
        progress: bool = False,
    ) -> Generated:
        """One image for each of `labels` [n]; they are numbered from `first` on.

        `record` keeps the clean images implied at every step; `progress` shows a bar.
        """
        labels = np.asarray(labels, np.int32)
        if not len(labels):
            raise ValueError("There is nothing to sample: give at least one label.")
        shards = sharding.batch_shards(self.mesh)
        wanted = min(self.batch_size, len(labels))
        size = -(-wanted // shards) * shards  # every device takes the same number
        parts = []
        starts = range(0, len(labels), size)
        with jax.set_mesh(self.mesh):
            for start in tqdm(starts, disable=not progress, unit="batch"):
                part = labels[start : start + size]
                index = first + start + np.arange(size)
                padded = np.resize(part, size)  # repeats labels to fill the batch
                drawn = self._batch(params, index, padded, seed, record)
                parts.append(_trim(_on_host(drawn), len(part)))
        images = np.concatenate([part.images for part in parts])
        if not record:
            return Generated(images)
        return Generated(images, np.concatenate([part.clean for part in parts], 1))

    def _batch(
        self, params: dict, index: np.ndarray, labels: np.ndarray, seed: int, record
    ) -> Samples:
        layout = sharding.batch_sharding(self.mesh)
        arrays = jax.device_put((index.astype(np.uint32), labels), layout)
        return self._program(params, *arrays, np.uint32(seed), record)

    @functools.cached_property
    def _program(self):
        return jax.jit(self.trace, static_argnums=4)

    def trace(
        self, params: dict, index: Array, labels: Array, seed: Array, record: bool
    ) -> Samples:
        """The program for one batch, as a function of arrays."""
        cond = self.conditioner.encode({}, {"label": labels})
        return sample(
            self.network.apply,
            params,
            image_keys(seed, index),
            cond,
            self.conditioner.null(cond, self.model),
            size=(*self.size, self.model.channels),
            stages=self.stages,
            prediction=self.prediction,
            guidance=self.guidance,
            solver=self.solver,
            grid=self.grid,
            record=record,
        )

    def check(self) -> None:
        """Trace the program without compiling it; raises what it would raise."""
        one = jax.ShapeDtypeStruct((1,), np.int32)
        seed = jax.ShapeDtypeStruct((), np.uint32)
        program = functools.partial(self.trace, record=False)
        jax.eval_shape(program, self.network.shapes(), one, one, seed)


def _on_host(drawn: Samples) -> Samples:
    """The whole samples as numpy arrays, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(drawn)
    return multihost_utils.process_allgather(drawn, tiled=True)


def _trim(drawn: Samples, n: int) -> Generated:
    clean = None if drawn.clean is None else drawn.clean[:, :n]
    return Generated(drawn.images[:n], clean)
