"""Drawing step by step, so that someone can look at the images that are coming.

The same steps as in one program, each a program of its own, so that the host hears of
every one. What a step needs of texts is computed once a batch.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from pixelflow_jax import backend, sharding
from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.errors import PipelineError
from pixelflow_jax.models.interface import Condition
from pixelflow_jax.sampling.batches import (
    Generated,
    Generator,
    Request,
    Weights,
    on_host,
)
from pixelflow_jax.sampling.sampler import Noise, Samples, Walk, image_keys, keyed_noise

# callback(step, steps, images): how far it is, and what can be seen of all images.
Callback = Callable[[int, int, np.ndarray], object]
GREY = 128  # of images that are still to come


class Batch(NamedTuple):
    """What decides a batch of images: numbers [b] and seeds [b], and conditions."""

    index: Array
    seed: Array
    cond: Condition
    null: Condition

    def noise(self, generator: Generator) -> Noise:
        """The noise of these images."""
        keys = image_keys(self.seed, self.index)
        return keyed_noise(keys, generator.shape, generator.sampler.stages)


class Step(NamedTuple):
    """Behind a step: what the solver remembers, the state, the clean images seen."""

    carry: Any
    x: Array
    clean: Array


def watched(
    generator: Generator, weights: Weights, request: Request, callback: Callback
) -> Iterator[tuple[int, Generated]]:
    """Yield (place, images) batch by batch, and call back after every step.

    `callback(step, steps, images)` is told the number of the step, from 1 to the number
    of all steps of all batches, and gets all images of the request, uint8 [n, h, w, c]:
    those that are drawn, the clean images that the network sees in those being drawn,
    and grey for those to come. What it raises ends the drawing. With `record` the clean
    images of all steps are kept. Raises PipelineError with several processes.
    """
    if jax.process_count() > 1:
        raise PipelineError(
            "callback= is for one process: with several, draw without it."
        )
    size = generator.per_device(request.count) * sharding.batch_shards(generator.mesh)
    starts = range(0, request.count, size)
    steps = len(starts) * sum(map(len, generator.sampler.ends()))
    images = np.full((request.count, *generator.shape), GREY, np.uint8)
    done = 0
    for place in starts:
        part = slice(place, min(place + size, request.count))
        clean, stages = [], []
        for ends_stage, step in _steps(generator, weights, request, place, size):
            done += 1
            last = ends_stage and len(stages) == len(generator.sampler.stages) - 1
            shown = jax.device_get(step.x if last else step.clean)
            shown = shown[: part.stop - part.start]
            images[part] = to_uint8(shown)
            callback(done, steps, images.copy())
            if request.record:
                clean.append(shown)
            if ends_stage:
                stages.append(step.x)
        drawn = on_host(Samples(stages[-1], tuple(stages)), 0, part.stop - part.start)
        yield place, drawn._replace(clean=np.stack(clean) if clean else None)


def _steps(
    generator: Generator, weights: Weights, request: Request, place: int, size: int
) -> Iterator[tuple[bool, Step]]:
    """Every step of a batch, and whether it ends a stage."""
    run = functools.partial(_run, generator)
    with jax.set_mesh(generator.mesh):
        index, given, seed = generator.batch(request, place, size)
        cond, null = run("encode", _encode, weights, given)
        batch = Batch(index, seed, cond, null)
    previous = None
    for stage, ends in enumerate(generator.sampler.ends()):
        walk = generator.walks[stage] if generator.walks else None
        with jax.set_mesh(generator.mesh):
            carry = run(f"start {stage}", _start, stage, batch, previous)
        begun = 0
        for end in ends:
            own = walk and walk.between(begun, end)
            with jax.set_mesh(generator.mesh):
                step = run(f"step {stage}", _advance, stage, weights, batch, own, carry)
            yield end == ends[-1], step
            carry, begun, previous = step.carry, end, step.x


def _run(generator: Generator, name: str, function: Callable, *arguments: Any) -> Any:
    """A function of the generator and arrays, compiled once for settings alike."""
    key = (name, generator.program)
    if key not in generator.step_programs:
        static = tuple(i for i, a in enumerate(arguments) if isinstance(a, int))
        generator.step_programs[key] = jax.jit(
            functools.partial(function, generator),
            static_argnums=static,
            compiler_options=backend.loop_options(),
        )
    return generator.step_programs[key](*arguments)


def _encode(
    generator: Generator, weights: Weights, given: dict[str, Array]
) -> tuple[Condition, Condition]:
    return generator.conditions(weights, given)


def _start(
    generator: Generator, stage: int, batch: Batch, previous: Array | None
) -> Any:
    return generator.sampler.start(stage, previous, batch.noise(generator))


def _advance(
    generator: Generator,
    stage: int,
    weights: Weights,
    batch: Batch,
    walk: Walk | None,
    carry: Any,
) -> Step:
    net, guide = generator.nets(weights)
    branches = generator.sampler.fields(stage, net, batch.cond, batch.null, guide=guide)
    noise = batch.noise(generator)
    return Step(*generator.sampler.advance(stage, branches, carry, walk, noise))
