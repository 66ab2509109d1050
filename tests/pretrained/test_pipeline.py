"""Weights with their config: saved, loaded, refused, and asked for images."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.flax import load_file, save_file

from pixelflow_jax import Pipeline
from pixelflow_jax.errors import CheckpointError, PipelineError
from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.prediction import PLAIN, Prediction, PredictVelocity
from pixelflow_jax.flow.solver import Heun
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.training.loop import train
from tests.marks import long
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


@pytest.fixture(scope="module")
def finished(tiny_run, tmp_path_factory):
    return tiny_run.copy(tmp_path_factory.mktemp("run")), tiny_run.state


@pytest.fixture(scope="module")
def pipeline(finished):
    return Pipeline.from_pretrained(finished[0])


@pytest.fixture(scope="module")
def file(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "deep" / "model.safetensors"
    pipeline.save(path, dtype="float32")
    return path


def test_a_run_gives_its_first_average_its_config_and_its_classes(finished, pipeline):
    _, state = finished
    tiny.assert_identical(pipeline.params, state.ema["0.9"])
    assert pipeline.step == 6 and pipeline.class_names == tiny.CLASSES
    assert pipeline.config.model == tiny.model()


def test_any_average_and_the_weights_themselves_can_be_chosen(finished):
    workdir, state = finished
    for name, weights in (("0.5", state.ema["0.5"]), ("raw", state.params["denoiser"])):
        chosen = Pipeline.from_pretrained(workdir, ema=name)
        tiny.assert_identical(chosen.params, weights)
    with pytest.raises(PipelineError, match=r"no average '0\.7'; choose .*0\.5, raw"):
        Pipeline.from_pretrained(workdir, ema="0.7")


def test_a_run_without_averages_gives_its_weights(images, tmp_path):
    state = train(tiny.run(images, steps=2, ema=()), tmp_path)
    params = Pipeline.from_pretrained(tmp_path).params
    tiny.assert_identical(params, state.params["denoiser"])


def test_a_file_draws_the_same_image_bit_for_bit(pipeline, file):
    loaded = Pipeline.from_pretrained(file)
    tiny.assert_identical(loaded.params, pipeline.params)
    assert loaded.class_names == pipeline.class_names and loaded.step == 6
    assert loaded.config == pipeline.config
    one, other = (p.generate(["flags", 2], seed=4).images for p in (pipeline, loaded))
    tiny.assert_identical(one, other)
    tiny.assert_identical(loaded(["flags", 2], seed=4), pipeline(["flags", 2], seed=4))


def test_files_are_half_as_large_by_default_and_loaded_in_float32(
    pipeline, file, tmp_path
):
    pipeline.save(tmp_path / "small.safetensors")
    small = (tmp_path / "small.safetensors").stat().st_size
    assert small < 0.6 * file.stat().st_size
    params = Pipeline.from_pretrained(str(tmp_path / "small.safetensors")).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(pipeline.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2**-8, atol=1e-6)


def test_weights_of_a_large_mesh_work_on_the_devices_that_are_there(pipeline, tmp_path):
    config = dataclasses.replace(pipeline.config, mesh=MeshShape(data=16, fsdp=4))
    large = dataclasses.replace(pipeline, config=config)
    large.save(tmp_path / "large.safetensors")
    assert Pipeline.from_pretrained(tmp_path / "large.safetensors")([0]).shape[0] == 1


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_a_truncated_file_is_refused(file, tmp_path, keep):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(PipelineError, match="cannot be read .*is it whole"):
        Pipeline.from_pretrained(cut)


def test_a_file_of_others_is_refused(tmp_path):
    path = tmp_path / "theirs.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": jnp.zeros(3)}, path, metadata=metadata)
        with pytest.raises(PipelineError, match="not written by Pipeline.save"):
            Pipeline.from_pretrained(path)


def test_other_tensors_than_the_config_describes_are_named(pipeline, file, tmp_path):
    tensors = load_file(file)
    tensors["extra"] = jnp.zeros(2)
    tensors["patch_embed/bias"] = jnp.zeros(7)
    del tensors["decoder/norm/weight"]
    changed = dataclasses.replace(pipeline, params=tensors)
    changed.save(tmp_path / "changed.safetensors")
    with pytest.raises(PipelineError) as caught:
        Pipeline.from_pretrained(tmp_path / "changed.safetensors")
    message = str(caught.value)
    assert "missing: decoder/norm/weight" in message
    assert "unexpected: extra" in message
    assert "misshapen: patch_embed/bias (7,), not (32,)" in message


def test_a_file_of_another_version_is_refused(pipeline, tmp_path, monkeypatch):
    data = pipeline.config.to_dict()
    data["model"]["dropout"] = 0.1
    monkeypatch.setattr(type(pipeline.config), "to_dict", lambda self: data)
    pipeline.save(tmp_path / "newer.safetensors")
    with pytest.raises(PipelineError, match=r"another version.*PixNerd\.dropout"):
        Pipeline.from_pretrained(tmp_path / "newer.safetensors")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "No weights at .*nowhere"),
        ("nowhere.safetensors", "There is no file .*nowhere.safetensors"),
        ("model.ckpt", "No weights at .*model.ckpt"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, path, words):
    (tmp_path / "model.ckpt").write_text("")
    with pytest.raises(PipelineError, match=words):
        Pipeline.from_pretrained(tmp_path / path)


def test_a_run_that_has_saved_nothing_yet_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(PipelineError, match="no complete checkpoint yet"):
        Pipeline.from_pretrained(tmp_path)


def test_a_file_has_no_averages_to_choose(file):
    with pytest.raises(PipelineError, match=r"no average '0\.9' to choose"):
        Pipeline.from_pretrained(file, ema="0.9")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    steps = tmp_path / "run" / "checkpoints"
    shutil.rmtree(steps / "6" / "state" / "d")
    assert Pipeline.from_pretrained(tmp_path / "run").step == 3
    shutil.rmtree(steps / "3" / "state" / "d")
    with pytest.raises(CheckpointError, match="damaged"):
        Pipeline.from_pretrained(tmp_path / "run")


def test_without_the_data_classes_have_the_names_of_the_run(finished, images, tmp_path):
    hidden = images.with_name("hidden")
    images.rename(hidden)
    try:
        pipeline = Pipeline.from_pretrained(finished[0])
    finally:
        hidden.rename(images)
    assert pipeline.class_names == tiny.CLASSES
    np.testing.assert_array_equal(pipeline.labels(["plants", 0]), [2, 0])


@pytest.mark.parametrize(
    ("asked", "label"),
    [
        ("flags", 1),
        ("Flags", 1),
        ("FLAGS", 1),
        (1, 1),
        ("1", 1),
        (" 2 ", 2),
        ("Cats & Dogs", 0),
        ("cats-dogs", 0),
        ("cats_dogs", 0),
        (np.int64(2), 2),
    ],
)
def test_classes_by_name_slug_or_number(pipeline, asked, label):
    labels = pipeline.labels([asked])
    assert labels.tolist() == [label] and labels.dtype == np.int32


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["dogs"], "There is no class 'dogs'. The classes are Cats & Dogs, flags"),
        ([""], "There is no class ''"),
        ([3, 3], r"labels \[3\] are out of range: .* 0 to 2: Cats & Dogs, flags"),
        (["-1"], r"labels \[-1\] are out of range"),
        (["--1"], "There is no class '--1'"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(pipeline, asked, words):
    with pytest.raises(PipelineError, match=words):
        pipeline.labels(asked)


def test_names_that_are_numbers_or_alike(pipeline):
    years = dataclasses.replace(pipeline, class_names=("1", "A-b", "a b"))
    assert years.labels(["1", 1, "a b", "2"]).tolist() == [0, 1, 2, 2]
    with pytest.raises(PipelineError, match="several classes like 'a_b'"):
        years.labels(["a_b"])


def test_size_solver_grid_and_guidance_can_be_chosen(pipeline):
    wide = pipeline([0], height=8, width=24)
    assert wide.shape == (1, 8, 24, 3) and wide.dtype == np.uint8
    plain = pipeline.generate([0]).images
    for change in (
        {"solver": Heun()},
        {"grid": Grid(steps=2)},
        {"guidance": ClassifierFree(scale=9.0)},
        {"first": 1},
    ):
        assert (pipeline.generate([0], **change).images != plain).any(), change
    recorded = pipeline.generate([0, 1], record=True)
    assert recorded.clean.shape == (3, 2, tiny.SIZE, tiny.SIZE, 3)
    # The choice was for one call.
    tiny.assert_identical(pipeline.generate([0]).images, plain)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 12}, "does not divide the image size 12 x 16"),
        ({"height": -8}, "height=-8 must be a whole number from 1 to 16,384"),
        ({"grid": Grid(shift=-1.0)}, "grid.shift=-1.0 must be a finite number from"),
        ({"guidance": ClassifierFree(interval="no")}, "guidance.interval"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_served_is_refused(pipeline, options, words):
    with pytest.raises(PipelineError, match=words):
        pipeline([0], **options)


def test_a_pipeline_compiles_ahead_of_its_calls(caplog):
    shipped = Pipeline.from_pretrained(tiny.ROOT / "assets" / "emoji.safetensors")
    asked = {
        "height": 32,
        "grid": Grid(steps=4),
        "guidance": ClassifierFree(scale=2.0, low=0.3),
    }
    compiled = lambda: [r for r in caplog.records if "XLA compilation" in r.message]
    with jax.log_compiles():
        shipped.compile(2, **asked)
        assert compiled()
        caplog.clear()
        images = shipped(["Flags", 3], seed=5, **asked)
        assert not compiled()
    assert images.shape == (2, 32, 64, 3)
    with pytest.raises(PipelineError, match="height=-8 must be"):
        shipped.compile(height=-8)
    with pytest.raises(PipelineError, match="batch_size=0 must be"):
        shipped.compile(0)


def test_numbers_of_numpy_and_paths_are_taken(pipeline, tmp_path):
    same = pipeline([1], seed=3, first=2, height=8)
    sizes = {"seed": np.uint8(3), "first": np.int64(2), "height": np.uint8(8)}
    tiny.assert_identical(pipeline(np.array([1]), **sizes), same)
    pipeline.save(tmp_path / "x.safetensors", "float32")
    loaded = Pipeline.from_pretrained(str(tmp_path / "x.safetensors"))
    tiny.assert_identical(loaded(np.uint8(1), seed=3, first=2, height=8), same)


def test_one_program_serves_every_call_of_the_same_kind(pipeline):
    fresh = dataclasses.replace(pipeline)
    for seed in (0, 1):
        fresh([0], seed=seed)
    assert len(fresh._drawing.generators) == 1
    fresh([0], height=8)
    assert len(fresh._drawing.generators) == 2


def test_keyword_arguments_that_are_none_are_refused(pipeline):
    with pytest.raises(PipelineError, match="heigth= is no word .* height="):
        pipeline([0], heigth=8)
    with pytest.raises(PipelineError, match="seed= is no word .* There are grid, "):
        pipeline.compile(seed=1)


class Louder(Prediction):
    """A prediction with a constant: by how much the network's output is too small."""

    def __init__(self, factor):
        self.factor = factor

    def velocity(self, out, x_t, t, stage=PLAIN):
        return self.factor * out

    def target(self, point):
        return point.end - point.start


@pytest.fixture
def constant(monkeypatch):
    """As if predictions of velocity had a constant."""
    shapes = {"factor": jax.ShapeDtypeStruct((), np.float32)}
    monkeypatch.setattr(PredictVelocity, "constant_shapes", lambda *_: shapes)
    bind = lambda self, constants: Louder(constants["factor"])
    monkeypatch.setattr(PredictVelocity, "bind", bind)
    constants = {"factor": np.float32(4 + 2**-18)}  # which bfloat16 cannot hold
    monkeypatch.setattr(PredictVelocity, "constants", lambda *_: constants)
    return constants


@pytest.mark.parametrize("way", ["save_pretrained", long("save")])
def test_constants_of_the_prediction_are_published_and_drawn_with(
    pipeline, constant, tmp_path, way
):
    quiet = dataclasses.replace(pipeline, constants={"factor": np.float32(0)})
    ours = dataclasses.replace(pipeline, constants=constant)
    path = tmp_path / ("model.safetensors" if way == "save" else "folder")
    getattr(ours, way)(path, dtype="bfloat16")
    loaded = Pipeline.from_pretrained(path)
    assert loaded.constants["factor"] == constant["factor"]
    assert set(loaded.params) == set(pipeline.params)
    draw = lambda one, **how: one.generate([0, 1], seed=3, **how).images
    apart = lambda one, other: float(np.abs(one - other).max())
    images, same, other = (draw(one) for one in (ours, loaded, quiet))
    assert apart(images, same) < 0.1 * apart(images, other)
    # A guide has constants of its own.
    guidance = AutoGuidance(scale=1.5, weights=str(path))
    assert apart(draw(quiet, guidance=guidance), other) > 0.2 * apart(images, other)


def test_weights_without_the_constants_of_their_prediction_are_refused(
    file, constant, tmp_path
):
    with pytest.raises(PipelineError, match="missing: prediction/factor"):
        Pipeline.from_pretrained(file)


def test_constants_come_with_the_checkpoint_of_a_run(images, constant, tmp_path):
    train(tiny.run(images, steps=2, ema=()), tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path)
    assert loaded.constants["factor"] == constant["factor"]
    assert np.isfinite(loaded.generate([0]).images).all()
