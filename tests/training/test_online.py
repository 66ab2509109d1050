"""A metric in the course of training: logged, and the best checkpoint kept."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from pixelflow_jax import build, sharding
from pixelflow_jax.errors import EvaluationError, PipelineError
from pixelflow_jax.evaluation.metrics import evaluate
from pixelflow_jax.evaluation.online import OnlineMetric, first_of
from pixelflow_jax.evaluation.passes import set_features
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.training.best import BestCheckpoint
from pixelflow_jax.training.checkpoint import Checkpointer, Checkpointing
from pixelflow_jax.training.loop import train
from tests.evaluation.pixels import Pixels
from tests.training import tiny

ONLINE = OnlineMetric(metric="fd_lite0", every=2, num_samples=12)
NAME = "fd_lite0_12"


@pytest.fixture(scope="module")
def images(tiny_run):
    return tiny_run.images


@pytest.fixture(autouse=True)
def pixels(monkeypatch):
    """The feature network of these tests."""
    extractor = Pixels()
    monkeypatch.setattr(build, "open_extractor", lambda name, weights: extractor)
    return extractor


def online_run(images, devices=1, **fields):
    """A run that draws on the mesh that it trains on."""
    run = tiny.run(images, devices, **{"online": ONLINE, **fields})
    generator = dataclasses.replace(run.online.generator, mesh=run.mesh)
    online = dataclasses.replace(run.online, generator=generator)
    return dataclasses.replace(run, online=online)


def values(workdir):
    return {line["step"]: line[NAME] for line in tiny.history(workdir) if NAME in line}


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("online")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "open_extractor", lambda name, weights: Pixels())
        run = online_run(images)
        state = train(run, workdir)
    return workdir, run, state


def test_it_is_logged_every_so_many_steps_and_changes_nothing(finished, tiny_run):
    workdir, _, state = finished
    assert list(values(workdir)) == [2, 4, 6]
    assert all(np.isfinite(value) for value in values(workdir).values())
    tiny.assert_identical(tiny_run.state, state)


def test_the_value_is_that_of_the_first_average_against_the_training_images(
    finished, pixels
):
    """Again from the checkpoint, through the public pipeline."""
    workdir, run, state = finished
    online = run.online
    pipeline = Pipeline.from_pretrained(workdir, ema="0.9")
    drawn = pipeline(online.given["label"].tolist(), seed=3)
    sets = set_features([(0, drawn)], ["fd_lite0"], {"lite0": pixels})
    expected = evaluate(["fd_lite0"], sets, online.reference)["fd_lite0"]
    assert values(workdir)[6] == pytest.approx(expected, rel=1e-3)
    assert online.reference.count == 14  # the others are held out
    other = online(state.params["denoiser"], {})
    assert other[NAME] != pytest.approx(values(workdir)[6], rel=1e-3)


def test_the_best_is_kept_and_serves_as_a_workdir(finished):
    workdir, _, state = finished
    found = values(workdir)
    step = min(found, key=lambda at: found[at])
    pipeline = Pipeline.from_pretrained(workdir / "best", ema="0.9")
    assert pipeline.step == step
    with contextlib.closing(BestCheckpoint(workdir)) as best:
        assert best.lowest == found[step]
        assert not best.offer(8, {NAME: found[step]}, state, {}, {})


def test_a_better_one_takes_its_place_also_after_going_back(finished, tmp_path):
    """A run that lost some steps may find the best before the one that was kept."""
    _, run, state = finished
    with contextlib.closing(BestCheckpoint(tmp_path)) as best:
        assert best.offer(4, {NAME: 3.0}, state, {"next_batch": 4}, run.config)
        assert not best.offer(6, {NAME: 3.0}, state, {}, run.config)
        assert not best.offer(6, {NAME: float("nan")}, state, {}, run.config)
        assert best.offer(2, {NAME: 1.0}, state, {"next_batch": 2}, run.config)
    with contextlib.closing(BestCheckpoint(tmp_path)) as best:  # of another metric
        assert best.lowest == 1.0
        assert best.offer(8, {"fid_12": 90.0}, state, {"next_batch": 8}, run.config)
        assert not best.offer(9, {"fid_12": 91.0}, state, {}, run.config)
        assert best.offer(2, {NAME: 1.0}, state, {"next_batch": 2}, run.config)
    folder = tmp_path / "best" / "checkpoints"
    with contextlib.closing(Checkpointer(folder, None)) as reader:
        assert reader.latest() == 2
        assert reader.position(2) == {"next_batch": 2, "online": {NAME: 1.0}}


def test_a_run_that_was_cut_measures_the_same(finished, images, tmp_path):
    workdir, *_ = finished
    fields = {"checkpoint": Checkpointing(every=4)}
    train(online_run(images, steps=5, **fields), tmp_path)
    train(online_run(images, steps=6, **fields), tmp_path)
    cut, whole = (path / "metrics.jsonl" for path in (tmp_path, workdir))
    assert cut.read_text() == whole.read_text()


def test_images_that_are_no_numbers_are_not_measured(finished):
    _, run, state = finished
    broken = jax.tree.map(lambda array: array * np.nan, state.params["denoiser"])
    with pytest.raises(PipelineError, match="Image number 0 holds NaN"):
        run.online(broken, {})


@pytest.mark.slow
def test_it_may_be_switched_on_when_a_run_goes_on(images, tmp_path):
    train(tiny.run(images, steps=3), tmp_path)
    train(online_run(images, steps=4), tmp_path)
    assert list(values(tmp_path)) == [4]


@pytest.mark.slow
def test_on_a_divided_mesh_it_is_the_same(finished, images):
    workdir, _, state = finished
    other = online_run(images, 8, mesh=MeshShape(data=2, fsdp=4))
    with jax.set_mesh(other.mesh):
        found = other.online(
            sharding.place(jax.device_get(state.ema["0.9"]), other.mesh), {}
        )
    assert found[NAME] == pytest.approx(values(workdir)[6], rel=1e-3)


def test_a_reference_of_another_resolution_is_refused_before_training(images, tmp_path):
    path = tmp_path / "reference.npz"
    pictures = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(path, arr_0=pictures, mu=np.zeros(6), sigma=np.eye(6))
    online = dataclasses.replace(ONLINE, metric="fid", reference=str(path))
    with pytest.raises(EvaluationError, match="8 x 8 images, the samples are 16 x 16"):
        tiny.run(images, online=online)
    online = dataclasses.replace(online, reference=str(tmp_path / "none.npz"))
    with pytest.raises(EvaluationError, match="There is no reference"):
        tiny.run(images, online=online)


def test_what_is_drawn_repeats_where_the_data_is_short():
    batches = [
        {"label": np.array([1, 2]), "weight": np.ones(2)},
        {"label": np.array([3, 9]), "weight": np.array([1.0, 0.0])},
    ]
    assert first_of(batches, ["label"], 5)["label"].tolist() == [1, 2, 3, 1, 2]
    assert first_of(iter(batches), ["label"], 2)["label"].tolist() == [1, 2]
