"""ST-LPIPS and EfficientNet-Lite0 as loss terms, with random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.path import Pyramid, Straight
from pixelflow_jax.flow.prediction import PredictClean
from pixelflow_jax.flow.time import Uniform
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.packaged import Lite0Distance, StLpips
from pixelflow_jax.losses.points import draw_points
from pixelflow_jax.models.interface import Output
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers import efficientnet, stlpips
from pixelflow_jax.teachers.efficientnet import EfficientNetLite0
from pixelflow_jax.teachers.stlpips import StLpipsNet
from pixelflow_jax.teachers.suite import RequiredFeatures, Teachers, union
from pixelflow_jax.tensors.mapping import load
from tests.teachers import official

EXACT = Precision(compute="float32", matmul="highest")
TEACHERS = Teachers(
    stlpips=StLpipsNet(precision=EXACT), lite0=EfficientNetLite0(precision=EXACT)
)
TERMS = [StLpips(), Lite0Distance()]


@functools.cache
def frozen() -> dict:
    """Random weights whose variances and channel weights are not negative."""
    found = {}
    for name, table in (("stlpips", stlpips.table()), ("lite0", efficientnet.table())):
        tensors = official.tensors(table)
        for key in tensors:
            if key.startswith("lin") or key.endswith("running_var"):
                tensors[key] = 0.5 + np.abs(tensors[key])
            elif key.endswith(".weight") and "bn" in key:
                tensors[key] = 1 + tensors[key]
        found[name] = load(table, tensors)
    return found


def context(path, sign: float) -> Context:
    """Predictions that are the truth, or its negative."""
    stages = path.stages()
    draw = np.random.default_rng(1).uniform(-1, 1, (4, 32, 32, 3))
    image = jnp.asarray(draw, jnp.float32)
    points = draw_points(
        jax.random.split(jax.random.key(0), 4), image, stages, Uniform()
    )
    return Context(
        points=points,
        output=Output(tuple(sign * point.clean for point in points), ()),
        prediction=PredictClean(),
        stages=stages,
        teachers=TEACHERS,
        frozen_params=frozen(),
    )


@pytest.mark.parametrize("path", [Straight(), Pyramid(num_stages=2)], ids=str)
def test_terms_are_zero_at_the_truth_and_only_there(path):
    @jax.jit
    def values(sign, frozen_params):
        seen = context(path, sign)._replace(frozen_params=frozen_params)
        return [term(seen) for term in TERMS]

    for at_truth, wrong in zip(
        values(1.0, frozen()), values(-1.0, frozen()), strict=True
    ):
        assert at_truth.shape == (4,) and np.all(np.abs(at_truth) < 1e-5)
        assert np.all(wrong > 1e-3)


def test_a_gate_leaves_noisy_images_out():
    seen = context(Straight(), -1)
    share = np.asarray(seen.data_share())
    threshold = float(np.sort(share)[2])
    all_of_them, some = StLpips()(seen), StLpips(threshold=threshold)(seen)
    inside = share >= threshold
    np.testing.assert_allclose(some[inside], 2 * all_of_them[inside], rtol=1e-5)
    assert not np.any(some[~inside])


def test_terms_ask_for_their_networks_alone():
    required = union(term.required_features() for term in TERMS)
    assert required == RequiredFeatures(stlpips=True, lite0=True)
    assert set(TEACHERS.shapes(required)) == {"stlpips", "lite0"}
    assert Lite0Distance(stages=()).problems() and not Lite0Distance().problems()


def test_stages_are_those_of_the_network():
    """The last stage, its head and the mean are the evaluator's features."""
    params, draw = frozen()["lite0"], np.random.default_rng(0)
    image = draw.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    signed = jnp.asarray(image, jnp.float32) / 127.5 - 1
    look = jax.jit(lambda *given: TEACHERS.lite0.features(*given, range(7)))
    seen = look(params, signed)
    sizes = [(one.shape[1], one.shape[3]) for one in seen.values()]
    outputs = [stage.outputs for stage in efficientnet.STAGES]
    assert sizes == list(zip((16, 8, 4, 2, 2, 1, 1), outputs, strict=True))
    head = jax.nn.relu6(efficientnet._convolve(params["head"], seen[6])).mean((1, 2))
    expected = jax.jit(efficientnet.features)(params, jnp.asarray(image))
    np.testing.assert_allclose(head, expected, rtol=1e-3, atol=2e-3)
