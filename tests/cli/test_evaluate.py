"""`pixelflow evaluate`: sets that are drawn and measured, others' images, refusals."""

import errno
import json
import pathlib

import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image

from pixelflow_jax import build, main
from pixelflow_jax.cli import arguments, evaluate, judge
from pixelflow_jax.errors import (
    ConfigError,
    DataError,
    EvaluationError,
    PipelineError,
    UserError,
)
from pixelflow_jax.evaluation import metrics, references
from pixelflow_jax.evaluation.accumulator import Accumulator
from pixelflow_jax.pretrained.pipeline import Pipeline
from tests import texts
from tests.evaluation.pixels import Pixels
from tests.training import tiny

NAMES = ["fd_lite0", "pr_lite0"]
COUNT = 12


@pytest.fixture(scope="module", autouse=True)
def parsed():
    """Flags have their defaults until a command line was read."""
    main.flags.FLAGS(["test"])


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    """A network without weights in the place of the real ones."""
    opened = lambda names, files: {name: Pixels(name) for name in names}
    monkeypatch.setattr(judge, "open_extractors", opened)


@pytest.fixture(scope="module")
def pipeline():
    config = tiny.experiment("unused")
    params = jax.jit(build.network(config).init)(jax.random.key(0))
    return Pipeline(config=config, params=params, class_names=tiny.CLASSES, step=6)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Statistics and features of 20 random images."""
    path = tmp_path_factory.mktemp("reference") / "reference.npz"
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    network = {"lite0": Pixels()}
    seen = Accumulator(metrics.required(NAMES))
    seen.add(network, images, 0)
    references.write_reference(
        path, seen.features(), network, resolution=(16, 16), facts={}
    )
    return path


def run(pipeline, out, **given):
    with flagsaver.flagsaver(**given):
        return evaluate.run(lambda: pipeline, out, out)


@pytest.fixture(scope="module")
def measured(pipeline, reference, tmp_path_factory):
    """The folder of a measured draw, and its record."""
    out = tmp_path_factory.mktemp("measured")
    given = {"num_samples": COUNT, "allow_n": True, "reference": str(reference)}
    with pytest.MonkeyPatch.context() as patch:
        opened = lambda names, files: {name: Pixels(name) for name in names}
        patch.setattr(judge, "open_extractors", opened)
        assert run(pipeline, out, metrics=NAMES, sample_seed=2, **given) == 0
        (path,) = out.glob("evaluations/*/result-*.json")
        first = path.read_bytes(), json.loads(path.read_text())
        # Once more: the images are there already.
        assert run(pipeline, out, metrics=NAMES, sample_seed=2, **given) == 0
    assert list(out.glob("evaluations/*/result-*.json")) == [path]
    again = json.loads(path.read_text())
    assert again["results"] == first[1]["results"]
    return path.parent, first[1]


def test_a_set_is_interleaved_and_each_image_that_of_its_number(pipeline, measured):
    folder, _ = measured
    archive = np.load(folder / "samples.npz")
    labels = [i % 3 for i in range(COUNT)]
    np.testing.assert_array_equal(archive["labels"], labels)
    images = pipeline(labels, seed=2)
    np.testing.assert_array_equal(archive["arr_0"], images)
    part = pipeline(labels[5:7], seed=2, first=5)
    np.testing.assert_array_equal(archive["arr_0"][5:7], part)
    assert not (folder / "images").exists() and (folder / "grid.png").is_file()


def test_its_record_holds_the_protocol(measured, reference):
    _, record = measured
    assert set(record["results"]) == {"fd_lite0", "precision_lite0", "recall_lite0"}
    images, sampling = record["images"], record["sampling"]
    assert (images["count"], images["order"]) == (COUNT, "interleaved")
    assert images["uint8"] == "round((x + 1) * 127.5), clipped"
    assert sampling["solver"]["class"] == "Euler" and sampling["steps"] == 3
    guidance = {name: sampling["guidance"][name] for name in ("scale", "low", "high")}
    assert guidance == {"scale": 2.0, "low": 0.1, "high": 1.0}
    assert sampling["guidance"]["interval"] == "()" and sampling["seed"] == 2
    assert sampling["grid"]["shift"] == 1.0
    assert record["model"]["step"] == 6 and len(record["model"]["weights"]) == 64
    assert record["model"]["ema"] == "0.9"
    assert record["model"]["precision"]["compute"] == "float32"
    assert record["reference"]["sha256"] == references.file_sha256(reference)
    assert record["networks"]["lite0"]["weights_digest"] == "d" * 64


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_images_of_others_are_measured_alike(measured, reference, tmp_path, kind):
    folder, record = measured
    place = folder / "samples.npz"
    if kind == "folder":
        place = tmp_path / "pngs"
        place.mkdir()
        for i, image in enumerate(np.load(folder / "samples.npz")["arr_0"]):
            Image.fromarray(image).save(place / f"{i:03d}.png")
    given = {"images": str(place), "allow_n": True, "reference": str(reference)}
    alias = {"metrics": ["fid", "pr"], "features": "lite0"}
    assert run(None, tmp_path / "out", **alias, **given) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    other = json.loads(path.read_text())
    assert other["results"] == pytest.approx(record["results"], rel=1e-6)
    assert other["images"]["uint8"] == "unknown" and other["sampling"] == {}


def test_a_sorted_set_is_warned_about(measured, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    for name, labels in (("sorted", np.arange(64) // 8), ("mixed", np.arange(64) % 8)):
        path = tmp_path / f"{name}.npz"
        key = "arr_1" if name == "mixed" else "labels"
        np.savez(path, arr_0=images, **{key: labels})
        given = {"images": str(path), "metrics": ["is"], "allow_n": True}
        assert run(None, tmp_path / name, inception="file", **given) == 0
        assert ("class after class" in capsys.readouterr().out) == (name == "sorted")
    # Without labels, by what the network takes the images for.
    dark = np.repeat(np.linspace(0, 255, 8).astype(np.uint8), 8)
    tinted = np.broadcast_to(dark[:, None, None, None], (64, 8, 8, 3))
    np.savez(tmp_path / "tinted.npz", tinted)
    given["images"] = str(tmp_path / "tinted.npz")
    assert run(None, tmp_path / "out", inception="file", **given) == 0
    assert "class after class" in capsys.readouterr().out


def test_records_are_compared(measured, tmp_path, capsys):
    folder, record = measured
    (path,) = folder.glob("result-*.json")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**record, "environment": {"git_commit": "x"}}))
    assert run(None, tmp_path, compare=[str(path), str(other)]) == 0
    record["sampling"]["guidance"]["scale"] = 3.0
    other.write_text(json.dumps(record))
    assert run(None, tmp_path, compare=[str(path), str(other)]) == 1
    printed = capsys.readouterr().out
    assert "sampling.guidance.scale: 2.0 -> 3.0" in printed
    assert "not comparable" in printed


def test_two_records_may_be_two_words(measured, capsys):
    folder, _ = measured
    (path,) = map(str, folder.glob("result-*.json"))
    with flagsaver.flagsaver():
        arguments.read(["--compare", path, "other.json"], "evaluate")
        assert evaluate.COMPARE.value == [path, "other.json"]
    with flagsaver.flagsaver(), pytest.raises(SystemExit):
        arguments.read(["--compare", path, "b.json", "c.json"], "evaluate")
    assert "Unknown arguments: b.json c.json" in capsys.readouterr().err


def archive(path: pathlib.Path, *arrays: np.ndarray, **named: np.ndarray) -> str:
    np.savez(path, *arrays, **named)
    return str(path)


BLACK = np.zeros((4, 16, 16, 3), np.uint8)
MISTAKES = {
    "another N": ({"metrics": NAMES}, EvaluationError, "7 images .*50,000.*--allow_n"),
    "no reference": (
        {"metrics": NAMES, "allow_n": True},
        EvaluationError,
        "--reference",
    ),
    "no network": (
        {"metrics": ["is"], "allow_n": True},
        EvaluationError,
        "--inception, or take --features=lite0",
    ),
    "no metric": ({"metrics": ["fidd"], "allow_n": True}, EvaluationError, "'?fidd"),
    "no alias": (
        {"metrics": ["sfid"], "features": "lite0", "allow_n": True},
        EvaluationError,
        "--features=lite0 has no sfid",
    ),
    "no reference file": (
        {"metrics": NAMES, "allow_n": True, "reference": "nope.npz"},
        EvaluationError,
        "no reference nope.npz",
    ),
    "size": (
        {"metrics": NAMES, "allow_n": True, "height": 24, "width": 24},
        EvaluationError,
        "reference .* is of 16 x 16 images, the samples are 24 x 24",
    ),
    "one record": ({"compare": ["a.json"]}, EvaluationError, "must name two records"),
    "two modes": (
        {"compare": ["a", "b"], "images": "x"},
        EvaluationError,
        "--images and --compare are different",
    ),
    "fewer images than neighbours": (
        {"metrics": ["pr_lite0"], "allow_n": True, "num_samples": 3},
        EvaluationError,
        "pr_lite0 needs 4 images or more, and the set has 3: take more",
    ),
    "a reference of fewer images": (
        {"metrics": ["kid_lite0"], "allow_n": True, "num_samples": 2000},
        EvaluationError,
        "needs 1,000 images or more, and the reference has 20",
    ),
    "a reference without that network": (
        {"metrics": ["fid"], "allow_n": True, "inception": "file"},
        EvaluationError,
        "holds no features of inception, which fid needs",
    ),
    "no prompts": ({"suite": "dpg"}, EvaluationError, "--suite=dpg needs --prompts"),
    "a suite of classes": (
        {"suite": "dpg", "prompts": "x"},
        EvaluationError,
        "this model draws classes",
    ),
    "prompts alone": ({"prompts": "x"}, EvaluationError, "--prompts_file"),
    "no metrics": ({"images": "x"}, EvaluationError, "--images needs --metrics"),
    "no images": (
        {"images": "nope.npz", "metrics": NAMES},
        DataError,
        "There is no file nope.npz",
    ),
    "no folder": ({"images": "nope", "metrics": NAMES}, DataError, "nope"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_measured_is_told_before_anything_is_drawn(
    pipeline, reference, tmp_path, name
):
    given, error, words = MISTAKES[name]
    if name in ("size", "fewer images than neighbours") or "a reference" in name:
        given = {**given, "reference": str(reference)}
    assert issubclass(error, UserError)
    with pytest.raises(error, match=words):
        run(pipeline, tmp_path, **{"num_samples": 7, **given})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"arr_0": BLACK.astype(np.float32)}, "of type float32.*uint8"),
        ({"arr_0": np.full((4, 8, 8, 3), np.nan)}, "of type float64"),
        ({"images": BLACK}, "no arr_0"),
        ({"arr_0": BLACK, "mu": np.zeros(3)}, "carries statistics"),
        ({"arr_0": BLACK[:, :8, :8]}, "16 x 16 images, the samples are 8 x 8"),
    ],
)
def test_images_that_cannot_be_measured_are_refused(reference, tmp_path, arrays, words):
    path = archive(tmp_path / "a.npz", **arrays)
    given = {"images": path, "metrics": NAMES, "reference": str(reference)}
    with pytest.raises(EvaluationError, match=words):
        run(None, tmp_path / "out", allow_n=True, **given)
    assert not (tmp_path / "out").exists()


def test_images_of_two_sizes_are_refused(reference, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate((16, 16, 16, 24)):
        Image.new("RGB", (size, size)).save(folder / f"{i}.png")
    given = {"images": str(folder), "metrics": NAMES, "reference": str(reference)}
    with pytest.raises(EvaluationError, match="3.png is 24 x 24, but 0.png is 16 x 16"):
        run(None, tmp_path / "out", allow_n=True, **given)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_no_8_bit_images_is_refused(reference, tmp_path):
    given = {"metrics": ["fd_lite0"], "reference": str(reference), "allow_n": True}
    for name in ("a.png", "a.tif"):
        folder = tmp_path / name
        folder.mkdir()
        Image.fromarray(np.zeros((16, 16), np.uint16)).save(folder / name)
        with pytest.raises(EvaluationError, match="more than 8 bits a channel"):
            run(None, tmp_path / "out", images=str(folder), **given)
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(EvaluationError, match="neither a folder of images nor an npz"):
        run(None, tmp_path / "out", images=str(tmp_path / "a.npy"), **given)
    assert not (tmp_path / "out").exists()


def test_where_no_record_can_be_written_nothing_is_measured(
    measured, reference, tmp_path, capsys, monkeypatch
):
    folder, _ = measured
    given = {"metrics": ["fd_lite0"], "reference": str(reference), "allow_n": True}
    given["images"] = str(folder / "samples.npz")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out .*file.x .*file is a file"):
        run(None, tmp_path / "file" / "x", **given)
    assert "fd_lite0" not in capsys.readouterr().out

    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(EvaluationError, match="No space left.*make room"):
        run(None, tmp_path / "out", **given)
    assert "fd_lite0" in capsys.readouterr().out  # the number is not lost
    assert not any((tmp_path / "out").iterdir())


def test_an_image_that_is_not_finite_is_refused(pipeline, reference, tmp_path):
    params = jax.tree.map(lambda leaf: leaf * np.nan, pipeline.params)
    broken = Pipeline(config=pipeline.config, params=params, class_names=(), step=0)
    given = {"metrics": NAMES, "allow_n": True, "reference": str(reference)}
    with pytest.raises(PipelineError, match="Image number 0 holds NaN"):
        run(broken, tmp_path, num_samples=4, **given)
    assert not list(tmp_path.rglob("samples.*"))


def test_a_suite_is_drawn_by_a_model_of_text(tmp_path, capsys):
    path = tmp_path / "color_val.txt"
    path.write_text("a red apple\na green bench")
    with texts.encoder_without_files():
        pipeline = texts.pipeline("canvas")
        given = {"suite": "t2icompbench", "prompts": str(path), "sample_seed": 3}
        with flagsaver.as_parsed(count="2"):
            assert run(pipeline, tmp_path / "out", **given) == 0
        drawn = pipeline(["a red apple", "a green bench"], images_per_prompt=2, seed=3)
    files = sorted((tmp_path / "out").rglob("*.png"), key=lambda file: file.name[-10:])
    names = [str(file.relative_to(tmp_path / "out/t2icompbench")) for file in files]
    assert names == [
        "color/samples/a red apple_000000.png",
        "color/samples/a red apple_000001.png",
        "color/samples/a green bench_000002.png",
        "color/samples/a green bench_000003.png",
    ]
    for file, image in zip(files, drawn, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    assert "t2icompbench.json" in capsys.readouterr().out


def test_each_image_of_a_prompt_may_have_its_official_seed(tmp_path):
    """T2I-CompBench's scripts draw image n of every prompt from seed 42 + n."""
    path = tmp_path / "color_val.txt"
    path.write_text("a red apple\na green bench")
    with texts.encoder_without_files():
        pipeline = texts.pipeline("canvas")
        given = {"suite": "t2icompbench", "prompts": str(path), "prompt_seeds": True}
        with flagsaver.as_parsed(count="2"):
            assert run(pipeline, tmp_path / "out", **given) == 0
            with (
                pytest.raises(EvaluationError, match="leave --sample_seed away"),
                flagsaver.as_parsed(sample_seed="1"),
            ):
                run(pipeline, tmp_path / "out", **given)
        drawn = {
            prompt: [pipeline(prompt, seed=42 + n)[0] for n in range(2)]
            for prompt in ("a red apple", "a green bench")
        }
    manifest = json.loads((tmp_path / "out/t2icompbench.json").read_text())
    assert [one["seeds"] for one in manifest["images"]] == [[42], [43]] * 2
    for one in manifest["images"]:
        image = np.asarray(Image.open(tmp_path / "out/t2icompbench" / one["file"]))
        expected = drawn[one["prompt"]][one["seeds"][0] - 42]
        np.testing.assert_array_equal(image, expected)
    with pytest.raises(EvaluationError, match="--suite=t2icompbench, or leave it"):
        run(pipeline, tmp_path, suite="dpg", prompts="x", prompt_seeds=True)


def test_a_sweep_in_one_line(pipeline, reference, tmp_path, capsys):
    """From published weights: what a sweep needs besides its text has defaults."""
    pipeline.save(tmp_path / "model.safetensors", dtype="float32")
    weights = tmp_path / "model.safetensors"
    given = {"reference": str(reference), "features": "lite0", "sample_steps": ["2"]}
    with (
        flagsaver.flagsaver(**given),
        flagsaver.as_parsed(sweep="scale=1,2", num_samples=str(COUNT)),
    ):
        opened = lambda: Pipeline.from_pretrained(weights)
        assert evaluate.run(opened, tmp_path, tmp_path / "out", weights) == 0
    said = capsys.readouterr().out
    assert "best fd_lite0" in said and "--guidance=" in said
    (table,) = (tmp_path / "out").glob("sweeps/*/table.md")
    assert table.read_text().count("\n") == 4
