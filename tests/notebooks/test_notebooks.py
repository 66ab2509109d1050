"""Every notebook runs from top to bottom, in a small size, and in full when long."""

import json
import pathlib
import re

import pytest

from tests.training import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
REPOSITORY = "github/pixelflow-jax/pixelflow_jax/blob/main/notebooks/"
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)


def cells(path: pathlib.Path, kind: str) -> list[str]:
    """The texts of the cells of a kind."""
    found = json.loads(path.read_text("utf-8"))["cells"]
    return ["".join(c["source"]) for c in found if c["cell_type"] == kind]


@each
def test_a_notebook_is_kept_without_outputs(path):
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@each
def test_a_notebook_opens_itself_on_colab_and_installs_the_package(path):
    title, first = cells(path, "markdown")[0], cells(path, "code")[0]
    assert title.startswith("# ") and f"{REPOSITORY}{path.name})" in title
    assert '"google.colab" in sys.modules' in first and "%pip install" in first


@each
def test_the_links_of_a_notebook_lead_somewhere(path):
    for text in cells(path, "markdown"):
        for target in re.findall(r"\]\(([^)#]+)", text):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), target


def run(path: pathlib.Path, folder: pathlib.Path, small: bool) -> None:
    """Execute a notebook in a folder of its own."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    client = nbclient.NotebookClient(
        nbformat.read(path, 4),
        timeout=1200,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELFLOW_SMOKE", "1" if small else "")
        patch.setenv("PYTHONPATH", str(ROOT))
        # Readers have one CPU device, not the eight of these tests.
        for name, value in tiny.environment(cache=small).items():
            if name.startswith(("XLA_", "JAX_")):
                patch.setenv(name, value)
        client.execute()


@pytest.mark.slow
@each
def test_a_notebook_runs_in_a_small_size(path, tmp_path):
    run(path, tmp_path, small=True)


@pytest.mark.slow
@pytest.mark.long
@each
def test_a_notebook_runs_in_full(path, tmp_path):
    run(path, tmp_path, small=False)
