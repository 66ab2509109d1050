"""Many images from a trained denoiser, in batches of one compiled program."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from tqdm import tqdm

from pixelflow_jax import sharding
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.flow.guidance import Guidance
from pixelflow_jax.flow.path import Stage
from pixelflow_jax.flow.prediction import Prediction
from pixelflow_jax.flow.solver import Solver
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.interface import DenoiserConfig, Network
from pixelflow_jax.sampling.sampler import Model, Samples, image_keys, sample


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
        frozen_params: dict | None = None,
    ) -> Generated:
        """One image for each label of `given` [n]; they are numbered from `first` on.

        Other conditioners than class labels read a dict of arrays [n, ...], with the
        parameters `frozen_params` of their encoders. `record` keeps the clean images implied
        at every step; `progress` shows a bar; `guide_params` are the parameters of the
        `guide`.
        """
        given = _named(given)
        count = min(map(len, given.values()))
        if not count:
            raise ValueError("There is nothing to sample: give at least one label.")
        size = self._size(count)
        fixed = {"guide_params": guide_params, "frozen_params": frozen_params}
        parts = []
        starts = range(0, count, size)
        with jax.set_mesh(self.mesh):
            for start in tqdm(starts, disable=not progress, unit="batch"):
                number = start + np.arange(size)
                # What is over repeats, to fill the batch.
                part = {name: a[number % count] for name, a in given.items()}
                arrays = (params, *self._batch(first + number, part, seed))
                drawn = self._program(record, *arrays, **fixed)(*arrays, **fixed)
                parts.append(_trim(_on_host(drawn), count - start))
        stages = zip(*(part.stages for part in parts), strict=True)
        return Generated(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.clean for part in parts], 1) if record else None,
            tuple(map(np.concatenate, stages)),
        )

    def compile(
        self,
        params: dict,
        given: np.ndarray | dict[str, np.ndarray],
        *,
        record: bool = False,
        guide_params: dict | None = None,
        frozen_params: dict | None = None,
    ) -> None:
        """Compile what a call with these arguments runs, so that it starts at once.

        Of all arrays only shapes and placement matter.
        """
        given = _named(given)
        number = np.arange(self._size(min(map(len, given.values()))))
        part = {name: a[np.zeros_like(number)] for name, a in given.items()}
        with jax.set_mesh(self.mesh):
            arrays = (params, *self._batch(number, part, 0))
            self._program(
                record, *arrays, guide_params=guide_params, frozen_params=frozen_params
            )

    def _size(self, count: int) -> int:
        """How many images are drawn at a time where `count` are wanted."""
        shards = sharding.batch_shards(self.mesh)
        wanted = min(self.batch_size, count)
        return -(-wanted // shards) * shards  # every device takes the same number

    def _batch(
        self, number: np.ndarray, given: dict[str, np.ndarray], seed: int
    ) -> tuple[Array, dict[str, Array], np.uint32]:
        """The arguments of `trace` that belong to the images of those numbers."""
        arrays = (number.astype(np.uint32), given)
        placed = jax.device_put(arrays, sharding.batch_sharding(self.mesh))
        return (*placed, np.uint32(seed))

    def _program(
        self, record: bool, *arrays: object, **fixed: object
    ) -> Callable[..., Samples]:
        """The compiled `trace` for arrays like these, built when first asked for."""
        leaves, structure = jax.tree.flatten((arrays, fixed))
        key = (record, structure, *map(_kind, leaves))
        if key not in self._programs:
            program = jax.jit(functools.partial(self.trace, record=record))
            self._programs[key] = program.lower(*arrays, **fixed).compile()
        return self._programs[key]

    @functools.cached_property
    def _programs(self) -> dict[tuple, Callable[..., Samples]]:
        return {}

    def trace(
        self,
        params: dict,
        index: Array,
        given: dict[str, Array],
        seed: Array,
        record: bool,
        guide_params: dict | None = None,
        frozen_params: dict | None = None,
    ) -> Samples:
        """The program for one batch, as a function of arrays.

        Weights are cast here, once, and not by the network in every step.
        """
        frozen_params = frozen_params or {}
        cond = self.conditioner.encode(frozen_params, given)
        guide = self.guide
        if guide:
            guide = Model(
                guide.apply, guide.cast_for_inference(guide_params), guide.precompute
            )
        return sample(
            self.network.apply,
            self.network.cast_for_inference(params),
            image_keys(seed, index),
            cond,
            self.conditioner.null(frozen_params, cond, self.model, given),
            size=(*self.size, self.model.channels),
            stages=self.stages,
            prediction=self.prediction,
            guidance=self.guidance,
            solver=self.solver,
            grid=self.grid,
            precompute=self.network.precompute,
            guide=guide,
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
            "frozen_params": self.conditioner.shapes(),
        }
        given = self.conditioner.example(1)
        jax.eval_shape(program, self.network.shapes(), index, given, seed, **shapes)


def _named(given: np.ndarray | dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a conditioner reads, labels alone by their name."""
    return given if isinstance(given, dict) else {"label": np.asarray(given, np.int32)}


def _kind(array: Array | np.ndarray) -> tuple:
    """What a compiled program asks of an argument: shape, type, and where it lies."""
    fixed = isinstance(array, Array) and array.committed
    return array.shape, array.dtype, array.sharding if fixed else None


def _on_host(drawn: Samples) -> Samples:
    """The whole samples as numpy arrays, on every process."""
    if jax.process_count() == 1:
        return jax.device_get(drawn)
    return multihost_utils.process_allgather(drawn, tiled=True)


def _trim(drawn: Samples, n: int) -> Generated:
    clean = None if drawn.clean is None else drawn.clean[:, :n]
    stages = tuple(stage[:n] for stage in drawn.stages)
    return Generated(drawn.images[:n], clean, stages)
