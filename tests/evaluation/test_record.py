"""Records of results, and which of them may be compared."""

import copy

import numpy as np
import pytest

from pixelflow_jax.errors import EvaluationError
from pixelflow_jax.evaluation import record
from pixelflow_jax.evaluation.order import class_order
from pixelflow_jax.evaluation.references import Reference
from tests.evaluation.pixels import Pixels

SAMPLING = {
    "solver": {"class": "Heun"},
    "steps": 50,
    "guidance": {"scale": 2.0, "low": 0.1, "high": 1.0, "interval": "()"},
    "grid": {"shift": 1.0},
    "seed": 0,
    "digest": "a",
}
MODEL = {"origin": "step 9", "ema": "0.9999", "precision": {"compute": "bfloat16"}}


@pytest.fixture
def written():
    images = {"count": 50_000, "height": 8, "width": 8, "order": "mixed", "path": "a"}
    protocol = record.Protocol(
        images={**images, "uint8": record.UINT8},
        extractors={"inception": Pixels("inception")},
        reference=Reference("ref.npz", "0" * 64, "adm", {}, resolution=(8, 8)),
        model=MODEL,
        sampling=SAMPLING,
        seconds_per_image=0.5,
    )
    return protocol.to_dict({"fid": 2.5, "is": 280.0})


def test_a_record_says_all_that_a_number_depends_on(written, tmp_path):
    record.write_record(tmp_path / "a.json", written)
    read = record.read_record(tmp_path / "a.json")
    assert read == written and read["results"] == {"fid": 2.5, "is": 280.0}
    assert read["reference"]["sha256"] == "0" * 64
    assert read["networks"]["inception"]["file_sha256"] == "f" * 64
    assert read["time"] == {"seconds_per_image": 0.5}
    packages = read["environment"]["packages"]
    assert {"jax", "flax", "numpy"} <= set(packages) and packages["jax"]
    assert set(read["environment"]) >= {"git_commit", "device", "devices", "processes"}


def changed(written, path, value):
    other = copy.deepcopy(written)
    *parents, last = path.split(".")
    place = other
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return other


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("images.count", 10_000, "protocol"),
        ("images.height", 16, "protocol"),
        ("images.uint8", "floor(x * 255)", "protocol"),
        ("images.order", "sorted", "protocol"),
        ("images.order", "interleaved", "harmless"),
        ("images.path", "b", "harmless"),
        ("reference.sha256", "1" * 64, "protocol"),
        ("reference.path", "other.npz", "harmless"),
        ("networks.inception.weights_digest", "1" * 64, "protocol"),
        ("networks.inception.file_sha256", "1" * 64, "harmless"),
        ("networks.inception.resize", "half pixels", "protocol"),
        ("networks.inception", None, "protocol"),
        ("sampling.solver.class", "Euler", "protocol"),
        ("sampling.steps", 25, "protocol"),
        ("sampling.guidance.scale", 1.5, "protocol"),
        ("sampling.guidance.interval", "[]", "protocol"),
        ("sampling.grid.shift", 2.0, "protocol"),
        ("sampling.seed", 1, "harmless"),
        ("sampling.digest", "b", "harmless"),
        ("sampling", {}, "protocol"),
        ("model.ema", "0.999", "protocol"),
        ("model.precision.compute", "float32", "protocol"),
        ("model.origin", "step 10", "subject"),
        ("environment.git_commit", "abc", "harmless"),
        ("time.seconds_per_image", 9.0, "harmless"),
        ("novelty", 1, "protocol"),
    ],
)
def test_each_difference_is_of_one_kind(written, path, value, kind):
    other = changed(written, path, value)
    for pair in ((written, other), (other, written)):
        found = record.compare(*pair)
        kinds = {name for name, fields in vars(found).items() if fields}
        assert kind in kinds and kinds <= {kind, "harmless"}
        assert found.comparable == (kind != "protocol")
    text = record.report(written, other, ("a.json", "b.json"))
    assert path.split(".")[0] in text
    assert text.endswith("may be compared." if found.comparable else "not comparable.")


def test_an_order_misleads_only_the_inception_score(written):
    other = changed(written, "images.order", "sorted")
    pair = [{**one, "results": {"fid": 2.0}} for one in (written, other)]
    assert record.compare(*pair).comparable
    pair[1]["results"] = {"kid": 0.1}
    assert "results" in record.compare(*pair).protocol


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read .No such file"),
        ("{", "is no JSON"),
        ("[]", "is no record"),
        ('{"results": {"fid": "x"}, "format": 1}', "is no record of results"),
        ('{"results": {}, "format": 0}', "is no record of results of format 1"),
        ('{"figures": {}, "format": 2}', "is of format 2, .* reads format 1: update"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content, words):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=words):
        record.read_record(path)


def test_nothing_that_json_does_not_know_is_written(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        record.write_record(tmp_path / "a.json", {"results": {"fid": float("nan")}})
    assert not list(tmp_path.glob("*.json"))


RNG = np.random.default_rng(0)
MIXED = RNG.integers(0, 10, 1000)


def guessed(labels, accuracy):
    """What a network of that accuracy takes images for."""
    return np.where(
        RNG.random(len(labels)) < accuracy, labels, RNG.integers(0, 10, len(labels))
    )


@pytest.mark.parametrize(
    ("classes", "order"),
    [
        (np.sort(MIXED), "sorted"),
        (guessed(np.sort(MIXED), 0.6), "sorted"),
        (np.arange(1000) % 10, "mixed"),
        (MIXED, "mixed"),
        (guessed(MIXED, 0.6), "mixed"),
        (np.zeros(1000, int), "mixed"),
        (np.repeat(np.arange(500), 2), "sorted"),
        (np.arange(1000), "mixed"),
        (np.array([0, 0, 1, 1]), "unknown"),
        (None, "unknown"),
    ],
)
def test_class_sorted_sets_are_known(classes, order):
    assert class_order(classes) == order
