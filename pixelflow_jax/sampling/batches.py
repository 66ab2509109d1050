"""Many images from a trained denoiser, in batches of one compiled program."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from tqdm.auto import tqdm

from pixelflow_jax import backend, sharding
from pixelflow_jax.conditioning.interface import Conditioner
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.models.interface import (
    Condition,
    DenoiserConfig,
    Network,
    frozen_shapes,
)
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Sampler, Samples, Walks, image_keys

Given = np.ndarray | dict[str, np.ndarray]  # labels [n], or arrays [n, ...] by name


class Weights(NamedTuple):
    """The arrays that all images of a program share.

    `params` are the denoiser's parameters, `frozen_params` those of the frozen networks
    that it or the conditioner looks through, by name, with the prediction's constants
    under `prediction.CONSTANTS`; `guide` has the same of the weaker network.
    """

    params: dict
    frozen_params: dict = {}
    guide: "Weights | None" = None


class Generated(NamedTuple):
    """Images float32 [n, h, w, c], nominally [-1, 1], and how they came about.

    `stages` are the states at the end of each stage, at its own size; `clean` [steps,
    n, h, w, c] the clean images implied at every step, if recorded.
    """

    images: np.ndarray
    clean: np.ndarray | None = None
    stages: tuple[np.ndarray, ...] = ()


class Request(NamedTuple):
    """Which images are wanted: one for each row of `given`, numbered from `first` on.

    `given` is what the conditioner reads, arrays [n, ...] by name; image i's noise
    depends on (seed, first + i). `record` keeps the clean images of every step.
    `seeds` [n] give each image a seed of its own instead, of which it is number
    `first`: images of one seed come from the same noise.
    """

    given: dict[str, np.ndarray]
    seed: int = 0
    first: int = 0
    record: bool = False
    seeds: np.ndarray | None = None

    @property
    def count(self) -> int:
        """How many images there are."""
        return min(map(len, self.given.values()))

    def each_seed(self) -> tuple[int, ...]:
        """The seed of every image."""
        if self.seeds is None:
            return (self.seed,) * self.count
        return tuple(self.seeds.tolist())

    def numbers(self) -> tuple[int, ...]:
        """The number of every image, of its seed."""
        several = self.seeds is not None
        return tuple(self.first + (0 if several else i) for i in range(self.count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generator:
    """Samples images of `size` (height, width) from classes or texts.

    Each device draws up to `batch_size` images at a time (`per_device`); image i
    depends on (seed, i) and its condition alone. `guide` is the weaker network of
    `AutoGuidance`.
    """

    sampler: Sampler
    network: Network
    conditioner: Conditioner
    model: DenoiserConfig
    size: tuple[int, int]
    batch_size: int
    mesh: jax.sharding.Mesh
    guide: Network | None = None

    def __call__(
        self,
        weights: Weights,
        given: Given,
        *,
        seed: int = 0,
        first: int = 0,
        record: bool = False,
        progress: bool = False,
    ) -> Generated:
        """One image for each label of `given` [n]; they are numbered from `first` on.

        Other conditioners than class labels read a dict of arrays [n, ...]. `record`
        keeps the clean images implied at every step; `progress` shows a bar.
        """
        request = Request(_named(given), seed, first, record)
        return self.draw(weights, request, progress=progress)

    def draw(
        self, weights: Weights, request: Request, *, progress: bool = False
    ) -> Generated:
        """The images of a request, all in memory; `progress` shows a bar."""
        if not request.count:
            raise ValueError("There is nothing to sample: give at least one label.")
        per_device = self.per_device(request.count)
        batches = self.iterate(weights, request, per_device=per_device)
        return gathered(batches, request.count, progress)

    def iterate(
        self, weights: Weights, request: Request, *, per_device: int, start: int = 0
    ) -> Iterator[tuple[int, Generated]]:
        """Yield (place, images) batch by batch, from place `start` in the request on.

        Every device draws `per_device` images at a time, whatever is wanted: a last
        batch is filled with repeated rows, which are not yielded. Batches begin at
        multiples of `per_device`, so that an image comes out of the same row of the
        same program wherever the iteration started. Every process gets all images.
        While the caller works on a batch the devices draw the next.
        """
        size = per_device * sharding.batch_shards(self.mesh)
        count = request.count
        starts = range(start - start % per_device, count, size)
        if not starts:
            return
        running = [self._dispatch(weights, request, starts[0], size)]
        for place in starts:
            # Waits; one batch at a time lies on the devices.
            drawn = on_host(running.pop(), max(start - place, 0), count - place)
            if place + size < count:
                running.append(self._dispatch(weights, request, place + size, size))
            yield max(start, place), drawn

    def _dispatch(
        self, weights: Weights, request: Request, start: int, size: int
    ) -> Samples:
        """The batch of `size` from place `start` on; does not wait for it."""
        with jax.set_mesh(self.mesh):
            arrays = (weights, *self.batch(request, start, size))
            # What is recorded has as many steps as the grid.
            walks = () if request.record else self.walks
            program = self._program(request.record, walks, *arrays)
            return program(*arrays, walks=walks)

    def batch(
        self, request: Request, start: int, size: int
    ) -> tuple[Array, dict[str, Array], Array]:
        """The arguments of `trace` for `size` images from place `start` on.

        Numbers [size], what the conditioner reads, and seeds [size], on the devices.
        """
        number = start + np.arange(size)
        # What is over repeats, to fill the batch.
        rows = {name: a[number % request.count] for name, a in request.given.items()}
        numbers, seed = request.first + number, request.seed
        if request.seeds is not None:
            numbers = np.full_like(number, request.first)
            seed = request.seeds[number % request.count]
        seeds = np.broadcast_to(np.asarray(seed, np.uint32), number.shape)
        arrays = (numbers.astype(np.uint32), rows, seeds)
        return jax.device_put(arrays, sharding.batch_sharding(self.mesh))

    def compile(self, weights: Weights, given: Given, *, record: bool = False) -> None:
        """Compile what a call with these arguments runs, so that it starts at once.

        Of all arrays only shapes and placement matter.
        """
        request = Request(_named(given), record=record)
        size = self.per_device(request.count) * sharding.batch_shards(self.mesh)
        with jax.set_mesh(self.mesh):
            walks = () if record else self.walks
            self._program(record, walks, weights, *self.batch(request, 0, size))

    def per_device(self, count: int) -> int:
        """How many images each device draws at a time where `count` are wanted.

        The fixed batch of the program, on which the last bits of an image depend. On
        the CPU it is one, which costs a tenth more time: there images depend on neither
        the count, nor the devices, nor `batch_size`. Elsewhere it is `batch_size`; a
        set that is smaller takes the next power of two, so that it does not wait for
        images that nobody wants.
        """
        if self.mesh.devices.flat[0].platform == "cpu":
            return 1
        share = -(-count // sharding.batch_shards(self.mesh))
        batch = 1
        while batch < min(share, self.batch_size):
            batch *= 2
        return min(batch, self.batch_size)

    def _program(
        self, record: bool, walks: Walks, *arrays: object
    ) -> Callable[..., Samples]:
        """The compiled `trace` for arrays like these, built when first asked for."""
        leaves, structure = jax.tree.flatten((arrays, walks))
        settings = self.program if walks else repr(self.sampler)
        key = (record, settings, structure, *map(_kind, leaves))
        if key not in self._programs:
            options = backend.loop_options()
            trace = functools.partial(self.trace, record=record)
            program = jax.jit(trace, compiler_options=options)
            self._programs[key] = program.lower(*arrays, walks=walks).compile()
        return self._programs[key]

    @functools.cached_property
    def _programs(self) -> dict[tuple, Callable[..., Samples]]:
        return {}

    @functools.cached_property
    def step_programs(self) -> dict[tuple, Callable[..., Any]]:
        """Programs of single steps, for who watches; kept here to be shared."""
        return {}

    @functools.cached_property
    def walks(self) -> Walks:
        """The steps, as a program is given them; empty where it finds them itself."""
        return self.sampler.walks()

    @functools.cached_property
    def program(self) -> str:
        """What of the sampler's settings its programs are compiled for."""
        return self.sampler.program()

    def with_sampler(self, sampler: Sampler, batch_size: int) -> "Generator":
        """The same with other settings; what both can use is compiled once."""
        other = dataclasses.replace(self, sampler=sampler, batch_size=batch_size)
        vars(other)["_programs"] = self._programs
        vars(other)["step_programs"] = self.step_programs
        return other

    def trace(
        self,
        weights: Weights,
        index: Array,
        given: dict[str, Array],
        seed: Array,
        record: bool,
        walks: Walks = (),
    ) -> Samples:
        """The program for one batch, as a function of arrays.

        Weights are cast here, once, and not by the network in every step. With `walks`
        the steps are an argument, and not those of the sampler.
        """
        net, guide = self.nets(weights)
        cond, null = self.conditions(weights, given)
        return self.sampler(
            net,
            image_keys(seed, index),
            cond,
            null,
            self.shape,
            guide=guide,
            record=record,
            walks=walks,
        )

    def nets(self, weights: Weights) -> tuple[Net, Net | None]:
        """The denoiser with its weights, cast once, and the weaker one, if any."""
        guide = None
        if self.guide is not None and weights.guide is not None:
            guide = _net(self.guide, weights.guide)
        return _net(self.network, weights), guide

    def conditions(
        self, weights: Weights, given: dict[str, Array]
    ) -> tuple[Condition, Condition]:
        """What is drawn, and what guidance leads away from."""
        frozen_params = weights.frozen_params
        cond = self.conditioner.encode(frozen_params, given)
        null = self.conditioner.null(frozen_params, cond, self.model, given)
        return cond, null

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*self.size, self.model.channels)

    def check(self) -> None:
        """Trace the program without compiling it; raises what it would raise."""
        shapes = Weights(
            self.network.shapes(),
            self.frozen_shapes(),
            guide=self.guide and Weights(self.guide.shapes(), self.frozen_shapes()),
        )
        index = jax.ShapeDtypeStruct((1,), np.uint32)
        seed = jax.ShapeDtypeStruct((), np.uint32)
        # The steps of a cascade's stages call the network alike: one trace will do.
        once = dataclasses.replace(self.network, apply=jax.jit(self.network.apply))
        program = dataclasses.replace(self, network=once).trace
        program = functools.partial(program, record=False)
        jax.eval_shape(program, shapes, index, self.conditioner.example(1), seed)

    def frozen_shapes(self) -> dict:
        """The parameters of all frozen networks, as shapes."""
        own = frozen_shapes(self.model)
        constants = self.sampler.prediction.constant_shapes(self.model.channels)
        return self.conditioner.shapes() | own | {CONSTANTS: constants}


def gathered(
    batches: Iterable[tuple[int, Generated]], count: int, progress: bool
) -> Generated:
    """All of `count` images that come batch by batch; `progress` shows a bar."""
    parts = []
    with tqdm(total=count, disable=not progress, unit="image") as bar:
        for _, part in batches:
            parts.append(part)
            bar.update(len(part.images))
    stages = zip(*(part.stages for part in parts), strict=True)
    clean = [part.clean for part in parts if part.clean is not None]
    return Generated(
        np.concatenate([part.images for part in parts]),
        np.concatenate(clean, 1) if clean else None,
        tuple(map(np.concatenate, stages)),
    )


def _net(network: Network, weights: Weights) -> Net:
    params = network.cast_for_inference(weights.params)
    return Net(network, params, weights.frozen_params)


def _named(given: Given) -> dict[str, np.ndarray]:
    """What a conditioner reads, labels alone by their name."""
    return given if isinstance(given, dict) else {"label": np.asarray(given, np.int32)}


def _kind(array: Array | np.ndarray) -> tuple:
    """What a compiled program asks of an argument: shape, type, and where it lies."""
    if isinstance(array, Array) and array.committed:
        return array.shape, array.dtype, array.sharding
    return array.shape, array.dtype, None


def on_host(drawn: Samples, start: int, stop: int) -> Generated:
    """Samples number `start` up to `stop` as numpy arrays, on every process."""
    if jax.process_count() == 1:
        images, stages, clean = jax.device_get(drawn)
    else:
        images, stages, clean = multihost_utils.process_allgather(drawn, tiled=True)
    return Generated(
        images[start:stop],
        None if clean is None else clean[:, start:stop],
        tuple(states[start:stop] for states in stages),
    )
