"""docs/evidence.md's tables and figures, from the results file alone."""

import json
import pathlib
import shutil

from benchmarks import harness, markdown
from benchmarks.study import tables
from benchmarks.study.figures import dots
from benchmarks.study.rows import CLAIMS, ROWS, Claim
from benchmarks.study.run import done
from pixelflow_jax.data.images import save_png

DOCUMENT = harness.ROOT / "docs" / "evidence.md"
PICTURES = harness.ROOT / "docs" / "gallery" / "evidence"


def collect(folder: pathlib.Path, results: pathlib.Path) -> None:
    """Add a run's lines to the results file, each once, and take over its pictures."""
    had = done(results)
    for text in (folder / "study.jsonl").read_text().splitlines():
        line = json.loads(text)
        if (line["row"], line["seed"]) not in had:
            harness.append(results, line)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for picture in sorted((folder / "pictures").glob("*.png")):
        shutil.copy(picture, PICTURES / picture.name)


def write(
    results: pathlib.Path,
    document: pathlib.Path = DOCUMENT,
    pictures: pathlib.Path = PICTURES,
) -> None:
    """Fill every place of the document; a claim has one, and so have all verdicts."""
    lines = tables.read(results)
    markdown.fill(document, "verdicts", _verdicts(lines))
    markdown.fill(document, "left", _left(lines))
    for claim in CLAIMS:
        markdown.fill(document, claim.name, _claim(claim, lines, pictures))


def _verdicts(lines: tables.Lines) -> str:
    rows: list[list[object]] = [
        [claim.title, claim.paper, tables.verdict(claim, lines)] for claim in CLAIMS
    ]
    return markdown.table(["claim", "papers", "here"], rows)


def _claim(claim: Claim, lines: tables.Lines, pictures: pathlib.Path) -> str:
    parts = [markdown.table(*tables.table(claim, lines))]
    figure = dots(claim, lines)
    if figure is not None:
        save_png(pictures / f"claim_{claim.name}.png", figure)
        place = f"gallery/evidence/claim_{claim.name}.png"
        parts.append(f"![{claim.title}: FD-lite0 of every seed]({place})")
    parts += [
        f"![{ROWS[name].label}: samples, and the nearest drawing of each]"
        f"(gallery/evidence/{name}.png)"
        for name in claim.rows
        if lines.get(name) and (pictures / f"{name}.png").exists()
    ]
    parts.append(f"`python -m benchmarks.study run --claims={claim.name} --out=OUT`")
    return "\n\n".join(parts)


def _left(lines: tables.Lines) -> str:
    """What was not run, and the command that does."""
    left = tables.missing(lines)
    if not left:
        return "Every row has three seeds."
    names = ",".join(left)
    return (
        f"Not run, or with fewer than three seeds: {len(left)} of {len(ROWS)} rows.\n\n"
        f"```\npython -m benchmarks.study run --out=OUT --rows={names}\n```"
    )
