"""The newer methods beside PixNerd-XL and PixelGen-XL: a training step, one image.

python -m benchmarks.methods --jobs 4 --cache CACHE
python -m benchmarks.methods --only 'deco-*' 'pixnerd-*'

Training steps are flow matching alone, on batches of 32, but for the last, which adds
DeCo's term of frequencies; one image is drawn as each paper does.
"""

from benchmarks import harness, speed, suite
from benchmarks.case import FLOW, SAMPLE, TRAIN, Case
from pixelflow_jax.config_io import to_dict
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.frequency import FrequencyMatching

DECO, ASYMFLOW = "configs/deco.py:xl16_256", "configs/asymflow.py:h16_256"
BESIDE = (
    *("pixnerd-train-32", "pixelgen-train-32"),
    *("pixnerd-euler50-1", "pixelgen-heun50-1"),
)
FREQUENCIES = FLOW | {"terms": [to_dict(FlowMatching()), to_dict(FrequencyMatching())]}


def _case(name: str, what: str, config: str, batch: int, changes: dict) -> Case:
    return Case(what=what, config=config, batch=batch, changes=changes, name=name)


CASES = (
    *(row.case for row in speed.ROWS if row.case.name in BESIDE),
    _case("deco-train-32", TRAIN, DECO, 32, FLOW),
    _case("asymflow-train-32", TRAIN, ASYMFLOW, 32, FLOW),
    _case("deco-euler100-1", SAMPLE, DECO, 1, {}),
    _case("asymflow-heun50-1", SAMPLE, ASYMFLOW, 1, {}),
    _case("deco-frequencies-32", TRAIN, DECO, 32, FREQUENCIES),
)


def main() -> None:
    """Measure the cases and print them."""
    parser = harness.parser(__doc__)
    suite.add_arguments(parser)
    names = [case.name for case in CASES]
    parser.add_argument("--only", nargs="+", default=["*"], help=", ".join(names))
    args = parser.parse_args()
    chosen = speed.matching(names, args.only)
    suite.run_and_print([case for case in CASES if case.name in chosen], args)


if __name__ == "__main__":
    main()
