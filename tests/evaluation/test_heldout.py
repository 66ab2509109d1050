"""The held-out loss against a computation by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax import build, sharding
from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.evaluation.heldout import TIMES, HeldoutLoss
from pixelflow_jax.flow.path import Straight
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.interface import Network, Output
from tests.training import tiny

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((12, 4, 4, 3)).astype(np.float32)
LABELS = np.arange(12, dtype=np.int32) % 3
PARAMS = {"scale": jnp.float32(0.7)}
VELOCITY = PredictVelocity()


def apply(params, batch, **options):
    """A network simple enough to compute by hand: it sees image, time and label."""
    ((x, timestep, cond),) = batch
    shift = timestep + cond.labels.astype(jnp.float32)
    return Output((params["scale"] * x + shift[:, None, None, None],), ())


def loss(prediction=VELOCITY, seed=5):
    return HeldoutLoss(
        network=Network(init=None, apply=apply),
        stages=Straight().stages(),
        prediction=prediction,
        conditioner=ClassLabels(),
        seed=seed,
    )


def batches(size, padded=0):
    """Batches of `size`; the last `padded` images only fill up."""
    weight = (np.arange(len(IMAGES)) < len(IMAGES) - padded).astype(np.float32)
    for start in range(0, len(IMAGES), size):
        part = slice(start, start + size)
        yield {"image": IMAGES[part], "label": LABELS[part], "weight": weight[part]}


def mesh(devices=1):
    return MeshShape().build(jax.devices()[:devices])


def by_hand(n, seed=5) -> dict[str, float]:
    """The definition: x_t = t image + (1 - t) noise, target image - noise."""
    found = {}
    for t in TIMES:
        errors = []
        for i in range(n):
            key = jax.random.fold_in(jax.random.key(seed), i)
            noise = np.asarray(jax.random.normal(key, (4, 4, 3)))
            x = t * IMAGES[i] + (1 - t) * noise
            velocity = 0.7 * x + t + LABELS[i]
            errors.append(np.mean((velocity - (IMAGES[i] - noise)) ** 2))
        found[f"loss_at_{t}"] = np.mean(errors)
    return {"loss": np.mean(list(found.values())), **found}


@pytest.mark.parametrize("padded", [0, 3])
def test_it_equals_the_definition_and_does_not_count_the_filling(padded):
    found = loss()(PARAMS, batches(4, padded), mesh())
    assert found == pytest.approx(by_hand(12 - padded), rel=1e-5)


def test_batches_and_devices_make_no_difference():
    """But for how a compiler rounds batches of other sizes."""
    expected = loss()(PARAMS, batches(4, 2), mesh())
    for size, devices in ((12, 1), (6, 2), (4, 4)):
        found = loss()(PARAMS, batches(size, 2), mesh(devices))
        assert found == pytest.approx(expected, rel=1e-6)


def test_no_device_adds_what_others_have_found():
    """Sums over devices have another order where several processes hold these."""
    batch = next(batches(8))
    whole = mesh(4)
    with jax.set_mesh(whole):
        arrays = sharding.global_batch(batch, whole)
        program = loss().program(whole).lower(PARAMS, arrays, 0, {}).compile()
    text = program.as_text()
    assert "all-gather" in text
    assert "all-reduce" not in text and "reduce-scatter" not in text


def test_what_fills_the_last_batch_may_be_anything():
    spoiled = [dict(batch) for batch in batches(12, 3)]
    spoiled[0]["image"] = spoiled[0]["image"].copy()
    spoiled[0]["image"][-3:] = 9.0
    expected = loss()(PARAMS, batches(12, 3), mesh())
    assert loss()(PARAMS, spoiled, mesh()) == pytest.approx(expected, rel=1e-6)


def test_the_seed_alone_fixes_the_noise():
    one, same, other = (loss(seed=s)(PARAMS, batches(4), mesh()) for s in (5, 5, 6))
    assert one == same and one["loss"] != other["loss"]


def test_the_prediction_is_turned_into_a_velocity():
    one, other = (
        loss(p)(PARAMS, batches(4), mesh()) for p in (VELOCITY, PredictClean())
    )
    assert one["loss"] != pytest.approx(other["loss"], rel=0.1)


def test_an_experiment_evaluates_its_test_split(tmp_path):
    """Six images, a batch of eight: two only fill it, so any batch size agrees."""
    images = tiny.write_images(tmp_path / "images")
    config = tiny.experiment(images)
    params = build.network(config).init(jax.random.key(0))
    assert len(config.data.open("test")) % 8 != 0
    one, other = (build.heldout_loss(config, params, size) for size in (8, 16))
    assert one == pytest.approx(other, rel=1e-5)
    flipped = dataclasses.replace(config.data, flip=not config.data.flip)
    again = build.heldout_loss(dataclasses.replace(config, data=flipped), params, 8)
    assert again == pytest.approx(one, rel=1e-6)  # never mirrored
