"""A training step or a sampler as a program with its arguments and its cost."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from pixelflow_jax import backend, build, sharding
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.prediction import CONSTANTS
from pixelflow_jax.flow.solver import Heun
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.losses.perceptual import Lpips, PDino
from pixelflow_jax.models.interface import count
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling.batches import Weights
from pixelflow_jax.training.state import TrainState
from pixelflow_jax.training.step import abstract_state, fresh_state, make_step
from pixelflow_jax.training.throughput import TRAINING_PASSES

# A step of AdamW and an average reads gradient, parameter, two moments and the average,
# and writes all but the gradient: nine float32 numbers a parameter.
STEP_BYTES = 36
WEIGHT_BYTES = 2  # of a bfloat16 weight, which a network call reads once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """A jitted `program`, and what measuring it takes.

    Its arguments are what the jitted `setup()` makes on the device, then what `given()`
    brings from the host; `shapes` are all of them as shapes, so that compiling takes no
    memory. `following(arguments, out)` are the arguments of the next run, `result(out)`
    is what must be finite. One run serves `images`, needs `flops` operations and
    `calls` network calls an image, and must move `moved` bytes whatever its batch.
    """

    program: Callable
    setup: Callable[[], tuple]
    given: Callable[[], tuple]
    shapes: tuple
    following: Callable[[tuple, object], tuple]
    result: Callable[[object], object]
    mesh: jax.sharding.Mesh
    images: int
    flops: float
    calls: float
    moved: float

    def arguments(self) -> tuple:
        """The arguments of the first run; call it inside the mesh."""
        return *self.setup(), *self.given()


def training(
    config: Experiment,
    objective: Objective | None = None,
    frozen_params: dict | None = None,
    conditions: dict[str, np.ndarray] | None = None,
) -> Work:
    """The training step of `config`, or of another `objective`, on random images.

    `frozen_params` are the parameters of frozen networks (None: random ones of their
    shapes), `conditions` those of the images (None: random labels).
    """
    objective, mesh = objective or build.objective(config), config.mesh.build()
    settings = build.step_settings(config)
    size, batch = config.data.image_size, config.batch_size
    teachers = {} if frozen_params is not None else objective.frozen_shapes()
    made = abstract_state(objective, settings, mesh), _everywhere(teachers, mesh)
    # As in nearly all steps: the adaptive weight moves once in fifty, late in a run.
    step = make_step(objective, settings, weight_is_due=False)

    def train(
        state: TrainState, teachers: dict, frozen_params: dict, batch: dict
    ) -> tuple:
        return step(state, batch, {**teachers, **frozen_params})

    def setup() -> tuple:
        constants = jax.tree.map(_waves, objective.constant_shapes())
        state = fresh_state(objective, settings, mesh, constants)
        return state, jax.tree.map(_waves, teachers)

    def given() -> tuple:
        return frozen_params or {}, random_batch(config, mesh, conditions)

    flops = TRAINING_PASSES * objective.forward_flops(size, size)
    flops += teacher_flops(objective, size)
    return Work(
        program=jax.jit(train, donate_argnums=0),
        setup=jax.jit(setup, out_shardings=jax.tree.map(lambda a: a.sharding, made)),
        given=given,
        shapes=(*made, *_shapes(given())),
        following=lambda arguments, out: (out[0], *arguments[1:]),
        result=lambda out: out[1]["loss"],
        mesh=mesh,
        images=batch,
        flops=batch * flops,
        calls=len(objective.stages),
        moved=STEP_BYTES * count(made[0].params),
    )


def sampling(config: Experiment, batch: int) -> Work:
    """Drawing `batch` images with the sampling settings of `config`."""
    size, network = config.data.image_size, build.network(config)
    generator = build.generator(config, size, size)
    mesh, shapes = generator.mesh, network.shapes()
    layout = sharding.state_sharding(shapes, mesh)

    def setup() -> tuple:
        # A fresh decoder is zero; noise in its place keeps the work real.
        return (jax.tree.map(_disturbed, network.init(jax.random.key(0))),)

    def given() -> tuple:
        index = np.arange(batch)
        labels = index % config.model.num_classes
        split = index.astype(np.uint32), {"label": labels.astype(np.int32)}
        split = jax.device_put(split, sharding.batch_sharding(mesh))
        return *split, jax.device_put(np.uint32(0), sharding.replicated(mesh))

    constants = config.prediction.constant_shapes(config.model.channels)

    def draw(params: dict, index: jax.Array, given: dict, seed: jax.Array) -> jax.Array:
        weights = Weights(params, {CONSTANTS: jax.tree.map(_waves, constants)})
        return generator.trace(weights, index, given, seed, False).images

    cost = sampling_cost(config)
    return Work(
        program=jax.jit(draw, compiler_options=backend.loop_options()),
        setup=jax.jit(setup, out_shardings=(layout,)),
        given=given,
        shapes=(jax.tree.map(_placed, shapes, layout), *_shapes(given())),
        following=lambda arguments, out: arguments,
        result=lambda out: out,
        mesh=mesh,
        images=batch,
        flops=batch * cost.flops,
        calls=cost.calls,
        moved=WEIGHT_BYTES * count(shapes) * cost.runs,
    )


class Cost(NamedTuple):
    """Of drawing an image: network calls, how often the network runs, operations.

    A guided run makes two calls. An adaptive solver says nothing beforehand: NaN.
    """

    calls: float
    runs: float
    flops: float


def sampling_cost(config: Experiment) -> Cost:
    """What an image costs with the sampling settings of `config`."""
    size, settings = config.data.image_size, config.sampling
    if isinstance(settings.solver, Dopri5):
        return Cost(math.nan, math.nan, math.nan)
    calls, runs, flops = 0.0, 0.0, 0.0
    for number, stage in enumerate(build.stages(config)):
        times = settings.grid.times(number)[:-1]
        each = 1 + settings.guidance.active(times, number)
        often = np.ones(len(times))
        if isinstance(settings.solver, Heun) and not settings.solver.reuse:
            often[:-1] = 2
        calls += float(np.sum(often * each))
        runs += float(np.sum(often))
        flops += float(np.sum(often * each)) * config.model.flops(
            *stage.size(size, size)
        )
    return Cost(calls, runs, flops)


def teacher_flops(objective: Objective, size: int) -> float:
    """What the teachers add to a step, an image, by XLA's count of their forward pass.

    Real images are looked at once; the predicted ones also send a gradient back, which
    takes one more pass, for no gradient reaches a teacher's weights.
    """
    shapes, teachers = objective.terms.shapes(), objective.terms.teachers
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    dino, lpips = teachers.dino, teachers.lpips
    # XLA counts neither a loop's repeats nor cuDNN's attention.
    plain = StackConfig(remat="none", scan=False)
    dino = dataclasses.replace(dino, attention="xla", stack=plain)
    terms = {type(term) for term in objective.terms.terms}
    passes = {"dino": 1 + 2 * (PDino in terms), "lpips": 3 * (Lpips in terms)}
    looks = {"dino": dino.features, "lpips": lpips.features}
    return sum(
        passes[name] * harness.counted(jax.jit(looks[name]).lower(own, image))
        for name, own in shapes.items()
    )


def random_batch(
    config: Experiment,
    mesh: jax.sharding.Mesh,
    conditions: dict[str, np.ndarray] | None = None,
) -> dict:
    """Random images of the size that the config asks for, with labels or conditions."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, *[config.data.image_size] * 2, 3)
    image = rng.uniform(-1, 1, shape).astype(np.float32)
    if conditions is None:
        labels = rng.integers(0, config.model.num_classes, len(image))
        conditions = {"label": labels.astype(np.int32)}
    return sharding.global_batch({"image": image, **conditions}, mesh)


def _shapes(arrays: object) -> object:
    return jax.tree.map(lambda a: _placed(a, a.sharding), arrays)


def _everywhere(shapes: dict, mesh: jax.sharding.Mesh) -> dict:
    return jax.tree.map(lambda s: _placed(s, sharding.replicated(mesh)), shapes)


def _placed(array: object, layout: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=layout)


def _waves(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Small waves: no network turns them into infinities."""
    waves = jnp.sin(jnp.arange(shape.size, dtype=jnp.float32))
    return (0.05 * waves).reshape(shape.shape).astype(shape.dtype)


def _disturbed(p: jax.Array) -> jax.Array:
    return p + 0.01 * jnp.sin(jnp.arange(p.size)).reshape(p.shape)
