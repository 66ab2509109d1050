"""The table of the project's aims: training and sampling against the official code.

python -m benchmarks.speed --jobs 5 --cache CACHE
python -m benchmarks.speed --only 'pixnerd-*' --deadline 570 --cache CACHE
python -m benchmarks.speed --markdown [--into benchmarks/RESULTS.md]
python -m benchmarks.speed --phase count --json benchmarks/results/operations.jsonl

Rows are appended to results/speed.jsonl as they come, and `--markdown` renders the
newest of each from there, with the newest count of operations, which takes no device.
On a machine that gives a command little time, `--phase compile` and `--phase measure`
in two commands share the folder `--cache`.
"""

import argparse
import dataclasses
import fnmatch
import pathlib

from benchmarks import cascade, harness, markdown, perceptual, suite
from benchmarks.case import FLOW, SAMPLE, TRAIN, Case
from benchmarks.worker import COUNT

PIXNERD, PIXGEN = "configs/pixnerd.py:xl16_256", "configs/pixelgen.py:xl_256"
RESULTS = harness.RESULTS / "speed.jsonl"
OPERATIONS = harness.RESULTS / "operations.jsonl"
COLUMNS = ["case", "official", "plain XLA", "must", "aim", "**ours**", "times as fast"]
COLUMNS += ["arithmetic limit", "MFU", "peak GB: ours", "official", "plain XLA"]
COLUMNS += ["compile s: cold", "with cache", "TFLOP: formula", "XLA"]
# What a unit makes of a measured row; more is better for the rate alone.
UNITS = {
    "ms": lambda row: row["ms"],
    "s": lambda row: row["ms"] / 1e3,
    "s/image": lambda row: row["ms"] / 1e3 / row["batch"],
    "images/s": lambda row: row["images_s"],
}
RATE = "images/s"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a case, what others need for it, and what is asked.

    `official` and `plain` are in `unit`; `..._gb` is peak memory; None: not known.
    `note` stands beside the official figure.
    """

    title: str
    case: Case
    unit: str
    official: float
    plain: float | None
    must: float
    aim: float
    official_gb: float | None = None
    plain_gb: float | None = None
    note: str = ""


def _case(name: str, what: str, config: str, batch: int, **changes: object) -> Case:
    return Case(what=what, config=config, batch=batch, changes=changes, name=name)


def _named(case: Case, name: str) -> Case:
    return dataclasses.replace(case, name=name)


# The official figures were measured on one H100 80GB with the official PyTorch code,
# torch.compile where that code uses it, torch 2.11, bf16 autocast and random weights;
# "plain XLA" is a prototype of 300 lines in JAX without kernels of its own, on the same
# card: cuDNN attention, rematerialisation by name, Triton GEMM off, no dropout. Its
# memory while sampling was not kept.
ROWS = (
    Row(
        title="PixNerd-XL/16 training step, flow matching, batch 32",
        case=_case("pixnerd-train-32", TRAIN, PIXNERD, 32, **FLOW),
        unit="ms",
        official=110.6,
        official_gb=35.8,
        plain=102,
        plain_gb=23,
        must=92,
        aim=80,
    ),
    Row(
        title="PixelGen-XL/16 training step, flow matching, batch 32",
        case=_case("pixelgen-train-32", TRAIN, PIXGEN, 32, **FLOW),
        unit="ms",
        official=101.7,
        official_gb=28.4,
        plain=99,
        plain_gb=19,
        must=88,
        aim=78,
    ),
    Row(
        title="the same, batch 128",
        case=_case("pixelgen-train-128", TRAIN, PIXGEN, 128, **FLOW),
        unit="ms",
        official=301.5,
        official_gb=67.9,
        plain=354,
        plain_gb=42,
        must=300,
        aim=250,
    ),
    Row(
        title="PixelGen-XL/16 training step, REPA + LPIPS + P-DINO, batch 32",
        case=_named(
            perceptual.case(PIXGEN, 32, perceptual.OWN, True), "pixelgen-full-32"
        ),
        unit="ms",
        official=146,
        official_gb=36.2,
        plain=134,
        plain_gb=23,
        must=122,
        aim=98,
    ),
    Row(
        title="PixelFlow-XL/4 training, packed, batch 16",
        case=_named(cascade.case("train/packed/16"), "pixelflow-train-16"),
        unit="images/s",
        official=22.4,
        note="batch 8; 16 does not fit",
        plain=45,
        plain_gb=29,
        must=50,
        aim=60,
    ),
    Row(
        title="PixNerd-XL/16, Euler-50 with CFG, 1 image",
        case=_case("pixnerd-euler50-1", SAMPLE, PIXNERD, 1),
        unit="s",
        official=1.00,
        plain=0.160,
        must=0.15,
        aim=0.10,
    ),
    Row(
        title="the same, 32 images",
        case=_case("pixnerd-euler50-32", SAMPLE, PIXNERD, 32),
        unit="s",
        official=3.15,
        plain=2.75,
        must=2.7,
        aim=2.4,
    ),
    Row(
        title="PixelGen-XL/16, Heun-50 with CFG, 1 image",
        case=_case("pixelgen-heun50-1", SAMPLE, PIXGEN, 1),
        unit="s",
        official=1.20,
        plain=0.245,
        must=0.24,
        aim=0.16,
    ),
    Row(
        title="the same, 32 images",
        case=_case("pixelgen-heun50-32", SAMPLE, PIXGEN, 32),
        unit="s",
        official=4.84,
        plain=4.58,
        must=4.5,
        aim=3.9,
    ),
    Row(
        title="PixelFlow-XL/4, 4 x 30 Euler steps with CFG, 1 image",
        case=_named(cascade.case("sample/cascade/1"), "pixelflow-4x30-1"),
        unit="s",
        official=10.5,
        note="7.0 with its noise loop and RoPE copies mended",
        plain=1.42,
        must=1.35,
        aim=1.0,
    ),
    Row(
        title="the same, 16 images",
        case=_named(cascade.case("sample/cascade/16"), "pixelflow-4x30-16"),
        unit="s/image",
        official=4,
        note="2.5 mended",
        plain=None,
        must=1.3,
        aim=1.0,
    ),
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = harness.parser(__doc__)
    suite.add_arguments(parser)
    names = ", ".join(row.case.name for row in ROWS)
    parser.set_defaults(json=RESULTS)
    parser.add_argument(
        "--only", nargs="+", default=["*"], help=f"names or patterns of rows: {names}"
    )
    parser.add_argument("--markdown", action="store_true", help="render, run nothing")
    parser.add_argument("--into", type=pathlib.Path, help="fill the place there")
    return parser.parse_args()


def matching(names: list[str], patterns: list[str]) -> list[str]:
    """Those of the names that match; ends the process where a pattern matches none."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise SystemExit(
                f"No row matches {pattern!r}; there are {', '.join(names)}"
            )
    return [name for name in names if any(fnmatch.fnmatch(name, p) for p in patterns)]


def newest(rows: list[dict]) -> dict[str, dict]:
    """By name the last row that was measured, or where none was, that failed."""
    found: dict[str, dict] = {}
    for row in rows:
        if "failed" not in row or "failed" in found.get(row["case"], row):
            found[row["case"]] = row
    return found


def line(row: Row, measured: dict | None) -> list[object]:
    """The cells of a row; without a measurement those of others alone."""
    asked = [_figure(v, row.unit) for v in (row.official, row.plain, row.must, row.aim)]
    if row.note:
        asked[0] += f" ({row.note})"
    asked, memory = [row.title, *asked], [row.official_gb, row.plain_gb]
    if measured is None or "failed" in measured:
        why = "" if measured is None else f"failed: {measured['failed']}"
        return [*asked, why, "", "", "", "", *memory, "", "", "", ""]
    ours = UNITS[row.unit](measured)
    times = ours / row.official if row.unit == RATE else row.official / ours
    cold = measured.get("cold_compile_s")
    if cold is not None:
        cold = f"{cold:.0f} ({measured['at_once']} at once)"
    return [
        *asked,
        f"**{_figure(ours, row.unit)}**",
        f"{times:.2f}",
        *_at_the_limit(row, measured),
        _rounded(measured.get("peak_gb")),
        *memory,
        cold,
        _rounded(measured.get("warm_compile_s")),
        *_operations(row, measured),
    ]


def _at_the_limit(row: Row, measured: dict) -> tuple[str, str]:
    """What the arithmetic alone takes at the measured matmul rate, and the share."""
    if "mfu" not in measured:
        return "", ""
    rate = measured["images_s"] / measured["mfu"]
    alone = measured | {"ms": measured["limit_ms"], "images_s": rate}
    return _figure(UNITS[row.unit](alone), row.unit), f"{100 * measured['mfu']:.1f} %"


def _operations(row: Row, measured: dict) -> tuple[str, str]:
    """Of a run; XLA counts one step of a sampler's loop, which says nothing."""
    known = "model_tflop" in measured and row.case.what == TRAIN
    by_xla = measured["xla_tflop"] if known else None
    return _rounded(measured.get("model_tflop")), _rounded(by_xla)


def _figure(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.4g} {unit}"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def render(measured: dict[str, dict], counts: dict[str, dict] | None = None) -> str:
    """The table in Markdown with what it was measured on.

    `counts` are the operations of rows that do not hold their own.
    """
    counts = counts or {}
    measured = {
        name: suite.with_operations(row, counts.get(name, {}))
        for name, row in measured.items()
    }
    lines = [line(row, measured.get(row.case.name)) for row in ROWS]
    mine = [measured[r.case.name] for r in ROWS if r.case.name in measured]
    done = [row for row in mine if "failed" not in row]
    return f"{markdown.table(COLUMNS, lines)}\n\n{markdown.source(done)}".rstrip()


def main() -> None:
    """Measure the rows and print the table, or only render what was measured."""
    args = arguments()
    names = matching([row.case.name for row in ROWS], args.only)
    cases = [row.case for row in ROWS if row.case.name in names]
    if args.phase == COUNT and not args.markdown:
        suite.run_and_print(cases, args)
        return
    if not args.markdown:
        suite.run(cases, args)
    counts = newest(harness.read(OPERATIONS))
    text = render(newest(harness.read(args.json)), counts)
    if args.into:
        markdown.fill(args.into, "speed", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
