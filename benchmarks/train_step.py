"""One training step: images/s, MFU, memory and compile time.

python -m benchmarks.train_step --batch 32 128 --remat names none

Each variant runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import dataclasses

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
import numpy as np  # isort: skip

from pixelflow_jax import sharding  # isort: skip
from pixelflow_jax.experiment import Experiment  # isort: skip
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd  # isort: skip
from pixelflow_jax.objective import FlowMatching  # isort: skip
from pixelflow_jax.training.step import Recipe, fresh_state, make_step  # isort: skip
from pixelflow_jax.training.throughput import TRAINING_PASSES  # isort: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--remat", nargs="+", default=[""], help="empty: the config's")
    parser.add_argument("--unroll", type=int, nargs="+", default=[0])
    parser.add_argument("--field_remat", nargs="+", default=["none"])
    parser.add_argument("--attention", nargs="+", default=["auto"])
    return parser.parse_args()


def measure(args: argparse.Namespace, variant: dict) -> dict:
    """One variant, in this process."""
    config = configured(args.config, variant)
    row = {"config": config.name, **variant}
    return row | timed(config, config.recipe(), {}, args.repeats)


def timed(
    config: Experiment,
    recipe: Recipe,
    frozen: dict,
    repeats: int,
    given: dict[str, np.ndarray] | None = None,
) -> dict:
    """Speed, memory and compile time of the step of `recipe` on random images.

    Their conditions are `given`, or random labels.
    """
    rates = harness.machine_rates()
    size, batch = config.data.image_size, config.batch_size
    run_state = {}
    mesh = config.mesh.build()
    with jax.set_mesh(mesh):
        run_state["state"] = fresh_state(recipe, config.ema, mesh)
        inputs = (random_batch(config, mesh, given), frozen)
        step = jax.jit(make_step(recipe), donate_argnums=0)
        program, compile_seconds = harness.compiled(step, run_state["state"], *inputs)

        def once() -> dict:
            run_state["state"], metrics = program(run_state["state"], *inputs)
            return metrics

        seconds = harness.median_seconds(once, repeats)
        loss = float(once()["loss"])
    if not np.isfinite(loss):
        raise RuntimeError(f"The loss is {loss}: this variant does not work.")
    flops = TRAINING_PASSES * recipe.forward_flops(size, size) * batch
    peak = rates["matmul_tflops"] * 1e12 * jax.device_count()
    return {
        "step_ms": seconds * 1e3,
        "images_s": batch / seconds,
        "mfu": flops / seconds / peak,
        **harness.memory(program),
        "compile_s": compile_seconds,
        "model_tflop": flops / 1e12,
        "xla_tflop": harness.xla_flops(program) / 1e12,
        **rates,
    }


def configured(spec: str, variant: dict) -> Experiment:
    """The config of one variant, with flow matching as its only term."""
    config = harness.load_config(spec)
    config.batch_size = variant["batch"]
    # Flow matching alone; benchmarks.perceptual measures the other terms.
    config.terms, config.balance = [FlowMatching()], None
    remat = variant["remat"] or config.model.loop.remat
    loop = dataclasses.replace(config.model.loop, remat=remat, unroll=variant["unroll"])
    model = dataclasses.replace(config.model, loop=loop, attention=variant["attention"])
    if isinstance(model, PixNerd) and isinstance(model.decoder, NeuralField):
        remat = dataclasses.replace(model.decoder.loop, remat=variant["field_remat"])
        decoder = dataclasses.replace(model.decoder, loop=remat)
        model = dataclasses.replace(model, decoder=decoder)
    config.model = model
    config.validate()
    return config


def random_batch(
    config: Experiment,
    mesh: jax.sharding.Mesh,
    given: dict[str, np.ndarray] | None = None,
) -> dict:
    """Random images of the size that the config asks for, with labels or `given`."""
    rng = np.random.default_rng(0)
    shape = (config.batch_size, *[config.data.image_size] * 2, 3)
    image = rng.uniform(-1, 1, shape).astype(np.float32)
    if given is None:
        labels = rng.integers(0, config.model.num_classes, len(image))
        given = {"label": labels.astype(np.int32)}
    return sharding.global_batch({"image": image, **given}, mesh)


def main() -> None:
    """Run every combination of the variants, each in its own process."""
    names = ("batch", "remat", "unroll", "field_remat", "attention")
    harness.run_variants("benchmarks.train_step", arguments(), names, measure)


if __name__ == "__main__":
    main()
