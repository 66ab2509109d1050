"""What the frozen teachers cost a training step: flow matching, + REPA, LPIPS, P-DINO.

python -m benchmarks.perceptual --config configs/pixelgen.py:xl_256 --batch 32

The teachers have their real geometry and random weights. Terms are added one by one,
and each teacher's term is also measured alone with flow matching.
"""

import argparse

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip

from benchmarks import train_step  # isort: skip
from pixelflow_jax.objective import FlowMatching  # isort: skip
from pixelflow_jax.perceptual import Lpips, PDino, Repa  # isort: skip

GATE = 0.3
TERMS = {
    "flow": (),
    "flow+repa": (Repa(),),
    "flow+repa+lpips": (Repa(), Lpips(threshold=GATE)),
    "flow+repa+lpips+pdino": (
        *(Repa(), Lpips(threshold=GATE)),
        PDino(threshold=GATE),
    ),
    "flow+lpips": (Lpips(threshold=GATE),),
    "flow+pdino": (PDino(threshold=GATE),),
}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.set_defaults(config="configs/pixelgen.py:xl_256")
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--terms", nargs="+", default=list(TERMS), choices=list(TERMS))
    parser.add_argument("--balance", type=int, nargs="+", default=[0])
    return parser.parse_args()


def measure(args: argparse.Namespace, variant: dict) -> dict:
    """One choice of terms, in this process."""
    config = harness.load_config(args.config)
    config.batch_size = variant["batch"]
    config.terms = [FlowMatching(), *TERMS[variant["terms"]]]
    if not variant["balance"]:
        config.balance = None
    config.validate()
    recipe = config.recipe()
    frozen = jax.tree.map(_random, config.teachers.shapes(recipe.needs))
    return variant | train_step.timed(config, recipe, frozen, args.repeats)


def _random(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Small waves: no network turns them into infinities."""
    waves = jnp.sin(jnp.arange(shape.size, dtype=jnp.float32))
    return (0.05 * waves).reshape(shape.shape).astype(shape.dtype)


def main() -> None:
    """Run every combination, each in its own process."""
    names = ("batch", "terms", "balance")
    harness.run_variants("benchmarks.perceptual", arguments(), names, measure)


if __name__ == "__main__":
    main()
