"""docs/evidence.md's tables and figures, from the results file alone."""

import pathlib

from benchmarks import harness, markdown
from benchmarks.study import budgets, configs, curves, records, tables
from benchmarks.study.figures import dots
from benchmarks.study.rows import CLAIMS, ROWS, Claim
from benchmarks.study.run import done
from pixelflow_jax.data.images import save_png

DOCUMENT = harness.ROOT / "docs" / "evidence.md"
SIZES = {
    "gpu": "64 px, on a GPU",
    "often": "64 px, a third of the batch",
    "small": "32 px, on two CPU cores",
}
PICTURES = harness.ROOT / "docs" / "gallery" / "evidence"


def collect(
    folder: pathlib.Path, results: pathlib.Path, pictures: pathlib.Path | None = None
) -> None:
    """Add a run's lines to the results file, each once, and take over its pictures."""
    pictures = pictures or PICTURES
    for line in records.read(folder / records.RESULTS):
        if (line["row"], line["seed"]) not in done(results, line["budget"]):
            harness.append(results, line)
    pictures.mkdir(parents=True, exist_ok=True)
    for line in records.read(folder / records.PICTURES):
        records.write_picture(line, pictures)


def write(
    results: pathlib.Path,
    document: pathlib.Path = DOCUMENT,
    pictures: pathlib.Path = PICTURES,
) -> None:
    """Fill every place of the document; a claim has one, and so have all verdicts."""
    sizes = {budget: tables.read(results, budget) for budget in SIZES}
    markdown.fill(document, "verdicts", _verdicts(sizes))
    markdown.fill(document, "left", _left(sizes["gpu"]))
    both = tables.beside(list(ROWS), sizes["gpu"], sizes["often"])
    steps = [_steps(budgets.BUDGETS[name]) for name in ("gpu", "often")]
    markdown.fill(document, "recommended", markdown.table(["FD-lite0", *steps], both))
    for claim in CLAIMS:
        markdown.fill(document, claim.name, _claim(claim, sizes, pictures))


def _steps(budget: budgets.Budget) -> str:
    return f"{budget.steps:,} steps of {budget.batch or configs.BATCH} images"


def _verdicts(sizes: dict[str, tables.Lines]) -> str:
    rows: list[list[object]] = [
        [
            claim.title,
            claim.paper,
            *(tables.verdict(claim, lines) for lines in sizes.values()),
        ]
        for claim in CLAIMS
    ]
    return markdown.table(["claim", "papers", *SIZES.values()], rows)


def _claim(claim: Claim, sizes: dict[str, tables.Lines], pictures: pathlib.Path) -> str:
    parts = []
    for budget, lines in sizes.items():
        title, rows = SIZES[budget], tables.table(claim, lines)
        if not rows[1]:
            parts.append(f"{title}: not run.")
            continue
        parts += [f"{title}:", markdown.table(*rows)]
        what = f"{tables.name_of(claim.metric)} of every seed"
        figures = [(dots(claim, lines), f"{budget}_{claim.name}.png", what)]
        if claim.compute:
            parts.append(markdown.table(*curves.rows(claim, lines)))
            what = "loss and distance against the operations of training"
            curve = curves.draw(claim, lines)
            figures.append((curve, f"{budget}_{claim.name}_compute.png", what))
        for figure, place, what in figures:
            if figure is not None:
                save_png(pictures / place, figure)
                alt = f"{claim.title}: {what}"
                parts.append(f"![{alt}](gallery/evidence/{place})")
        parts += _strips(claim, lines, pictures)
    parts.append(f"`python -m benchmarks.study run --claims={claim.name} --out=OUT`")
    return "\n\n".join(parts)


def _strips(claim: Claim, lines: tables.Lines, pictures: pathlib.Path) -> list[str]:
    """The pictures that a row's first seed drew."""
    found = []
    for name in (name for name in claim.rows if name in lines):
        strip = f"{lines[name][0]['budget']}_{name}_samples.png"
        if (pictures / strip).exists():
            alt = f"{ROWS[name].label}: samples, and below each its nearest drawing"
            found.append(f"![{alt}](gallery/evidence/{strip})")
    return found


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
