"""One step: gradient accumulation, averages, and that training learns at all."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax import build
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.models.pixnerd import NeuralField
from pixelflow_jax.training.ema import update_ema
from pixelflow_jax.training.optimizer import AdamW
from pixelflow_jax.training.step import fresh_state, make_step
from tests.training import tiny


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


def batches(config, count):
    with build.open_data(config, 0) as loader:
        return [next(loader) for _ in range(count)]


def after(config, data):
    """State and metrics after a step on each batch of `data`."""
    objective, settings = build.objective(config), build.step_settings(config)
    mesh = config.mesh.build(jax.devices()[:1])
    state, metrics = fresh_state(objective, settings, mesh), []
    step = jax.jit(make_step(objective, settings))
    for batch in data:
        state, values = step(state, batch, {})
        metrics.append({name: float(value) for name, value in values.items()})
    return state, metrics


@pytest.fixture(scope="module")
def undivided(images):
    config = tiny.experiment(images, optimizer=AdamW(lr=1e-3, clip=0.1))
    data = batches(config, 4)
    return config, data, *after(config, data)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulating_equals_the_whole_batch(undivided, parts):
    config, data, state, metrics = undivided
    split = dataclasses.replace(config, accumulate=parts)
    divided, divided_metrics = after(split, data)
    for one, other in zip(metrics, divided_metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    jax.tree.map(close, state.params, divided.params)


def test_averages_follow_their_formula():
    params = {"a": jnp.asarray([1.0, 2.0]), "b": {"c": jnp.asarray(3.0)}}
    start = {"a": jnp.asarray([5.0, -2.0]), "b": {"c": jnp.asarray(1.0)}}
    moved = update_ema({"0.9": start, "0.5": start}, params, step=7)
    np.testing.assert_allclose(moved["0.9"]["a"], [4.6, -1.6], rtol=1e-6)
    np.testing.assert_allclose(moved["0.9"]["b"]["c"], 1.2, rtol=1e-6)
    np.testing.assert_allclose(moved["0.5"]["a"], [3.0, 0.0], rtol=1e-6)


def test_the_step_moves_every_average_after_the_parameters(undivided):
    config, data, *_ = undivided
    first, _ = after(config, data[:1])
    second, _ = after(config, data[:2])
    for decay in (0.9, 0.5):
        jax.tree.map(
            lambda old, new, found, d=decay: np.testing.assert_allclose(
                found, d * old + (1 - d) * new, rtol=1e-5, atol=1e-7
            ),
            first.ema[str(decay)],
            second.params["denoiser"],
            second.ema[str(decay)],
        )


def test_the_metrics_are_those_of_the_step(undivided):
    config, _, _, metrics = undivided
    assert set(metrics[0]) == {"loss", "FlowMatching", "grad_norm", "lr"}
    assert [line["lr"] for line in metrics] == pytest.approx([1e-3] * 4)
    warm = dataclasses.replace(config, optimizer=AdamW(lr=1e-3, warmup=4))
    _, climbing = after(warm, undivided[1])
    expected = [0.0, 0.25e-3, 0.5e-3, 0.75e-3]
    assert [line["lr"] for line in climbing] == pytest.approx(expected)


@dataclasses.dataclass(kw_only=True)
class Times(FlowMatching):
    """A term that shows the drawn times: their mean, or the least gap between two."""

    gap: bool

    def __call__(self, context):
        t = jnp.sort(context.points[0].t)
        value = jnp.min(jnp.diff(t)) if self.gap else jnp.mean(t)
        return jnp.broadcast_to(value, t.shape)


def test_every_image_of_every_step_draws_its_own_time(undivided):
    config, data, *_ = undivided

    def drawn(gap, seed=3):
        changed = dataclasses.replace(config, terms=[Times(gap=gap)], seed=seed)
        return [line["loss"] for line in after(changed, [data[0]] * 3)[1]]

    assert min(drawn(gap=True)) > 0
    means = drawn(gap=False) + drawn(gap=False, seed=4)
    assert len(set(means)) == 6


@pytest.mark.parametrize("prediction", [PredictVelocity(), PredictClean()], ids=str)
def test_a_tiny_model_learns_eight_images_by_heart(images, prediction):
    config = tiny.experiment(
        images,
        model=tiny.model(width=48, decoder=NeuralField(width=16, depth=1)),
        prediction=prediction,
        steps=150,
        optimizer=AdamW(lr=4e-3, warmup=10, clip=1.0),
    )
    batch = batches(config, 1)[0]
    _, metrics = after(config, [batch] * config.steps)
    losses = [line["loss"] for line in metrics]
    assert np.mean(losses[-20:]) < 0.3 * np.mean(losses[:5])
