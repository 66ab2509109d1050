"""What the site's build adds to MkDocs: formulas, and pages that lie outside docs/.

Formulas become MathML while the site is built, which browsers draw by themselves: no
page loads a script for them. README.md, CHANGELOG.md, CONTRIBUTING.md and the
benchmarks' results are pages of the site, too; a link to any other file of the
repository leads to where the repository is published.
"""

import html
import pathlib
import posixpath
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "results.md",
}
LINK = re.compile(r"(\]\(|\b(?:src|href)=\")([^)\s\"#]+)(?=[)\s\"#])")
FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)


def on_files(files, config):
    """Adds the pages that lie outside docs/."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages."""
    sources = {target: source for source, target in PAGES.items()}
    uri = page.file.src_uri
    source = sources.get(uri, f"docs/{uri}")

    def replace(found: re.Match) -> str:
        target = link(found[2], source, uri, config.repo_url)
        if found[1] != "](":  # of HTML, which MkDocs leaves as it is
            target = from_page(target, page, files)
        return found[1] + target

    return LINK.sub(replace, markdown)


def link(target: str, source: str, page: str, repository: str) -> str:
    """A link of the file `source` as one of the page `page`; both from their roots."""
    if re.match(r"[a-z]+:|/", target):
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        raise PluginError(f"{source} links to {target}, and there is no {path}.")
    inside = PAGES.get(path) or path.removeprefix("docs/")
    if path in PAGES or path.startswith("docs/"):
        return posixpath.relpath(inside, posixpath.dirname(page) or ".")
    kind = "tree" if (ROOT / path).is_dir() else "blob"
    return f"{repository}/{kind}/main/{path}"


def from_page(target: str, page, files) -> str:
    """A link between files as one between addresses: a page's is a folder."""
    path = posixpath.normpath(
        posixpath.join(posixpath.dirname(page.file.src_uri), target)
    )
    file = files.get_file_from_path(path)
    return file.url_relative_to(page.file) if file else target


def on_page_content(content, page, config, files):
    """Turns formulas into MathML."""
    return FORMULA.sub(lambda found: formula(found[3], found[2] == "["), content)


def formula(latex: str, display: bool) -> str:
    """One formula as MathML; an error where a command of it is not known."""
    text = html.unescape(latex).strip()
    found = convert(text, display="block" if display else "inline")
    if "\\" in found or "<mi>&</mi>" in found:
        raise PluginError(f"A formula holds what latex2mathml does not know: {text}")
    # Browsers align the columns of formulas by their style alone.
    found = re.sub(r'columnalign="(\w+)"', r'style="text-align: \1"', found)
    # One that is wider than the page is moved inside its place, not with the page.
    return f'<div style="overflow-x: auto">{found}</div>' if display else found
