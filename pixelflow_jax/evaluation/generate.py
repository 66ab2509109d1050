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
from pixelflow_jax.sampler import Model, Samples, image_keys, sample


class Generated(NamedTuple):
    """Images float32 [n, h, w, c], nominally [-1, 1], and how they came about.

    `stages` are the states at the end of each stage, at its own size; `clean` [steps,
    n, h, w, c] the clean images implied at every step, if recorded.
    """

    images: np.ndarray
    clean: np.ndarray | None = None
    stages: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """Samples images of `size` (height, width) from classes or texts.

    `batch_size` images are drawn at a time, spread over the mesh; image i depends on
    (seed, i) and its condition alone. `guide` is the weaker network of `AutoGuidance`.
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
    guide: Network | None = None
    doubled: bool = False

    def __call__(
        self,
        params: dict,
        given: np.ndarray | dict[str, np.ndarray],
        *,
        seed: int = 0,
        first: int = 0,
        record: bool = False,
        progress: bool = False,
        guide_params: dict | None = None,
        frozen: dict | None = None,
    ) -> Generated:
        """One image for each label of `given` [n]; they are numbered from `first` on.

        Other conditioners than class labels read a dict of arrays [n, ...], with the
        parameters `frozen` of their encoders. `record` keeps the clean images implied
        at every step; `progress` shows a bar; `guide_params` are the parameters of the
        `guide`.
        """
        if not isinstance(given, dict):
            given = {"label": np.asarray(given, np.int32)}
        count = min(map(len, given.values()))
        if not count:
            raise ValueError("There is nothing to sample: give at least one label.")
        shards = sharding.batch_shards(self.mesh)
        wanted = min(self.batch_size, count)
        size = -(-wanted // shards) * shards  # every device takes the same number
        parts = []
        starts = range(0, count, size)
        with jax.set_mesh(self.mesh):
            for start in tqdm(starts, disable=not progress, unit="batch"):
                number = start + np.arange(size)
                # What is over repeats, to fill the batch.
                part = {name: a[number % count] for name, a in given.items()}
                arrays = jax.device_put(
                    ((first + number).astype(np.uint32), part),
                    sharding.batch_sharding(self.mesh),
                )
                drawn = self._program(
                    params, *arrays, np.uint32(seed), record, guide_params, frozen
                )
                parts.append(_trim(_on_host(drawn), count - start))
        stages = zip(*(part.stages for part in parts), strict=True)
        return Generated(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.clean for part in parts], 1) if record else None,
            tuple(map(np.concatenate, stages)),
        )

    @functools.cached_property
    def _program(self):
        return jax.jit(self.trace, static_argnums=4)

    def trace(
        self,
        params: dict,
        index: Array,
        given: dict[str, Array],
        seed: Array,
        record: bool,
        guide_params: dict | None = None,
        frozen: dict | None = None,
    ) -> Samples:
        """The program for one batch, as a function of arrays."""
        frozen = frozen or {}
        cond = self.conditioner.encode(frozen, given)
        return sample(
            self.network.apply,
            params,
            image_keys(seed, index),
            cond,
            self.conditioner.null(frozen, cond, self.model, given),
            size=(*self.size, self.model.channels),
            stages=self.stages,
            prediction=self.prediction,
            guidance=self.guidance,
            solver=self.solver,
            grid=self.grid,
            guide=self.guide and Model(self.guide.apply, guide_params),
            doubled=self.doubled,
            record=record,
        )

    def check(self) -> None:
        """Trace the program without compiling it; raises what it would raise."""
        index = jax.ShapeDtypeStruct((1,), np.uint32)
        seed = jax.ShapeDtypeStruct((), np.uint32)
        program = functools.partial(self.trace, record=False)
        shapes = {
            "guide_params": self.guide and self.guide.shapes(),
            "frozen": self.conditioner.shapes(),
        }
        given = self.conditioner.example(1)
        jax.eval_shape(program, self.network.shapes(), index, given, seed, **shapes)


def _on_host(drawn: Samples) -> Samples:
    """The whole samples as numpy arrays, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(drawn)
    return multihost_utils.process_allgather(drawn, tiled=True)


def _trim(drawn: Samples, n: int) -> Generated:
    clean = None if drawn.clean is None else drawn.clean[:, :n]
    stages = tuple(stage[:n] for stage in drawn.stages)
    return Generated(drawn.images[:n], clean, stages)
