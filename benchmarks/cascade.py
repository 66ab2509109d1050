"""PixelFlow's cascade: packed training against its alternatives, and sampling.

python -m benchmarks.cascade --config configs/pixelflow.py:xl4_256

Training: all stages packed into one array; one forward pass a stage; all images padded
to the longest sequence (not even masked, so its figures are a lower bound). Sampling: 4
stages of 30 Euler steps against one stage of 120 at full size, guided up to 2.4.
"""

import argparse
import itertools

from benchmarks import harness, suite
from benchmarks.case import TRAIN, Case, changes
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.flow.guidance import ClassifierFree, stage_ramp
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.time import Grid

XL = "configs/pixelflow.py:xl4_256"
# A stage's Euler steps, the largest guidance scale and the tiny last step.
STAGES, STEPS, SCALE, LAST = 4, 30, 2.4, 0.001
CASES = (
    *("train/packed/16", "train/separate/16", "train/padded/16"),
    *("sample/cascade/1", "sample/single/1", "sample/cascade/16", "sample/single/16"),
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    suite.add_arguments(parser)
    parser.add_argument("--config", default=XL, help="of 4 stages")
    parser.add_argument(
        "--case", nargs="+", default=CASES, help="train or sample / variant / batch"
    )
    parser.add_argument("--scan", type=int, nargs="+", default=[1], choices=(0, 1))
    return parser.parse_args()


def case(text: str, config: str = XL, scan: int | None = None) -> Case:
    """The case that "train/packed/16" or "sample/single/1" names."""
    what, kind, batch = text.split("/")
    own = changes(terms="flow" if what == TRAIN else "", scan=scan)
    name = text if scan is None else f"{text} scan={scan}"
    found = {"what": what, "config": config, "batch": int(batch), "name": name}
    if what == TRAIN:
        return Case(**found, changes=own, layout=kind)
    return Case(**found, changes=own | _sampling(single=kind == "single"))


def _sampling(single: bool) -> dict:
    """Euler with the official grid, over the cascade or over one stage."""
    steps, ramp, path = STEPS, stage_ramp(STAGES), {}
    if single:
        steps, ramp = STEPS * STAGES, ()
        path = {"path": to_dict(Pyramid(num_stages=1))}
    grid = Grid(steps=steps, last_step=LAST)
    guidance = ClassifierFree(scale=SCALE, ramp=ramp)
    nodes = {"sampling.guidance": to_dict(guidance), "sampling.grid": to_dict(grid)}
    return changes(solver="euler") | nodes | path


def main() -> None:
    """Measure all cases."""
    args = arguments()
    pairs = itertools.product(args.case, args.scan)
    suite.run_and_print([case(t, args.config, scan) for t, scan in pairs], args)


if __name__ == "__main__":
    main()
