"""Sampling: latency of one image and of a batch, guided, the loop in one program.

python -m benchmarks.sample --batch 1 32 --steps 50 --unroll 1 0
"""

import argparse
import dataclasses

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip
import numpy as np  # isort: skip

from pixelflow_jax.experiment import Experiment  # isort: skip
from pixelflow_jax.flow.solver import Heun  # isort: skip
from pixelflow_jax.draw import SOLVERS  # isort: skip


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--unroll", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[50])
    parser.add_argument("--solver", nargs="+", default=["euler"])
    return parser.parse_args()


def measure(args: argparse.Namespace, variant: dict) -> dict:
    """One variant, in this process."""
    config = harness.load_config(args.config)
    loop = dataclasses.replace(config.model.loop, unroll=variant["unroll"])
    config.model = dataclasses.replace(config.model, loop=loop)
    grid = dataclasses.replace(config.sampling.grid, steps=variant["steps"])
    config.sampling = dataclasses.replace(
        config.sampling, grid=grid, solver=SOLVERS[variant["solver"]], doubled=False
    )
    row = {"config": config.name, **variant}
    return row | timed(config, variant["batch"], args.repeats)


def timed(config: Experiment, batch: int, repeats: int) -> dict:
    """Latency, memory and compile time of drawing `batch` images."""
    rates, size = harness.machine_rates(), config.data.image_size
    generator = config.generator(size, size)
    params = jax.jit(config.network().init)(jax.random.key(0))
    # A fresh decoder is zero; noise in its place keeps the work real.
    params = jax.tree.map(_disturbed, params)
    program = jax.jit(generator.trace, static_argnums=4)
    inputs = (
        params,
        jnp.arange(batch, dtype=jnp.uint32),
        {"label": jnp.arange(batch, dtype=jnp.int32)},
        jnp.uint32(0),
    )
    with jax.set_mesh(generator.mesh):
        built, compile_seconds = harness.compiled(program, *inputs, False)
        images = built(*inputs).images  # the first of the warm-up runs
        draw = lambda: built(*inputs)
        seconds = harness.median_seconds(draw, repeats, warmup=min(2, repeats - 1))
    if not np.isfinite(np.asarray(images)).all():
        raise RuntimeError("The images are not finite: this variant does not work.")
    evaluations, flops = _work(config, size)
    return {
        "seconds": seconds,
        "s_per_image": seconds / batch,
        "network_calls": evaluations,
        "mfu": batch * flops / seconds / (rates["matmul_tflops"] * 1e12),
        **harness.memory(built),
        "compile_s": compile_seconds,
        **rates,
    }


def _work(config: Experiment, size: int) -> tuple[int, float]:
    """Network calls (a guided one counts twice) and operations for one image."""
    grid, guidance, solver = (
        getattr(config.sampling, name) for name in ("grid", "guidance", "solver")
    )
    calls, flops = 0, 0.0
    for number, stage in enumerate(config.stages()):
        times = grid.times(number)[:-1]
        each = 1 + guidance.active(times, number)
        if isinstance(solver, Heun) and not solver.reuse:
            each = np.append(2 * each[:-1], each[-1:])
        calls += int(np.sum(each))
        height, width = stage.size(size, size)
        flops += np.sum(each) * config.model.flops(height, width)
    return calls, flops


def _disturbed(p: jax.Array) -> jax.Array:
    return p + 0.01 * jnp.sin(jnp.arange(p.size)).reshape(p.shape)


def main() -> None:
    """Run every combination of the variants, each in its own process."""
    names = ("batch", "unroll", "steps", "solver")
    harness.run_variants("benchmarks.sample", arguments(), names, measure)


if __name__ == "__main__":
    main()
