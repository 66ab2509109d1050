"""What the frozen teachers cost a training step: flow matching, + REPA, LPIPS, P-DINO.

python -m benchmarks.perceptual --config configs/pixelgen.py:xl_256 --batch 32

The teachers have their real geometry and random weights. Terms are added one by one,
and each teacher's term is also measured alone with flow matching. "config" are the
config's own terms.
"""

import argparse
import itertools

from benchmarks import harness, suite
from benchmarks.case import FLOW, TRAIN, Case
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa

REPA, LPIPS, PDINO = Repa(), Lpips(threshold=0.3), PDino(threshold=0.3)
TERMS = {
    "flow": (),
    "flow+repa": (REPA,),
    "flow+repa+lpips": (REPA, LPIPS),
    "flow+repa+lpips+pdino": (REPA, LPIPS, PDINO),
    "flow+lpips": (LPIPS,),
    "flow+pdino": (PDINO,),
}
OWN = "config"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    suite.add_options(parser, "configs/pixelgen.py:xl_256", [32])
    names = [*TERMS, OWN]
    parser.add_argument("--terms", nargs="+", default=list(TERMS), choices=names)
    parser.add_argument("--balance", action="store_true", help="as the config says")
    return parser.parse_args()


def case(config: str, batch: int, terms: str, balance: bool) -> Case:
    """The case of one choice of terms."""
    changes = {} if balance else {"adaptive_weight": FLOW["adaptive_weight"]}
    if terms != OWN:
        changes["terms"] = [to_dict(one) for one in (FlowMatching(), *TERMS[terms])]
    name = f"{terms}, batch {batch}"
    return Case(what=TRAIN, config=config, batch=batch, changes=changes, name=name)


def main() -> None:
    """Measure all cases."""
    args = arguments()
    pairs = itertools.product(args.batch, args.terms)
    cases = [case(args.config, *pair, args.balance) for pair in pairs]
    suite.run_and_print(cases, args)


if __name__ == "__main__":
    main()
