"""One commit's side of a case in turns with another's; `turns` starts it.

python -m benchmarks.turn --case '{"what": "train", ...}'

Started in a checkout, it compiles the case as that commit has it, says "READY" and
waits for a line of its input; then it times some runs and prints one record behind
"ROW ". Nothing but the program is on the device before the line comes.
"""

import argparse
import json
import math
import sys

from benchmarks import harness  # first: it sets the compiler's flags

import jax  # isort: skip

from benchmarks import timing  # isort: skip
from benchmarks.case import Case, build  # isort: skip
from benchmarks.running import Running  # isort: skip

READY = "READY"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    parser.add_argument("--case", required=True, help="as JSON")
    parser.add_argument("--seconds", type=float, default=math.inf, help="a turn")
    parser.add_argument("--rates", action="store_true", help="the machine's as well")
    return parser.parse_args()


def main() -> None:
    """Compile, wait, and time some runs."""
    args = arguments()
    work = build(Case.from_json(args.case))
    with jax.set_mesh(work.mesh):
        harness.compiled(work.setup)
        built = harness.compiled(work.program, *work.shapes)
        print(READY, flush=True)
        if not sys.stdin.readline():
            return
        row = Running(work, built.program).timed(args.repeats, args.seconds)
    row |= harness.memory(built.program)
    row |= timing.machine_rates() if args.rates else {}
    print(harness.ROW + json.dumps(harness.record([row])), flush=True)


if __name__ == "__main__":
    main()
