"""Drawing step by step gives the same images, and shows what is coming."""

import numpy as np
import pytest

from pixelflow_jax import build
from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import ClassifierFree
from pixelflow_jax.flow.path import Pyramid
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.sampling.batches import Request, gathered
from pixelflow_jax.sampling.watching import GREY, watched
from tests.sampling.generators import drawing, on
from tests.training import tiny

LABELS = np.array([0, 1, 2], np.int32)


@pytest.mark.parametrize(
    "solver", [Euler(), Euler(step="sde"), Heun(), AdamsBashforth()], ids=repr
)
def test_the_images_and_the_way_are_those_of_one_program(generator, weights, solver):
    guidance = ClassifierFree(scale=2.0, low=0.3)
    ours = drawing(generator, solver=solver, guidance=guidance, grid=Grid(steps=4))
    request = Request({"label": LABELS}, seed=1, record=True)
    calls = []
    batches = watched(ours, weights, request, lambda *call: calls.append(call))
    drawn = gathered(batches, 3, False)
    expected = ours(weights, LABELS, seed=1, record=True)
    np.testing.assert_allclose(drawn.images, expected.images, atol=2e-5)
    np.testing.assert_allclose(drawn.clean, expected.clean, atol=2e-4)
    np.testing.assert_allclose(drawn.stages[0], expected.stages[0], atol=2e-5)
    # One image at a time on a CPU, four steps each.
    assert [call[:2] for call in calls] == [(i + 1, 12) for i in range(12)]
    first, last = calls[0][2], calls[-1][2]
    assert first.dtype == np.uint8 and (first[1:] == GREY).all()
    assert (first[0] != GREY).any()
    np.testing.assert_array_equal(last, to_uint8(drawn.images))


def test_a_cascade_is_seen_at_full_size(weights):
    config = tiny.experiment("unused", path=Pyramid(num_stages=2))
    cascade = on(build.generator(config, 16, 16), 2)
    cascade = drawing(cascade, grid=Grid(stage_steps=(2, 3)))
    request = Request({"label": LABELS}, seed=1)
    calls = []
    drawn = gathered(
        watched(cascade, weights, request, lambda *call: calls.append(call)), 3, False
    )
    expected = cascade(weights, LABELS, seed=1)
    np.testing.assert_allclose(drawn.images, expected.images, atol=2e-5)
    for ours, theirs in zip(drawn.stages, expected.stages, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    # Two devices draw one each: two batches of five steps.
    assert [call[:2] for call in calls] == [(i + 1, 10) for i in range(10)]
    assert {call[2].shape for call in calls} == {(3, 16, 16, 3)}


def test_a_solver_of_adaptive_steps_is_seen_at_the_end_of_each_stage(
    generator,
    weights,
):
    ours = drawing(generator, solver=Dopri5(rtol=1e-2, atol=1e-2))
    calls = []
    request = Request({"label": LABELS[:1]}, seed=1)
    drawn = gathered(
        watched(ours, weights, request, lambda *call: calls.append(call)), 1, False
    )
    np.testing.assert_allclose(
        drawn.images, ours(weights, LABELS[:1], seed=1).images, atol=2e-5
    )
    assert [call[:2] for call in calls] == [(1, 1)]


def test_what_a_callback_raises_ends_the_drawing(generator, weights):
    def stop(step, steps, images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(watched(generator, weights, Request({"label": LABELS}), stop))
