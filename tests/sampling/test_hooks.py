"""What a prediction may ask for: other inputs, constants of the data, another clamp."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.evaluation.heldout import HeldoutLoss
from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.path import Stage, Straight, pyramid
from pixelflow_jax.flow.prediction import CONSTANTS, PredictClean, PredictVelocity
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.interface import Condition
from pixelflow_jax.sampling.batches import Generator, Weights
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Sampler, image_keys
from tests.sampling.asymmetric import Asymmetric, Bound, perfect, projected
from tests.training import tiny

RNG = np.random.default_rng(0)
IMAGE = RNG.uniform(-1, 1, (8, 8, 3)).astype(np.float32)
DATA = RNG.uniform(-1, 1, (2, 4, 8, 8, 3)).astype(np.float32)
LABELS = Condition(labels=jnp.zeros(2, jnp.int32))
SAMPLER = Sampler(
    stages=Straight().stages(),
    prediction=Asymmetric(),
    guidance=ClassifierFree(scale=2.0, low=0.3),
    solver=Euler(),
    grid=Grid(steps=4),
)
CONSTANT = Asymmetric().constants(iter(DATA))
OTHER = Asymmetric().constants(iter(DATA[::-1, :1] ** 3))
POINT = Stage().draw(
    jnp.asarray(DATA[0]), jnp.asarray(DATA[1]), jnp.array([0.0, 0.3, 0.7, 0.98])
)


def frozen(constants: dict) -> dict:
    return {CONSTANTS: constants}


def draw(sampler: Sampler, net: Net, **options):
    run = lambda net: sampler(
        net, image_keys(0, range(2)), LABELS, LABELS, IMAGE.shape, **options
    )
    params = net.params, net.frozen_params
    return jax.jit(lambda params: run(Net(net.network, *params)))(params)


@pytest.mark.parametrize("solver", [Euler(), Heun(), AdamsBashforth()], ids=repr)
def test_a_perfect_network_draws_its_image(solver):
    """It is given shrunk points and other timesteps, and predicts along the basis."""
    sampler = dataclasses.replace(SAMPLER, solver=solver)
    out = draw(sampler, Net(perfect(IMAGE), {}, frozen(CONSTANT)), record=True)
    for images in (out.images, *out.clean):
        np.testing.assert_allclose(images, np.stack([IMAGE] * 2), atol=1e-4)


def test_the_basis_of_other_data_draws_another_image():
    """A network that sees another basis than its prediction is led astray."""
    network = perfect(IMAGE)
    both = {CONSTANTS: CONSTANT, "network": OTHER}
    confused = dataclasses.replace(
        network,
        apply=lambda params, batch, pre, frozen_params: network.apply(
            params, batch, pre=pre, frozen_params=frozen(frozen_params["network"])
        ),
    )
    out = draw(SAMPLER, Net(confused, {}, both)).images
    assert np.abs(out - IMAGE).max() > 0.05


def test_samplers_take_the_prediction_of_sampling():
    """Where 1 - t lies between the two clamps the velocity is that of the larger."""
    sampler = dataclasses.replace(SAMPLER, guidance=ClassifierFree())
    field = sampler.fields(
        0, Net(perfect(IMAGE), {}, frozen(CONSTANT)), LABELS, LABELS
    ).cond
    t, x_t = jnp.float32(0.98), jnp.asarray(DATA[0, :2])
    remaining = np.float32(1) - np.float32(0.98)
    inside = lambda a: projected(jnp.asarray(a), jnp.asarray(CONSTANT["basis"]))
    v = (IMAGE - x_t) / remaining
    wanted = inside(v) + (v - inside(v)) * remaining / 0.04
    # Inside the subspace the scaled point is divided by the clamp as well.
    share = 0.5 * remaining / (0.5 + 0.5 * remaining)
    wanted += share * inside(x_t) * (1 / remaining - 1 / 0.04)
    np.testing.assert_allclose(field(x_t, t, t), wanted, atol=1e-3)


def generator(**changes) -> Generator:
    model = tiny.model()
    network = dataclasses.replace(perfect(IMAGE), init=lambda key: {})
    fields = {
        "sampler": SAMPLER,
        "network": network,
        "conditioner": ClassLabels(),
        "model": model,
        "size": (8, 8),
        "batch_size": 4,
        "mesh": MeshShape().build(jax.devices()[:1]),
    }
    return Generator(**fields | changes)


def test_a_generator_hands_the_constants_through():
    ours = generator()
    ours.check()  # knows their shapes
    drawn = ours(Weights({}, frozen(CONSTANT)), np.array([0, 2, 1]), seed=1)
    np.testing.assert_allclose(drawn.images, np.stack([IMAGE] * 3), atol=1e-4)
    ours(Weights({}, frozen(OTHER)), np.array([0, 2, 1]), seed=2)
    assert len(ours._programs) == 1  # arguments, not constants, of the program


def test_a_guide_has_constants_of_its_own():
    guidance = AutoGuidance(scale=2.0)
    sampler = dataclasses.replace(SAMPLER, guidance=guidance)
    ours = generator(sampler=sampler, guide=perfect(IMAGE))
    weights = Weights({}, frozen(CONSTANT), guide=Weights({}, frozen(OTHER)))
    drawn = ours(weights, np.array([0, 2]), seed=1)
    np.testing.assert_allclose(drawn.images, np.stack([IMAGE] * 2), atol=1e-4)


def test_a_path_that_a_prediction_does_not_fit_is_refused():
    sampler = dataclasses.replace(SAMPLER, stages=pyramid(2))
    assert sampler.problems() == ["Asymmetric needs a path of one stage"]
    with pytest.raises(ValueError, match="path of one stage"):
        draw(sampler, Net(perfect(IMAGE), {}, frozen(CONSTANT)))


def test_the_heldout_loss_gives_the_network_what_it_was_trained_on():
    loss = HeldoutLoss(
        network=perfect(IMAGE),
        stages=Straight().stages(),
        prediction=Asymmetric(),
        conditioner=ClassLabels(),
        seed=0,
    )
    images, labels = np.stack([IMAGE] * 4), np.zeros(4, np.int32)
    batch = {"image": images, "label": labels, "weight": np.ones(4, np.float32)}
    mesh = MeshShape().build(jax.devices()[:1])
    assert loss({}, [batch], mesh, frozen(CONSTANT))["loss"] < 1e-6


@pytest.mark.parametrize("prediction", [PredictVelocity(), PredictClean()], ids=repr)
def test_the_predictions_of_today_ask_for_nothing(prediction):
    for stage in (Stage(), pyramid(2)[0]):
        image, timestep = prediction.inputs(POINT.x_t, POINT.t, stage)
        assert image is POINT.x_t
        np.testing.assert_array_equal(timestep, stage.timestep(POINT.t))
    assert prediction.loss_weight(POINT) is None
    assert prediction.for_sampling() is prediction.bind({}) is prediction
    assert prediction.constants(iter(DATA)) == prediction.constant_shapes(3) == {}
    params = {"kernel": jnp.ones(2)}
    assert prediction.init(params, {}) is params
    assert prediction.problems(pyramid(3)) == []


def test_constants_are_those_whose_shapes_are_known_beforehand():
    shapes = Asymmetric().constant_shapes(3)
    kinds = lambda arrays: {name: (a.shape, a.dtype) for name, a in arrays.items()}
    assert kinds(CONSTANT) == kinds(shapes)
    assert isinstance(Asymmetric().bind(CONSTANT), Bound)
