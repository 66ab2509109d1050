"""One training step with flow matching alone: images/s, MFU, memory, compile time.

python -m benchmarks.train_step --batch 32 128 --remat names none

Every combination of the options is a case; `perceptual` measures the other terms.
"""

from benchmarks import harness, suite
from benchmarks.case import TRAIN

OPTIONS = ("remat", "scan", "field_remat", "attention", "size", "depth")


def main() -> None:
    """Measure all cases."""
    parser = harness.parser(__doc__)
    suite.add_options(parser, "configs/pixnerd.py:xl16_256", [32], OPTIONS)
    args = parser.parse_args()
    cases = suite.combinations(TRAIN, args, OPTIONS, terms="flow")
    suite.run_and_print(cases, args)


if __name__ == "__main__":
    main()
