"""References of each kind, what is written and read again, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.__main__ import main as pixelflow
from pixelflow_jax.cli import reference as command
from pixelflow_jax.data.emoji.source import Emoji
from pixelflow_jax.data.loader import Data
from pixelflow_jax.errors import DataError, EvaluationError
from pixelflow_jax.evaluation import metrics, references
from pixelflow_jax.evaluation.accumulator import SetFeatures
from pixelflow_jax.evaluation.features import FEATURES, SPATIAL
from pixelflow_jax.evaluation.image_sets import open_images
from pixelflow_jax.evaluation.passes import set_features
from pixelflow_jax.evaluation.references import load_reference
from tests.evaluation import sets

MEASURED = ("fid", "sfid", "is", "pr")


@pytest.fixture
def networks(monkeypatch):
    """Small networks in the place of those that need weight files."""
    monkeypatch.setattr(
        command,
        "open_extractors",
        lambda names, weights: {name: sets.extractor(name) for name in names},
    )


@pytest.fixture
def npz(tmp_path):
    """A function that writes an npz file of arrays."""

    def write(name: str, **arrays) -> str:
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return write


def adm(seed: int = 0, **others) -> dict:
    """The arrays of a reference of ADM's kind."""
    images = sets.images(seed=seed)
    seen = sets.extractor().extract(images)
    moments = {}
    for suffix, key in (("", FEATURES), ("_s", SPATIAL)):
        moments["mu" + suffix] = seen[key].mean(0)
        moments["sigma" + suffix] = np.cov(seen[key], rowvar=False)
    return {"arr_0": images, **moments, **others}


def measured(reference: references.Reference, names=MEASURED) -> dict[str, float]:
    images, extractors = sets.images(30, seed=1), {"inception": sets.extractor()}
    seen = set_features([(0, images)], names, extractors, 30)
    rows = reference.with_rows(extractors, metrics.required_rows(names))
    return metrics.evaluate(names, seen, rows)


def test_adms_file_and_ours_of_the_same_images_say_the_same(npz, networks, tmp_path):
    theirs = load_reference(npz("VIRTUAL.npz", **adm()))
    assert (theirs.kind, theirs.resolution) == ("adm", (8, 8))
    wanted = command.Wanted(
        open_images(npz("a.npz", arr_0=sets.images())), MEASURED, {}
    )
    command.write(tmp_path / "own.npz", wanted)
    own = load_reference(tmp_path / "own.npz")
    assert (own.kind, own.count, own.resolution) == ("pixelflow", 20, (8, 8))
    assert len(own.facts["images_sha256"]) == len(own.sha256) == 64
    ours, others = measured(own), measured(theirs)
    assert set(ours) == {
        *("fid", "sfid", "precision", "recall"),
        *("is", "is_std", "is_jit", "is_jit_std"),
    }
    for name, value in ours.items():
        assert value == pytest.approx(others[name], rel=1e-5, abs=1e-9), name
    own.check_extractor(sets.extractor())
    with np.load(tmp_path / "own.npz") as arrays:  # other evaluators read it, too
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays.files)


def test_jits_file_serves_fid_alone(npz):
    arrays = adm()
    found = load_reference(npz("jit.npz", mu=arrays["mu"], sigma=arrays["sigma"]))
    assert (found.kind, found.resolution) == ("statistics", None)
    assert measured(found, ("fid",))["fid"] > 0
    with pytest.raises(EvaluationError, match="no spatial of inception, which sfid"):
        measured(found, ("sfid",))
    with pytest.raises(EvaluationError, match="statistics alone"):
        measured(found, ("pr",))
    with pytest.raises(EvaluationError, match="compares with a reference"):
        metrics.evaluate(("fid",), {"inception": SetFeatures(0, {}, {})})


def test_jits_resolution_is_known_by_its_digest(npz, monkeypatch):
    arrays = adm()
    path = npz("jit.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    monkeypatch.setitem(references.JIT, references.file_sha256(path), 256)
    found = load_reference(path)
    found.check_images(256, 256)
    with pytest.raises(EvaluationError, match="256 x 256 images, the samples are 64"):
        found.check_images(64, 64)


def test_rows_are_spread_over_all_images(npz, networks, tmp_path):
    images = open_images(npz("a.npz", arr_0=sets.images()))
    wanted = command.Wanted(images, ("fid_lite0",), {})
    with pytest.raises(EvaluationError, match="no metric called fid_lite0"):
        command.write(tmp_path / "own.npz", wanted)
    wanted = wanted._replace(metrics=("fd_lite0", "pr_lite0"), rows=5)
    features = command.write(tmp_path / "deeper" / "own.npz", wanted)["lite0"]
    expected = sets.extractor("lite0").extract(sets.images())[FEATURES]
    chosen = expected[np.linspace(0, 19, 5).astype(int)]
    np.testing.assert_array_equal(features.rows[FEATURES], chosen)
    assert features.count == 20


def test_a_reference_may_come_from_a_configs_data(networks, tmp_path):
    data = Data(source=Emoji(), image_size=16)
    images = command.images_of_data(data, "test")
    first, batch = next(images.batches(3))
    assert (first, batch.shape, batch.dtype) == (0, (3, 16, 16, 3), np.uint8)
    assert len(images) == len(data.open("test")) and len(images.labels) == len(images)


def test_a_reference_of_other_weights_is_refused(npz, networks, tmp_path):
    images = open_images(npz("a.npz", arr_0=sets.images()))
    command.write(tmp_path / "own.npz", command.Wanted(images, ("fid",), {}))
    own = load_reference(tmp_path / "own.npz")
    with pytest.raises(EvaluationError, match="other weights of inception"):
        own.check_extractor(sets.extractor(seed=1))


def test_files_that_are_no_reference_are_refused(npz, tmp_path):
    with pytest.raises(EvaluationError, match="There is no reference"):
        load_reference(tmp_path / "absent.npz")
    with pytest.raises(EvaluationError, match="holds arr_0, no statistics"):
        load_reference(npz("images.npz", arr_0=sets.images()))
    wrong = adm() | {"sigma": np.zeros((3, 4))}
    with pytest.raises(EvaluationError, match=r"\[3, 4\], not \[d\] and \[d, d\]"):
        load_reference(npz("wrong.npz", **wrong))
    for broken in ({"mu": np.full(6, np.nan)}, {"sigma": np.full((6, 6), np.inf)}):
        with pytest.raises(EvaluationError, match="not finite: download"):
            load_reference(npz("broken.npz", **adm() | broken))
    for meta in (b"no JSON", b"{}", b"[]"):
        with pytest.raises(EvaluationError, match="no `pixelflow evaluate reference`"):
            load_reference(npz("meta.npz", meta=np.frombuffer(meta, np.uint8)))
    other = adm() | {"mu": np.zeros(7), "sigma": np.eye(7)}
    with pytest.raises(EvaluationError, match=r"of 7 numbers an image, but .* gives 6"):
        load_reference(npz("other.npz", **other)).check_extractor(sets.extractor())
    path = tmp_path / "cut.npz"
    path.write_bytes(open(npz("whole.npz", **adm()), "rb").read()[:-200])
    with pytest.raises(EvaluationError, match="cut short or no npz"):
        load_reference(path)


def test_samples_that_carry_statistics_are_refused(npz):
    with pytest.raises(EvaluationError, match="carries statistics .mu, sigma, mu_s"):
        open_images(npz("reference.npz", **adm()))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": sets.images(1)}, "holds images, but no arr_0"),
        ({"arr_0": sets.images(1).astype(np.float32)}, "float32"),
        ({"arr_0": np.full((1, 8, 8, 3), np.nan)}, "float64"),
        ({"arr_0": sets.images(2)[..., 0]}, r"shape \[2, 8, 8\]"),
    ],
)
def test_an_npz_without_proper_images_is_refused(npz, arrays, says):
    with pytest.raises(EvaluationError, match=says):
        open_images(npz("a.npz", **arrays))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_batches(tmp_path, save):
    images, labels = sets.images(7), np.arange(7)
    save(tmp_path / "a.npz", images, labels)
    found = open_images(tmp_path / "a.npz")
    assert (len(found), found.size) == (7, (8, 8))
    np.testing.assert_array_equal(found.labels, labels)
    batches = dict(found.batches(3))
    assert list(batches) == [0, 3, 6]
    np.testing.assert_array_equal(np.concatenate(list(batches.values())), images)


def test_a_cut_npz_is_no_set(tmp_path, npz):
    path = tmp_path / "cut.npz"
    path.write_bytes(open(npz("whole.npz", arr_0=sets.images()), "rb").read()[:900])
    with pytest.raises(EvaluationError, match="cut short or no npz"):
        open_images(path)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path):
    images = sets.images(5)
    for name, image in zip(("b/0", "a/1", "a/0", "a/10", "c"), images, strict=True):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    found = open_images(tmp_path)
    ((_, batch),) = found.batches(8)
    np.testing.assert_array_equal(batch, images[[2, 1, 3, 0, 4]])
    Image.fromarray(sets.images(1, 9, 8)[0]).save(tmp_path / "d.png")
    with pytest.raises(EvaluationError, match="d.png is 9 x 8, but a/0.png is 8 x 8"):
        list(open_images(tmp_path).batches(8))
    (tmp_path / "d.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="d.png cannot be decoded"):
        list(open_images(tmp_path).batches(8))


def test_what_is_absent_or_empty_is_named(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        open_images(tmp_path / "absent.npz")
    with pytest.raises(DataError, match="holds no images"):
        open_images(tmp_path)


def test_fewer_images_than_neighbours_are_refused(npz):
    found = load_reference(npz("few.npz", **adm(arr_0=sets.images(3))))
    with pytest.raises(EvaluationError, match="more than 3 images"):
        measured(found, ("pr",))


def test_kid_needs_as_many_images_as_its_subsets(npz):
    found = load_reference(npz("few.npz", **adm()))
    with pytest.raises(EvaluationError, match="subsets of 1000 images.*has 20"):
        measured(found, ("kid",))


def test_the_command_writes_a_reference_and_says_so(npz, networks, tmp_path, capsys):
    out, images = str(tmp_path / "own.npz"), npz("a.npz", arr_0=sets.images())
    line = ["evaluate", "reference", out, f"--images={images}"]
    assert pixelflow([*line, "--inception=weights.pth", "--rows=7"]) == 0
    shown = capsys.readouterr().out
    assert "inception: 20 images, 7 features" in shown
    found = load_reference(out)
    assert found.sha256 in shown
    assert found.facts["metrics"] == ["fid", "sfid", "pr", "kid"]


def test_the_command_reads_a_configs_data(networks, tmp_path, capsys):
    line = ["evaluate", "reference", str(tmp_path / "own.npz"), "--config=emoji:demo"]
    assert pixelflow([*line, "--split=test", "--config.data.image_size=16"]) == 0
    assert "lite0: " in capsys.readouterr().out
    assert load_reference(tmp_path / "own.npz").resolution == (16, 16)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["own.npz", "--images=absent.npz"], "There is no file absent.npz"),
        (["own.npz", "--images={images}", "--metrics=fud"], "no metric called fud"),
        (["own.npz", "--images={images}", "--metrics=is"], "with no reference"),
        (["own.txt", "--images={images}"], "must end in .npz"),
    ],
)
def test_the_command_refuses_briefly(npz, networks, capsys, options, says):
    images = npz("a.npz", arr_0=sets.images())
    line = [option.format(images=images) for option in options]
    assert pixelflow(["evaluate", "reference", *line]) == 1
    shown = capsys.readouterr().err
    assert says in shown and len(shown.splitlines()) == 1
