"""Writes the tables of methods, speed and GPU hours in README.md and docs/.

python docs/make_reproducing.py

Figures of papers are those that `pixelflow reproduce` compares with, or stand below
with their source. GPU hours follow from images a second measured on one kind of card
(benchmarks/results): of the config itself, or of a measured one by the ratio of the
models' operations, and for REPA by what it was seen to cost; those begin with "about".
"""

import json
import pathlib
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks import markdown  # noqa: E402
from pixelflow_jax.build import network  # noqa: E402
from pixelflow_jax.config_files import load_config, paper_rows  # noqa: E402
from pixelflow_jax.errors import ConfigError  # noqa: E402
from pixelflow_jax.experiment import Experiment  # noqa: E402
from pixelflow_jax.losses.perceptual import Lpips, Repa  # noqa: E402
from pixelflow_jax.models.interface import count  # noqa: E402

README, HOURS = ROOT / "README.md", ROOT / "docs/reproducing.md"
SPEED = ROOT / "docs/performance.md"
RESULTS = ROOT / "benchmarks/results"
CARD = "NVIDIA H200"
JIT = "†"  # behind a figure: by JiT's evaluator, not by ADM's


class Row(NamedTuple):
    """A published model.

    `case` is the measured program that its speed follows from; `paper` its FID where
    no figures to reproduce are listed, and `here` what this package has measured.
    """

    method: str
    page: str
    config: str
    case: str
    paper: str = ""
    here: str = "not run"


FIELD, CASCADE, FLOW, FULL, FREQUENCIES, LARGE = (
    *("pixnerd-train-128", "pixelflow-train-16", "pixelgen-train-128"),
    *("pixelgen-full-128", "deco-frequencies-32", "asymflow-train-32"),
)
# The config of a case, by its first word.
CONFIGS = {
    "pixnerd": "pixnerd:xl16_256",
    "pixelflow": "pixelflow:xl4_256",
    "pixelgen": "pixelgen:xl_256",
    "deco": "deco:xl16_256",
    "asymflow": "asymflow:h16_256",
}
STEP, IMAGE = "training step, {} images", "one image"
SPEEDS = {
    "pixnerd-train-32": f"PixNerd-XL/16, {STEP}",
    "pixnerd-train-128": f"PixNerd-XL/16, {STEP}",
    "pixelgen-train-128": f"PixelGen-XL/16, flow matching, {STEP}",
    "pixelgen-full-32": f"PixelGen-XL/16, full objective, {STEP}",
    "pixelgen-full-128": f"PixelGen-XL/16, full objective, {STEP}",
    "pixelflow-train-16": f"PixelFlow-XL/4, {STEP}",
    "pixnerd-euler50-1": f"PixNerd-XL/16, 50 Euler steps, {IMAGE}",
    "pixnerd-euler50-32": "the same, 32 images",
    "pixelgen-heun50-1": f"PixelGen-XL/16, 50 Heun steps, {IMAGE}",
    "pixelgen-heun50-32": "the same, 32 images",
    "pixelflow-4x30-1": f"PixelFlow-XL/4, 4 x 30 Euler steps, {IMAGE}",
}
SHORT = ("pixnerd-train-32", "pixelgen-full-32", "pixelflow-train-16")
SHORT += ("pixnerd-euler50-1", "pixelgen-heun50-1", "pixelflow-4x30-1")
ROWS = (
    Row("PixelFlow-XL/4", "pixelflow", "pixelflow:xl4_256", CASCADE),
    Row("PixNerd-L/16", "pixnerd", "pixnerd:l16_256", FIELD),
    Row("PixNerd-XL/16", "pixnerd", "pixnerd:xl16_256", FIELD),
    Row("PixNerd-XL/16, 512", "pixnerd", "pixnerd:xl16_512", FIELD),
    Row("PixelGen-L/16, no guidance", "pixelgen", "pixelgen:l_256", FULL),
    Row("PixelGen-XL/16", "pixelgen", "pixelgen:xl_256", FULL),
    Row("JiT-B/16", "pixelgen", "pixelgen:jit_b_256", FLOW),
    Row("JiT-H/16", "pixelgen", "pixelgen:jit_h_256", LARGE),
    Row("DeCo-XL/16", "deco", "deco:xl16_256", FREQUENCIES, "1.90"),
    Row("AsymFlow-H/16", "asymflow", "asymflow:h16_256", LARGE, "1.76"),
    Row("AsymFlow-H/16, REPA", "asymflow", "asymflow:h16_repa_256", LARGE, "1.57"),
    Row("PixelREPA-B/16", "pixelrepa", "pixelrepa:b16_256", FLOW, f"3.17{JIT}"),
    Row("PixelREPA-H/16", "pixelrepa", "pixelrepa:h16_256", LARGE, f"1.81{JIT}"),
    Row("PixelDiT2-H/16", "pixeldit2", "pixeldit2:h16_256", LARGE, f"1.46{JIT}"),
)


def main() -> None:
    """Fill all places."""
    for page, name, text in tables():
        markdown.fill(page, name, text)


def tables() -> list[tuple[pathlib.Path, str, str]]:
    """All tables: the page, the name of the place in it, and the text."""
    return [
        (README, "papers", papers()),
        (README, "speeds", speeds(SHORT)),
        (SPEED, "speeds", speeds(tuple(SPEEDS))),
        (HOURS, "hours", hours()),
    ]


def speeds(chosen: tuple[str, ...]) -> str:
    """The table of speeds: the official code at its strongest, and ours, queued."""
    best: dict[str, float] = {}
    for row in records("official.jsonl"):
        best[row["case"]] = min(row["ms"], best.get(row["case"], row["ms"]))
    cells = []
    for case in chosen:
        ours, theirs = newest()[case]["queued_ms"], best[case]
        unit = milliseconds if "euler" not in case and "x30" not in case else seconds
        unit = seconds if "heun" in case else unit
        what = SPEEDS[case].format(case.rpartition("-")[2])
        cells.append([what, unit(theirs), unit(ours), f"{theirs / ours:.1f}"])
    columns = ["one H200, bfloat16, 256 x 256", "official, at its strongest", "here"]
    return markdown.table([*columns, "times as fast"], cells)


def milliseconds(value: float) -> str:
    """A time of a step."""
    return f"{value:.0f} ms"


def seconds(value: float) -> str:
    """A time of images."""
    return f"{value / 1000:.3g} s"


def papers() -> str:
    """The table of methods."""
    columns = ["method", "config", "parameters", "FID, paper", "FID, here"]
    cells = [
        [
            f"[{row.method}](docs/methods/{row.page}.md)",
            f"`{row.config}`",
            f"{count(network(load_config(row.config)).shapes()) / 1e6:.0f}M",
            figure(row),
            row.here,
        ]
        for row in ROWS
    ]
    return markdown.table(columns, cells)


def hours() -> str:
    """The table of GPU hours."""
    columns = ["config", "steps x batch", "images/s, one H200", "measured as"]
    columns += ["GPU hours", "FID, paper", "FID, here"]
    cells = []
    for row in ROWS:
        config = load_config(row.config)
        rate, about = speed(row, config)
        took = config.steps * config.batch_size / rate / 3600
        cells.append(
            [
                f"`{row.config}`",
                f"{config.steps:,} x {config.batch_size:,}",
                f"{about}{rate:.0f}",
                f"`{row.case}`",
                f"{about}{round(took, -1):,.0f}",
                figure(row),
                row.here,
            ]
        )
    return markdown.table(columns, cells)


def figure(row: Row) -> str:
    """The paper's best FID."""
    try:
        rows = [one for one in paper_rows(row.config) if "fid" in one.figures]
    except ConfigError:
        return row.paper
    best = min(rows, key=lambda one: one.figures["fid"])
    return f"{best.figures['fid']:.2f}{JIT if best.evaluator == 'jit' else ''}"


def speed(row: Row, config: Experiment) -> tuple[float, str]:
    """Training images a second on one card, and "about " where they are derived."""
    reference = CONFIGS[row.case.partition("-")[0]]
    images = int(row.case.rpartition("-")[2])
    rate = images / newest()[row.case]["queued_ms"] * 1000
    rate *= flops(load_config(reference)) / flops(config)
    same_terms = perceptual(config) == ("all" if "full" in row.case else "")
    if not same_terms:
        rate /= repa_cost()
    return rate, "" if same_terms and reference == row.config else "about "


def perceptual(config: Experiment) -> str:
    """Which frozen networks a training step looks through."""
    terms = {type(term) for term in config.terms}
    return "all" if Lpips in terms else "repa" if Repa in terms else ""


def flops(config: Experiment) -> float:
    """Forward operations of the denoiser, an image."""
    return config.model.flops(*[config.data.image_size] * 2)


def newest() -> dict[str, dict]:
    """The newest row of each case on the card, queued as a run has them."""
    found = {}
    for record in [*records("methods.jsonl"), *records("against.jsonl")]:
        if record["device"].startswith(CARD):
            rows = [row for row in record["rows"] if row.get("which") != "before"]
            found |= {row["case"]: row for row in rows}
    return found


def repa_cost() -> float:
    """How many times as long a step takes with REPA, as measured on PixelGen."""
    rates = {}
    for record in records("perceptual.jsonl"):
        rates |= {row["terms"]: row["images_s"] for row in record["rows"]}
    return rates["flow"] / rates["flow+repa"]


def records(name: str) -> list[dict]:
    """The lines of a file of results."""
    text = (RESULTS / name).read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


if __name__ == "__main__":
    main()
