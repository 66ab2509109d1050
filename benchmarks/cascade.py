"""PixelFlow's cascade: packed training against its alternatives, and sampling.

python -m benchmarks.cascade --config configs/pixelflow.py:xl4_256

Training: all stages packed into one array; one forward pass a stage; all images padded
to the longest sequence (not even masked, so its figures are a lower bound). Sampling: 4
stages of 30 Euler steps against one stage of 120 at full size, guided up to 2.4.
"""

import argparse
import dataclasses
from collections.abc import Callable

from benchmarks import harness  # first: it sets the compiler's flags

import jax.numpy as jnp  # isort: skip
from jax import Array  # isort: skip

from benchmarks import sample, train_step  # isort: skip
from pixelflow_jax.experiment import Experiment  # isort: skip
from pixelflow_jax.flow.guidance import ClassifierFree, stage_ramp  # isort: skip
from pixelflow_jax.flow.path import Pyramid  # isort: skip
from pixelflow_jax.flow.solver import Euler  # isort: skip
from pixelflow_jax.flow.time import Grid  # isort: skip
from pixelflow_jax.models.base import Cond, Network, Output  # isort: skip

Apply = Callable[..., Output]
STEPS, SCALE = 30, 2.4  # a stage's Euler steps, and the largest guidance scale
CASES = (
    *("train/packed/16", "train/separate/16", "train/padded/16"),
    *("sample/cascade/1", "sample/single/1", "sample/cascade/16", "sample/single/16"),
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.set_defaults(config="configs/pixelflow.py:xl4_256")
    parser.add_argument(
        "--case", nargs="+", default=CASES, help="train or sample / variant / batch"
    )
    parser.add_argument("--unroll", type=int, nargs="+", default=[1])
    return parser.parse_args()


def separate(apply: Apply) -> Apply:
    """One forward pass for each group."""

    def run(params: dict, groups, clocks, conds, *, key: Array | None = None) -> Output:
        parts = [
            apply(params, (image,), (clock,), (cond,), key=key)
            for image, clock, cond in zip(groups, clocks, conds, strict=True)
        ]
        return Output(
            tuple(part.pred[0] for part in parts), tuple(part.tap[0] for part in parts)
        )

    return run


def padded(apply: Apply) -> Apply:
    """All images padded to the size of the largest, in one group."""

    def run(params: dict, groups, clocks, conds, *, key: Array | None = None) -> Output:
        height, width = groups[-1].shape[1:3]
        wide = [
            jnp.pad(
                image,
                ((0, 0), (0, height - image.shape[1]), (0, width - image.shape[2]))
                + ((0, 0),),
            )
            for image in groups
        ]
        labels = Cond(labels=jnp.concatenate([cond.labels for cond in conds]))
        clock = jnp.concatenate(clocks)
        out = apply(params, (jnp.concatenate(wide),), (clock,), (labels,), key=key)
        parts, start = [], 0
        for image in groups:
            own = out.pred[0][start : start + len(image)]
            parts.append(own[:, : image.shape[1], : image.shape[2]])
            start += len(image)
        return Output(tuple(parts), ())

    return run


LAYOUTS: dict[str, Callable[[Apply], Apply]] = {
    "packed": lambda apply: apply,
    "separate": separate,
    "padded": padded,
}


def measure(args: argparse.Namespace, variant: dict) -> dict:
    """One case, in this process."""
    what, kind, batch = variant["case"].split("/")
    config = harness.load_config(args.config)
    loop = dataclasses.replace(config.model.loop, unroll=variant["unroll"])
    config.model = dataclasses.replace(config.model, loop=loop)
    config.batch_size = int(batch)
    if what == "train":
        recipe = config.recipe()
        net = Network(recipe.network.init, LAYOUTS[kind](recipe.network.apply))
        recipe = dataclasses.replace(recipe, network=net)
        return variant | train_step.timed(config, recipe, {}, args.repeats)
    return variant | sample.timed(_sampling(config, kind), int(batch), args.repeats)


def _sampling(config: Experiment, kind: str) -> Experiment:
    """Euler with the official grid, over the cascade or over one stage."""
    stages = config.path.num_stages
    steps, ramp = STEPS, stage_ramp(stages)
    if kind == "single":
        steps, ramp = STEPS * stages, ()
        config = dataclasses.replace(config, path=Pyramid(num_stages=1))
    config.sampling = dataclasses.replace(
        config.sampling,
        solver=Euler(),
        grid=Grid(steps=steps, last_step=0.001),
        guidance=ClassifierFree(scale=SCALE, ramp=ramp),
    )
    return config


def main() -> None:
    """Run every case, each in its own process."""
    harness.run_variants("benchmarks.cascade", arguments(), ("case", "unroll"), measure)


if __name__ == "__main__":
    main()
