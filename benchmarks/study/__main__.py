"""The papers' claims at a small size: run the study, and redraw its report.

python -m benchmarks.study run --claims=asymmetric,decoder --out=OUT --workers=4 \\
    --data=data/styles64
python -m benchmarks.study list
python -m benchmarks.study collect OUT
python -m benchmarks.study report

`run` goes on where it was stopped; rows that benchmarks/results/study.jsonl holds are
not run again. `collect` adds what lies in OUT to that file, and its pictures to
docs/gallery/evidence; `report` writes the tables and figures of docs/evidence.md from
the file alone. `--data` names the shards that `pixelflow prepare emoji-styles` wrote.
`--budget=often` trains on as many images in three times as many steps,
`--budget=small` is for two CPU cores, `--budget=smoke` only tries that all runs.
"""

import argparse
import pathlib
import time

from benchmarks import harness
from benchmarks.study import run

RESULTS = harness.RESULTS / "study.jsonl"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs = verbs.add_parser("run", help="run rows that have no results yet")
    runs.add_argument("--claims", default="", help="of these claims; all if empty")
    runs.add_argument("--rows", default="", help="these rows, by name")
    runs.add_argument("--seeds", default="0,1,2")
    runs.add_argument("--out", type=pathlib.Path, required=True)
    runs.add_argument("--state", type=pathlib.Path, help="what is half done; OUT/state")
    runs.add_argument("--data", default="", help="folder of shards; OpenMoji if empty")
    runs.add_argument("--workers", type=int, default=4, help="processes on the GPU")
    said = "after which to stop; one worker alone first ends its row"
    runs.add_argument("--seconds", type=float, default=540, help=said)
    runs.add_argument("--reserve", type=float, default=40, help="a row's own time")
    runs.add_argument("--budget", default="gpu", help="gpu, often, small or smoke")
    runs.add_argument("--steps", type=int, default=0, help="0: those of the budget")
    runs.add_argument("--slots", type=int, default=2, help="rows computed at a time")
    runs.add_argument("--lite0", default="", help="the file of EfficientNet-lite0")
    runs.add_argument("--stlpips", default="", help="the file of ST-LPIPS")
    runs.add_argument("--time", action="store_true", help="time drawing, alone")
    verbs.add_parser("list", help="rows, claims, and what is missing")
    collect = verbs.add_parser("collect", help="take over results")
    collect.add_argument("folder", type=pathlib.Path)
    reports = verbs.add_parser("report", help="write docs/evidence.md anew")
    reports.add_argument("--results", type=pathlib.Path, default=RESULTS)
    reports.add_argument("--document", type=pathlib.Path, help="docs/evidence.md")
    reports.add_argument("--pictures", type=pathlib.Path, help="docs/gallery/evidence")
    args = parser.parse_args()
    VERBS[args.verb](args)


def run_rows(args: argparse.Namespace) -> None:
    """Run what is missing of the rows that were asked for."""
    from benchmarks.study.rows import CLAIMS, ROWS

    claims = [c for c in CLAIMS if c.name in args.claims.split(",")]
    names = [n for claim in claims for n in claim.rows]
    names += [n for n in args.rows.split(",") if n]
    names = list(dict.fromkeys(names)) or list(ROWS)
    files = args.out / "study.jsonl", RESULTS
    had = set().union(*(run.done(file, args.budget) for file in files))
    seeds = [int(seed) for seed in args.seeds.split(",")]
    plan = run.Plan(
        rows=run.missing(names, seeds, had),
        out=args.out,
        state=args.state or args.out / "state",
        deadline=time.time() + args.seconds,
        reserve=args.reserve,
        workers=args.workers,
        slots=args.slots,
        steps=args.steps,
        budget=args.budget,
        data=args.data,
        lite0=args.lite0,
        stlpips=args.stlpips,
        timed=args.time,
    )
    run.run(plan)


def list_rows(_: argparse.Namespace) -> None:
    """Print every row with the claims that it serves and the seeds it lacks."""
    from benchmarks.study.rows import CLAIMS, ROWS, SEEDS

    left = dict(run.missing(list(ROWS), SEEDS, run.done(RESULTS, "gpu")))
    for name, row in ROWS.items():
        claims = ", ".join(c.name for c in CLAIMS if name in c.rows)
        print(f"{name:26} {row.label:50} {claims}; missing seeds {left.get(name, ())}")


def collect(args: argparse.Namespace) -> None:
    """Take over results and pictures of a run."""
    from benchmarks.study import report

    report.collect(args.folder, RESULTS)


def write_report(args: argparse.Namespace) -> None:
    """Write the tables and figures."""
    from benchmarks.study import report

    document = args.document or report.DOCUMENT
    report.write(args.results, document, args.pictures or report.PICTURES)


VERBS = {
    "run": run_rows,
    "list": list_rows,
    "collect": collect,
    "report": write_report,
}

if __name__ == "__main__":
    main()
