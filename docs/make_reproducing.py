"""Writes the table of methods in README.md, and that of hours in docs/reproducing.md.

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

README, PAGE = ROOT / "README.md", ROOT / "docs/reproducing.md"
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


FLOW, FULL, CASCADE, FIELD = (
    *("pixelgen-train-32", "pixelgen-full-128"),
    *("pixelflow-train-16", "pixnerd-train-32"),
)
ROWS = (
    Row("PixelFlow-XL/4", "pixelflow", "pixelflow:xl4_256", CASCADE),
    Row("PixNerd-L/16", "pixnerd", "pixnerd:l16_256", FIELD),
    Row("PixNerd-XL/16", "pixnerd", "pixnerd:xl16_256", FIELD),
    Row("PixNerd-XL/16, 512", "pixnerd", "pixnerd:xl16_512", FIELD),
    Row("PixelGen-L/16, no guidance", "pixelgen", "pixelgen:l_256", FULL),
    Row("PixelGen-XL/16", "pixelgen", "pixelgen:xl_256", FULL),
    Row("JiT-B/16", "pixelgen", "pixelgen:jit_b_256", FLOW),
    Row("JiT-H/16", "pixelgen", "pixelgen:jit_h_256", FLOW),
    Row("DeCo-XL/16", "deco", "deco:xl16_256", FIELD, "1.90"),
    Row("AsymFlow-H/16", "asymflow", "asymflow:h16_256", FLOW, "1.76"),
    Row("AsymFlow-H/16, REPA", "asymflow", "asymflow:h16_repa_256", FLOW, "1.57"),
    Row("PixelREPA-B/16", "pixelrepa", "pixelrepa:b16_256", FLOW, f"3.17{JIT}"),
    Row("PixelREPA-H/16", "pixelrepa", "pixelrepa:h16_256", FLOW, f"1.81{JIT}"),
    Row("PixelDiT2-H/16", "pixeldit2", "pixeldit2:h16_256", FLOW, f"1.46{JIT}"),
)


def main() -> None:
    """Fill both places."""
    markdown.fill(README, "papers", papers())
    markdown.fill(PAGE, "hours", hours())


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
    measured = cases()[row.case]
    reference = load_config(measured["config"])
    rate = measured["images_s"] * flops(reference) / flops(config)
    same_terms = measured["terms"] == perceptual(config)
    if not same_terms:
        rate /= repa_cost()
    exact = same_terms and flops(reference) == flops(config)
    return rate, "" if exact else "about "


def perceptual(config: Experiment) -> str:
    """Which frozen networks a training step looks through."""
    terms = {type(term) for term in config.terms}
    return "all" if Lpips in terms else "repa" if Repa in terms else ""


def flops(config: Experiment) -> float:
    """Forward operations of the denoiser, an image."""
    return config.model.flops(*[config.data.image_size] * 2)


def cases() -> dict[str, dict]:
    """The newest row of each training case on the card, queued as a run has it."""
    configs = {FIELD: "pixnerd:xl16_256", CASCADE: "pixelflow:xl4_256"}
    found = {}
    for record in records("against.jsonl"):
        for row in record["rows"] if record["device"].startswith(CARD) else ():
            case = row["case"]
            if "train" not in case and "full" not in case:
                continue
            images = int(case.rpartition("-")[2])
            found[case] = {
                "config": configs.get(case, "pixelgen:xl_256"),
                "terms": "all" if "full" in case else "",
                "images_s": images / row["queued_ms"] * 1000,
            }
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
