"""Sampling: latency of one image and of a batch, guided, the loop in one program.

python -m benchmarks.sample --batch 1 32 --steps 50 --scan 1 0

Every combination of the options is a case; guidance is the config's own.
"""

from benchmarks import harness, suite
from benchmarks.case import SAMPLE

OPTIONS = ("scan", "steps", "solver", "attention", "size")


def main() -> None:
    """Measure all cases."""
    parser = harness.parser(__doc__)
    suite.add_options(parser, "configs/pixnerd.py:xl16_256", [1, 32], OPTIONS)
    args = parser.parse_args()
    suite.run_and_print(suite.combinations(SAMPLE, args, OPTIONS), args)


if __name__ == "__main__":
    main()
