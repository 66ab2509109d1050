"""The training loss, its draws, and the dropping of conditions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.conditioning.drop import drop
from pixelflow_jax.conditioning.labels import ClassLabels, label_problems
from pixelflow_jax.flow.path import Stage, Straight
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.flow.time import LogitNormal, Uniform
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.points import draw_points, split_keys, split_round_robin
from pixelflow_jax.losses.weighted_terms import combine
from pixelflow_jax.models.interface import Condition, Output
from pixelflow_jax.models.pixnerd import PixNerd

CASCADE = (Stage(log2_downscale=1, end=0.5), Stage(start=0.4))
KEYS = jax.random.split(jax.random.key(0), 5)
IMAGES = jnp.asarray(
    np.random.default_rng(0).standard_normal((5, 8, 8, 3)), jnp.float32
)
LAW = LogitNormal()


@pytest.fixture(scope="module")
def points():
    draw = jax.jit(lambda keys, images: draw_points(keys, images, CASCADE, LAW))
    return draw(KEYS, IMAGES)


def perfect(points, prediction) -> Output:
    """What a network must say for a loss of zero."""
    if isinstance(prediction, PredictVelocity):
        return Output(tuple(prediction.target(point) for point in points), ())
    return Output(tuple(point.clean for point in points), ())


@pytest.mark.parametrize("prediction", [PredictVelocity(), PredictClean()], ids=str)
def test_the_loss_is_zero_at_the_truth_and_only_there(points, prediction):
    output = perfect(points, prediction)
    loss = FlowMatching()(Context(points, output, prediction, CASCADE))
    assert loss.shape == (5,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, 0, atol=1e-10)
    off = Output(tuple(pred + 0.1 for pred in output.pred), ())
    assert (FlowMatching()(Context(points, off, prediction, CASCADE)) > 1e-3).all()


def test_every_image_counts_alike_whatever_its_resolution(points):
    """An error of 1 in every pixel is a loss of 1, for 4 x 4 and for 8 x 8 pixels."""
    output = perfect(points, PredictVelocity())
    errors = [jnp.arange(1.0, 4), jnp.arange(4.0, 6)]
    pred = [
        pred + jnp.sqrt(error)[:, None, None, None]
        for pred, error in zip(output.pred, errors, strict=True)
    ]
    context = Context(points, Output(tuple(pred), ()), PredictVelocity(), CASCADE)
    np.testing.assert_allclose(FlowMatching()(context), [1, 2, 3, 4, 5], rtol=1e-4)


def test_the_batch_is_divided_evenly_among_the_stages(points):
    assert [point.x_t.shape for point in points] == [(3, 4, 4, 3), (2, 8, 8, 3)]
    np.testing.assert_allclose(points[1].clean, IMAGES[1::2])


@pytest.mark.parametrize(("count", "parts"), [(8, 4), (9, 4), (5, 1), (3, 4)])
def test_dealing_is_even_and_loses_nothing(count, parts):
    dealt = split_round_robin(jnp.arange(count), parts)
    assert len(dealt) == parts
    sizes = [len(part) for part in dealt]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1
    for index, part in enumerate(dealt):
        np.testing.assert_array_equal(part, np.arange(count)[index::parts])


def test_draws_of_an_image_depend_on_its_key_alone():
    draw = lambda keys, images: draw_points(
        keys, images, Straight().stages(), Uniform()
    )
    (all_of_them,), (some,) = draw(KEYS, IMAGES), draw(KEYS[3:], IMAGES[:2])
    np.testing.assert_array_equal(some.t, all_of_them.t[3:])
    np.testing.assert_array_equal(some.start, all_of_them.start[3:])  # the noise
    assert len(set(np.asarray(all_of_them.t).tolist())) == 5
    noise = np.asarray(all_of_them.start).reshape(5, -1)
    assert np.abs(np.corrcoef(noise) - np.eye(5)).max() < 0.4


def test_split_keys_are_all_different():
    data = np.asarray(jax.random.key_data(split_keys(KEYS, 3))).reshape(15, -1)
    assert len({key.tobytes() for key in data}) == 15
    assert split_keys(KEYS, 3).shape == (3, 5)


@dataclasses.dataclass(kw_only=True)
class Constant(FlowMatching):
    """A term of a constant value."""

    value: float

    def __call__(self, context):
        return jnp.array([0.0, 2.0]) * self.value


def test_terms_are_weighted_and_summed():
    context = Context((), Output((), ()), PredictVelocity())
    total, means = combine([Constant(value=3.0, weight=0.5)], context)
    assert float(total) == 1.5 and float(means["Constant"]) == 3.0
    # Two terms of one class count separately.
    total, _ = combine([Constant(value=3.0), Constant(value=1.0, weight=2.0)], context)
    assert float(total) == 5.0


def test_conditions_are_dropped_at_the_rate():
    n = 20_000
    cond, model = Condition(labels=jnp.arange(n) % 10), PixNerd(num_classes=10)
    null = ClassLabels().null({}, cond, model)
    np.testing.assert_array_equal(null.labels, 10)
    draw = jax.random.uniform(jax.random.key(0), (n,))
    dropped = drop(draw, cond, null, 0.1).labels
    assert dropped.dtype == cond.labels.dtype
    is_null = np.asarray(draw) < np.float32(0.1)
    np.testing.assert_array_equal(dropped, np.where(is_null, 10, cond.labels))
    assert abs(np.mean(dropped == 10) - 0.1) < 0.01
    np.testing.assert_array_equal(drop(draw, cond, null, 0.0).labels, cond.labels)
    np.testing.assert_array_equal(drop(draw, cond, null, 1.0).labels, 10)


def test_text_is_dropped_whole_with_its_mask():
    cond = Condition(text=jnp.ones((2, 3, 4)), mask=jnp.ones((2, 3), bool))
    null = Condition(text=jnp.zeros((2, 3, 4)), mask=jnp.zeros((2, 3), bool))
    out = drop(jnp.array([0.05, 0.5]), cond, null, 0.1)
    assert not out.text[0].any() and not out.mask[0].any()
    assert out.text[1].all() and out.mask[1].all() and out.labels is None


def test_labels_of_a_batch_are_its_condition():
    labels = jnp.array([3, 1])
    np.testing.assert_array_equal(
        ClassLabels().encode({}, {"label": labels}).labels, labels
    )


def test_labels_out_of_range_are_named():
    assert label_problems([0, 9], 10) == []
    (problem,) = label_problems([3, 10, -1], 10)
    assert "[10, -1]" in problem and "classes 0 to 9" in problem
