"""A paper's figures from official weights, end to end on a small generated model."""

import dataclasses
import errno
import json

import numpy as np
import pytest

from pixelflow_jax.cli import reproduce
from pixelflow_jax.config_files import load_config, names, paper_rows, variants
from pixelflow_jax.config_io import differences, to_dict
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.evaluation.paper import PaperRow, judge, protocol_differences
from pixelflow_jax.evaluation.references import Reference, load_reference
from pixelflow_jax.evaluation.statistics import gaussian_of
from pixelflow_jax.sampling.settings import Sampling
from tests.convert import checkpoints
from tests.convert.test_command import PIXNERD, official
from tests.evaluation.pixels import Pixels

CONFIG = """
from pixelflow_jax.data.loader import Data
from pixelflow_jax.evaluation.paper import PaperRow
from pixelflow_jax.experiment import Experiment
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.sampling.settings import Sampling


def small():
    field = NeuralField(width=6, depth=1)
    return Experiment(
        name="small",
        data=Data(image_size=8),
        model=PixNerd(
            num_classes=5, width=24, heads=2, depth=3, feature_layer=1, patch=4,
            decoder=field,
        ),
        precision=Precision(compute="float32"),
    )


VARIANTS = {"small": small}
SAMPLING = Sampling(grid=Grid(steps=2))
PAPER = {
    "small": (
        PaperRow(
            source="Nobody 2026, Table 1",
            figures={"fid": 2.0, "is": 3.0},
            sampling=SAMPLING,
            count=12,
        ),
    )
}


def get_config(variant="small"):
    return VARIANTS[variant]()
"""


def test_every_listed_row_is_of_a_variant_and_the_first_is_its_config():
    """Figures in the ranges of their kind; settings as the config draws."""
    listed = 0
    for name in names():
        for variant in variants(name):
            try:
                rows = paper_rows(f"{name}:{variant}")
            except ConfigError:
                continue
            own = to_dict(load_config(f"{name}:{variant}").sampling)
            assert not differences(own, to_dict(rows[0].sampling))
            assert all(1 < row.figures["fid"] < 30 for row in rows)
            assert len({row.summary for row in rows}) == len(rows)
            listed += len(rows)
    assert listed >= 10
    with pytest.raises(ConfigError, match="pixnerd:xl16_256.*can be reproduced"):
        paper_rows("pixnerd:field_sincos")


ROW = PaperRow(source="T", figures={"fid": 2.0, "is": 280.0}, sampling=Sampling())


@pytest.mark.parametrize(
    ("results", "count", "verdict"),
    [
        ({"fid": 2.03, "is": 281.0}, 50_000, "reproduced"),
        ({"fid": 2.03, "is": 68.0}, 50_000, "not reproduced"),
        ({"fid": 2.15, "is": 280.0}, 50_000, "close"),
        ({"fid": 1.2, "is": 280.0}, 50_000, "not reproduced"),
        ({"fid": 2.0, "is": 280.0}, 10_000, "none"),
        ({"fd_lite0": 2.0}, 50_000, "none"),
    ],
)
def test_verdicts(results, count, verdict):
    assert judge(ROW, results, count).verdict == verdict


def test_the_score_of_the_papers_own_protocol_is_compared():
    row = dataclasses.replace(ROW, figures={"is": 300.0}, evaluator="jit")
    assert judge(row, {"is": 280.0, "is_jit": 300.0}, 50_000).verdict == "reproduced"


def test_what_differs_is_said():
    reference = Reference(path="r", sha256="s", kind="statistics", sets={})
    other = Sampling(batch_size=2)
    other.grid = dataclasses.replace(other.grid, steps=9)
    lines = "\n".join(protocol_differences(ROW, other, 100, reference))
    assert "100 images and not 50,000" in lines and "is not ADM's" in lines
    assert "sampling.grid.steps: 50 in the paper, here 9" in lines
    assert "batch_size" not in lines


@pytest.mark.parametrize(
    ("count", "pictures", "expected"),
    [
        (2, 20, {"fid"}),
        (12, 3, {"fid", "is"}),
        (12, 20, {"fid", "is", "pr"}),
        (1000, 1000, {"fid", "is", "pr", "kid"}),
    ],
)
def test_what_so_many_images_allow_is_measured(
    tmp_path, monkeypatch, count, pictures, expected
):
    network = Pixels("inception")
    seen = network.extract(np.zeros((3, 8, 8, 3), np.uint8))
    mean, covariance = gaussian_of(seen["features"])
    images = np.zeros((pictures, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "r.npz", arr_0=images, mu=mean, sigma=covariance)
    (tmp_path / "mine.py").write_text(CONFIG)
    config = load_config(f"{tmp_path / 'mine.py'}:small")
    monkeypatch.setattr(reproduce, "open_extractors", lambda *_: {"inception": network})
    task = reproduce.Task(
        name="",
        config=config,
        row=ROW,
        weights=tmp_path,
        reference=load_reference(tmp_path / "r.npz"),
        networks={"inception": "there.pth"},
        out=tmp_path,
        count=count,
    )
    assert set(reproduce._measured(task)[1]) == expected


@pytest.mark.slow
def test_from_official_weights_to_a_verdict(tmp_path, monkeypatch, capsys):
    config = tmp_path / "mine.py"
    config.write_text(CONFIG)
    weights = checkpoints.save(official(PIXNERD), tmp_path / "official.safetensors")
    pictures = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    network = Pixels("inception")
    seen = network.extract(pictures)
    mean, covariance = gaussian_of(seen["features"])
    reference = tmp_path / "VIRTUAL_small.npz"
    np.savez(reference, arr_0=pictures, mu=mean, sigma=covariance)
    opened = lambda names, files: {name: network for name in names}
    monkeypatch.setattr(reproduce, "open_extractors", opened)
    arguments = [f"{config}:small", f"--weights={weights}", f"--out={tmp_path / 'out'}"]
    arguments += [f"--reference={reference}", "--inception=there.pth"]
    assert reproduce.main(arguments) == 0
    said = capsys.readouterr().out
    assert "Nobody 2026, Table 1" in said and "Verdict: not reproduced" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert {"fid", "is", "precision", "recall"} <= set(report["results"])
    assert report["reproduction"]["verdict"] == "not reproduced"
    assert report["images"]["count"] == 12
    drawn = tmp_path / "out" / "samples" / "samples.npz"
    before = drawn.read_bytes(), drawn.stat().st_mtime_ns
    assert reproduce.main(arguments) == 0  # nothing is converted or drawn again
    assert (drawn.read_bytes(), drawn.stat().st_mtime_ns) == before
    again = json.loads((tmp_path / "out" / "report.json").read_text())
    assert again["results"] == report["results"]
    labels = np.load(drawn)["labels"]
    assert labels.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert reproduce.main([*arguments, "--num_samples=10"]) == 0
    assert "no verdict is possible" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pixnerd:xl16_256"], "needs --weights and --reference"),
        (["pixnerd:xl16_256", "--row=9"], "has the rows 0 to 2"),
        (["emoji:demo", "--rows"], "can be reproduced"),
        (["nonsense"], "There is no config file"),
        (["pixnerd", "--weights=a", "--reference=b"], "There is no reference b"),
    ],
)
def test_what_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        reproduce.main(arguments)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_is_one_paragraph(monkeypatch, capsys):
    def full(given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reproduce, "_task", full)
    with pytest.raises(SystemExit):
        reproduce.main(["pixnerd:xl16_256"])
    said = " ".join(capsys.readouterr().err.split())
    assert "Writing to runs/reproduce failed: No space left on device." in said


def test_the_rows_are_listed(capsys):
    assert reproduce.main(["pixnerd:xl16_256", "--rows"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].startswith("--row=0  Wang et al. 2025")
