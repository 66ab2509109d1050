"""Tables in Markdown, and the places in a document that a command fills."""

import pathlib

from benchmarks import harness


def table(columns: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(harness.cell, line))} |" for line in lines)


def source(rows: list[dict]) -> str:
    """What rows were measured on: every card, set of versions, flags and commit.

    What most rows were measured on stands alone; the others are named.
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(_facts(row), []).append(f"`{row['case']}`")
    if not found:
        return ""
    first, *others = sorted(found, key=lambda facts: -len(found[facts]))
    others = [f"{', '.join(found[facts])}: {facts}" for facts in others]
    return "Measured on " + "; ".join([first, *others]) + "."


def _facts(row: dict) -> str:
    versions = ", ".join(f"{p} {row[p]}" for p in harness.PACKAGES if p in row)
    facts = f"{row.get('device', 'no device')}, {versions}"
    flags = row.get("xla_flags")
    return f"{facts}, `{flags}`, commit {row['commit']}" if flags else facts


def fill(path: pathlib.Path, name: str, text: str) -> None:
    """Put `text` between the two comments of a document that carry the name.

    Raises ValueError where they are not there.
    """
    begin, end = (f"<!-- {name}: {place} -->" for place in ("begin", "end"))
    document = path.read_text()
    before, found, rest = document.partition(begin)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise ValueError(f"{path} has no place between {begin} and {end}.")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
