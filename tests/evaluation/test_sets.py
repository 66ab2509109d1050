"""Statistics, extractors and accumulators: the same from one piece or from many."""

import jax
import numpy as np
import pytest
from PIL import Image

from pixelflow_jax.errors import EvaluationError, UserError
from pixelflow_jax.evaluation import accumulator, extractors, features, metrics
from pixelflow_jax.evaluation.accumulator import Accumulator, Kept
from pixelflow_jax.evaluation.features import FEATURES, LOGITS, check_images
from pixelflow_jax.evaluation.image_sets import open_images
from pixelflow_jax.evaluation.manifold import Blocks, prdc, precision_recall
from pixelflow_jax.evaluation.statistics import Statistics
from pixelflow_jax.teachers.dinov2 import MEAN, STD, DinoV2
from pixelflow_jax.teachers.dinov2_table import table
from pixelflow_jax.tensors.mapping import load
from tests.evaluation import sets
from tests.teachers import official

ALL = ("fid", "sfid", "is", "pr")


def rows(count: int = 5000, width: int = 7) -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.normal(100, 1e-2, (count, width)) @ draw.normal(size=(width, width))


@pytest.mark.parametrize("cuts", [[], [1], [2500], range(1, 5000, 7), [4999]])
def test_statistics_are_the_same_in_any_pieces_and_order(cuts):
    whole, parts = rows(), np.split(rows(), list(cuts))
    one, other = Statistics(7), Statistics(7)
    for number, part in enumerate(parts[::-1]):
        (one if number % 2 else other).add(part)
    one.merge(other)
    found = one.gaussian()
    assert one.count == len(whole)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-12)
    expected = np.cov(whole, rowvar=False)
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-10, atol=1e-14)


def test_statistics_refuse_what_is_not_finite_and_too_few():
    statistics = Statistics(2)
    with pytest.raises(EvaluationError, match="not finite"):
        statistics.add(np.array([[0.0, np.nan]]))
    statistics.add(np.zeros((1, 2)))
    with pytest.raises(EvaluationError, match="two images or more"):
        statistics.gaussian()


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 70])
def test_the_last_batch_counts_only_its_images(count):
    images = sets.images(count)
    one = sets.extractor(devices=jax.devices()[:1], batch=70).extract(images)
    all_devices = sets.extractor().extract(images)
    for key, array in one.items():
        assert array.shape == (count, sets.WIDTH) and array.dtype == np.float32
        np.testing.assert_allclose(all_devices[key], array, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("cores", "batch"), [(3, 3), (1, 1), (None, 1)])
def test_a_cpu_looks_at_one_image_a_core(monkeypatch, cores, batch):
    monkeypatch.setattr(features.os, "cpu_count", lambda: cores)
    network = sets.extractor(devices=jax.devices()[:1], batch=None)
    assert network.extract(sets.images(4))[FEATURES].shape == (4, sets.WIDTH)
    assert network.batch == batch
    several = sets.extractor(devices=jax.devices()[:2], batch=None)
    assert several.batch == 2


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "uint8.*not float32: round"),
        (np.full((2, 8, 8, 3), np.nan), "values that are not finite"),
        (np.zeros((2, 8, 8), np.uint8), r"\[2, 8, 8\]"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"RGB.*\[2, 8, 8, 4\]"),
        (np.zeros((2, 0, 8, 3), np.uint8), "RGB"),
    ],
)
def test_what_is_no_image_is_refused(images, says):
    with pytest.raises(EvaluationError, match=says):
        check_images(images)


def seen(cuts: list[int], order: list[int], rows_of=None) -> Accumulator:
    """An accumulator of 20 images that came in pieces, in another order."""
    images, network = sets.images(), {"inception": sets.extractor()}
    found = Accumulator(metrics.required(ALL), rows_of)
    parts = np.split(np.arange(20), cuts)
    for number in order:
        first = parts[number][0]
        found.add(network, images[parts[number]], int(first))
    return found


def test_a_set_is_the_same_in_any_pieces_merged_or_stored():
    whole = seen([], [0]).features(20)["inception"]
    pieces = seen([3, 11], [2, 0, 1]).features(20)["inception"]
    merged = seen([3, 11], [1])
    merged.merge(seen([3, 11], [2]))
    merged.restore(seen([3, 11], [0]).state())
    stored = merged.gathered().features(20)["inception"]
    for other in (pieces, stored):
        assert other.count == 20
        for key, array in whole.rows.items():
            np.testing.assert_allclose(other.rows[key], array, rtol=1e-6)
        for key, gaussian in whole.gaussians.items():
            for ours, theirs in zip(other.gaussians[key], gaussian, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


def test_processes_hand_their_states_on_to_the_last_bit(monkeypatch):
    monkeypatch.setattr(accumulator.jax, "process_count", lambda: 2)
    gather = lambda array: np.stack([array, array])
    monkeypatch.setattr(accumulator.multihost_utils, "process_allgather", gather)
    own = seen([], [0])
    states = accumulator._of_all_processes(own.state())
    assert len(states) == 2
    for state in states:
        assert state.keys() == own.state().keys()
        for key, array in own.state().items():
            assert state[key].dtype == array.dtype
            np.testing.assert_array_equal(state[key], array)


def test_rows_may_be_kept_of_some_images_only():
    whole = seen([], [0]).features()["inception"]
    some = seen([3, 11], [2, 0, 1], np.array([2, 3, 19])).features()["inception"]
    np.testing.assert_array_equal(some.rows[LOGITS], whole.rows[LOGITS][[2, 3, 19]])
    assert some.count == 20


def test_images_are_neither_counted_twice_nor_left_out():
    found = seen([3, 11], [0, 2])
    with pytest.raises(EvaluationError, match="0 to 2, 11 to 19"):
        found.features()
    with pytest.raises(EvaluationError, match="Image 11 was given twice"):
        found.merge(seen([10], [1]))
    with pytest.raises(EvaluationError, match="images 0 to 29, but holds 0 to 19"):
        seen([], [0]).features(30)
    with pytest.raises(EvaluationError, match="no image"):
        Accumulator({"inception": Kept((FEATURES,))}).features()


def test_dinov2_looks_at_what_pillow_makes_of_an_image():
    params = official.dinov2_tensors(official.TINY)
    net = DinoV2(geometry=official.TINY, base_patch=14, precision=official.EXACT)
    network = extractors.dino_network("dinov2", net)
    image = sets.images(1, 40, 24)[0]
    prepared = network.prepare(image)
    assert prepared.shape == (224, 224, 3) and prepared.dtype == np.uint8
    ours = load(table(official.TINY, 0), params)
    found = network.features(ours, prepared[None])[FEATURES]
    positions = np.asarray(net.positions(ours, 16, 16), np.float64)
    normal = (prepared[None] / 255.0 - MEAN) / STD
    theirs = official.dinov2(
        params, official.TINY, np.moveaxis(normal, -1, 1), positions
    )
    np.testing.assert_allclose(found, theirs[-1][:, 0], atol=3e-5)


def test_prdc_counts_as_by_hand():
    draw = np.random.default_rng(0)
    real, sample = draw.normal(size=(40, 4)), draw.normal(0.5, 1, (30, 4))
    distance = lambda a, b: ((a[:, None] - b[None]) ** 2).sum(-1)
    own = lambda a: np.sort(distance(a, a), 1)[:, 5]
    inside = distance(sample, real) < own(real)
    found = prdc(sample, real, blocks=Blocks(7, 9))
    assert found.precision == pytest.approx(inside.any(1).mean())
    assert found.density == pytest.approx(inside.sum() / (5 * 30))
    covered = distance(real, sample).min(1) < own(real)
    assert found.coverage == pytest.approx(covered.mean())
    recalled = (distance(real, sample) < own(sample)).any(1)
    assert found.recall == pytest.approx(recalled.mean())


def test_balls_of_features_that_are_much_alike_keep_their_digits():
    draw = np.random.default_rng(0)
    real, sample = draw.normal(size=(300, 8)), draw.normal(0.3, 1, (200, 8))
    distance = lambda a, b: ((a[:, None] - b[None]) ** 2).sum(-1)
    held = distance(sample, real) <= np.sort(distance(real, real), 1)[:, 3]
    covered = distance(real, sample) <= np.sort(distance(sample, sample), 1)[:, 3]
    far = lambda rows: (1000 + rows).astype(np.float32)  # norms of 8 million
    expected = held.any(1).mean(), covered.any(1).mean()
    assert precision_recall(far(sample), far(real)) == pytest.approx(expected)


@pytest.fixture
def folder(tmp_path):
    """Images in folders, one of another suffix, and what is none."""
    pictures = sets.images(4)
    for name, image in zip(("b.png", "a/Z.PNG", "a/c/d.jpg"), pictures, strict=False):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    for name in (".hidden.png", ".cache/e.png", "a/notes.txt", "f.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no image")
    return tmp_path


def test_a_folder_s_images_are_those_below_it_that_are_not_hidden(folder, caplog):
    found = open_images(folder)
    assert found._files == ["a/Z.PNG", "a/c/d.jpg", "b.png"]
    ((first, images),) = found.batches(5)
    assert first == 0 and images.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(images[0], sets.images(4)[1])
    assert ".heic: 1 (f.heic)" in caplog.text
    (folder / "a" / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="broken.png"):
        list(open_images(folder).batches(5))


def test_of_a_draw_the_images_are_measured_and_not_its_grid(folder):
    (folder / "samples.json").write_text("{}")
    np.savez(folder / "samples.npz", sets.images(7))
    assert len(open_images(folder)) == 7
    (folder / ".drawing").mkdir()
    with pytest.raises(EvaluationError, match="is being drawn, or its draw was cut"):
        open_images(folder)
