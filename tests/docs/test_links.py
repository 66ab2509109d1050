"""Links lead somewhere, names exist, messages are still said."""

import ast
import importlib
import pathlib
import re
import tomllib

import pytest

from pixelflow_jax import renamed
from pixelflow_jax.config_files import load_config
from tests.docs import pages
from tests.docs.pages import DOCS, ROOT

PACKAGE = ROOT / "pixelflow_jax"
LINK = re.compile(r"\]\(([^)\s]+)\)")
EVERY = [*pages.pages(), ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
EVERY += [ROOT / "benchmarks/RESULTS.md", ROOT / "assets/README.md"]


def slug(title: str) -> str:
    """A heading's anchor, as Python-Markdown makes it."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)|[`*]", r"\1", title)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain.lower())).strip("-")


def anchors(page: pathlib.Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    return {slug(title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", EVERY, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            assert re.match(r"https://[\w.-]+(/|$)", target), target
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def flags(command: pages.Command) -> dict[str, str]:
    """The verb of a command of ours and its flags; empty for other programs."""
    if "pixelflow" not in command.words:
        return {}
    verb, *rest = command.words[command.words.index("pixelflow") + 1 :]
    return {"verb": verb, **dict(word.partition("=")[::2] for word in rest)}


def trained(command: pages.Command) -> str:
    """The run that a command trains; "" for none."""
    given = flags(command)
    trains = given.get("verb") in ("train", "quickstart")
    return given.get("--workdir", "") if trains else ""


def drawn_upon(command: pages.Command) -> set[str]:
    """The runs that it needs weights of."""
    given = flags(command)
    named = {given.get("--config.init_from", ""), given.get("--guide", "")}
    if not trained(command) and "--weights" not in given:
        named.add(given.get("--workdir", ""))
    return {run for run in named if run.startswith("runs/")}


def test_a_page_says_where_the_runs_come_from_that_it_draws_upon():
    """A page that is copied alone leads to the one that trains what it starts with."""
    commands = {
        page: [c for b in pages.blocks(page) if not b.needs for c in sh_commands(b)]
        for page in pages.pages()
    }
    makers = {page: {*map(trained, done)} for page, done in commands.items()}
    for page, done in commands.items():
        here, links = set(), LINK.findall(page.read_text("utf-8"))
        linked = {(page.parent / link.partition("#")[0]).resolve() for link in links}
        led_to = {run for other in linked & {*makers} for run in makers[other]}
        for command in done:
            missing = drawn_upon(command) - here - led_to
            assert not missing, f"{page.name}: {command.words}"
            here.add(trained(command))


def sh_commands(block: pages.Block) -> list[pages.Command]:
    """Its commands; none of what is no shell block."""
    return pages.commands(block) if block.language in pages.SHELL else []


def test_every_page_is_in_the_navigation():
    site = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = re.findall(r" ([\w/]+\.md)(?: +#.*)?$", site.partition("\nnav:")[2], re.M)
    outside = {"index.md", "changelog.md", "contributing.md", "results.md"}
    own = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert {*nav} - outside == own
    assert len(nav) == len({*nav})


NAMES = sorted(
    {
        (str(page.relative_to(ROOT)), name)
        for page in pages.pages()
        for name in re.findall(
            r"(?:`|^::: )(pixelflow_jax\.[\w.]+)", page.read_text("utf-8"), re.MULTILINE
        )
        if not name.endswith((".py", ".models")) and page.name != "migration.md"
    }
)


@pytest.mark.parametrize(("page", "name"), NAMES, ids=lambda value: value)
def test_names_in_full_exist(page, name):
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return
    raise AssertionError(name)


def test_configs_that_pages_name_exist():
    configs = {file.stem for file in (ROOT / "configs").glob("*.py")}
    named = set()
    for page in pages.pages():
        for name, variant in re.findall(
            r"`(?:configs/)?(\w+)(?:\.py)?:([\w.]+)`", page.read_text("utf-8")
        ):
            if name in configs:
                named.add(f"{name}:{variant}")
    assert len(named) > 30
    for config in sorted(named):
        load_config(config)


def messages() -> list[str]:
    """All texts of the package, with \\0 for what is put into them."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr | ast.Constant | ast.BinOp):
                found.append(text_of(node))
    return [re.sub(r"\s+", " ", text) for text in found if len(text) > 15]


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "\0"
            for part in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or "\0") + (text_of(node.right) or "\0")
    return ""


def test_messages_of_the_page_on_trouble_are_still_said():
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    listed = re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)
    assert len(listed) > 40
    said = messages()
    missing = []
    for message in listed:
        parts = [re.escape(part) for part in message.split("...")]
        wording = re.compile(".*".join(parts), re.DOTALL)
        if not any(wording.search(text) for text in said):
            missing.append(message)
    assert not missing


def test_the_repository_has_one_address():
    with (ROOT / "pyproject.toml").open("rb") as file:
        address = tomllib.load(file)["project"]["urls"]["Repository"]
    for name in ("README.md", "mkdocs.yml", "CITATION.cff", "docs/getting_started.md"):
        text = (ROOT / name).read_text("utf-8")
        assert address in text, name
        owners = set(re.findall(r"github\.com/([\w-]+)/pixelflow_jax", text))
        assert owners == {address.split("/")[-2]}, name


def test_the_version_is_cited():
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    version = re.search(r"^version: (.+)$", text, re.MULTILINE)
    assert version
    assert f'"{version[1]}"' in (PACKAGE / "__init__.py").read_text("utf-8")


def test_the_page_on_migration_names_all_that_is_called_otherwise():
    text = (DOCS / "migration.md").read_text("utf-8")
    for table in (renamed.NAMES, renamed.MODULES):
        for old, new in table.items():
            assert f"| `{old}` | `{new}` |" in text, old
    for old, new in renamed.FIELDS.items():
        assert old in text and new in text, old


def test_citations_of_the_readme_are_the_models():
    """One fact, one place: the model's config class has it."""
    from pixelflow_jax.models import pixelflow, pixelgen, pixnerd

    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text("utf-8"))
    for paper in (pixelflow.PAPER, pixnerd.PAPER, pixelgen.PAPER):
        key = re.search(r"@article\{(\w+)", paper.bibtex)
        assert key and key[1] in text
        assert paper.title in text and paper.url in text
