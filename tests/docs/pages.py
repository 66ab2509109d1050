"""The pages: README.md and docs/, their blocks, and the commands in them."""

import inspect
import pathlib
import re
import shlex
import types
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"\*Needs .+\*")  # a line of its own, above a block
SHELL = ("sh", "")


class Block(NamedTuple):
    """A fenced block: where it stands, what it is, and what it needs to run ("": no
    hardware, data or weights but what the package brings).
    """

    page: str
    line: int
    language: str
    title: str
    text: str
    needs: str

    @property
    def name(self) -> str:
        """Its page and line."""
        return f"{self.page}:{self.line}"


class Command(NamedTuple):
    """A line of a shell block: the program, and its words."""

    block: Block
    environment: dict[str, str]
    words: list[str]


def pages() -> list[pathlib.Path]:
    """All of them."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: pathlib.Path) -> list[Block]:
    """The blocks of a page, in order."""
    text, found = page.read_text("utf-8"), []
    for fence in FENCE.finditer(text):
        above = text[: fence.start()].rstrip().rpartition("\n")[2]
        language, _, rest = fence[1].partition(" ")
        title = re.search(r'title="(.+?)"', rest)
        found.append(
            Block(
                page=str(page.relative_to(ROOT)),
                line=text.count("\n", 0, fence.start()) + 1,
                language=language,
                title=title[1] if title else "",
                text=fence[2],
                needs=above if NEEDS.fullmatch(above) else "",
            )
        )
    return found


def every_block() -> list[Block]:
    """The blocks of all pages."""
    return [block for page in pages() for block in blocks(page)]


def examples(module: types.ModuleType) -> Block:
    """The examples that a command's help ends with, as a block of its file."""
    file = pathlib.Path(inspect.getfile(module)).relative_to(ROOT)
    lines = [line for line in module.EXAMPLES.splitlines() if line.startswith(" ")]
    return Block(str(file), 1, "sh", "", "\n".join(lines), "")


def commands(block: Block) -> list[Command]:
    """The commands of a shell block, `a && b` as two."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            environment = {}
            while words and re.match(r"[A-Z_]+=", words[0]):
                name, _, environment[name] = words.pop(0).partition("=")
            if words:
                found.append(Command(block, environment, words))
    return found
