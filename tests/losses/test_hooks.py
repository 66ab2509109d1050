"""What terms and models of newer methods ask of the objective, with small stand-ins."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.flow.path import Pyramid, Straight
from pixelflow_jax.flow.prediction import CONSTANTS, Prediction, PredictVelocity
from pixelflow_jax.flow.time import Uniform
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.context import Context, Role, Term
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.mesh import MeshShape
from pixelflow_jax.models.interface import (
    DenoiserConfig,
    Labels,
    Output,
    Paper,
    network,
)
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.training.step import (
    StepSettings,
    abstract_state,
    create_state,
    fresh_state,
    make_step,
)

EXACT = Precision(compute="float32", matmul="highest")
CLASSES, SIZE, COUNT = 3, 8, 6
KEYS = jax.random.split(jax.random.key(1), COUNT)


class Eye:
    """A frozen network of one number, by which a denoiser multiplies what it sees."""

    def load(self):
        return {"gain": np.float32(2.0)}

    def shapes(self):
        return {"gain": jax.ShapeDtypeStruct((), jnp.float32)}


class Seeing(nnx.Module):
    """out = kernel (gain x), with the gain of a frozen network."""

    def __init__(self, rngs):
        self.exit = nnx.Linear(3, 3, use_bias=False, rngs=rngs)

    def __call__(self, batch, *, key=None, pre=None, frozen_params=None):
        gain = frozen_params["eye"]["gain"]
        pred = tuple(self.exit(gain * one.image) for one in batch)
        return Output(pred, tuple(p.reshape(len(p), -1, 3) for p in pred))


@dataclasses.dataclass(kw_only=True)
class Seer(DenoiserConfig):
    """The config of `Seeing`."""

    num_classes: int = CLASSES
    channels: int = 3
    patch: int = 1
    width: int = 3
    paper: ClassVar[Paper] = Paper(title="", url="", bibtex="")
    output_kernel: ClassVar[tuple[str, ...]] = ("exit", "kernel")

    @property
    def condition(self):
        return Labels(self.num_classes)

    def build(self, rngs, precision):
        return Seeing(rngs)

    def problems(self, height, width):
        return []

    def flops(self, height, width):
        return 18.0 * height * width

    def frozen_networks(self):
        return {"eye": Eye()}


class Lost(Seer):
    """A model that names a last matrix it does not have."""

    output_kernel = ("decoder", "linear", "kernel")


@dataclasses.dataclass(kw_only=True)
class Masked(Term):
    """A term with parameters of its own, which masks images at random.

    Its value is the mean of a learnt vector, plus what image, time and class are.
    """

    weight: float = 0.1
    rate: float = 0.5

    def __call__(self, context: Context):
        own = context.projectors["Masked"]["mask"].mean()
        values = []
        keys = context.keys_of(self)
        for part, inputs in zip(keys, context.batch, strict=True):
            hidden = jax.vmap(lambda key: jax.random.bernoulli(key, self.rate))(part)
            seen = inputs.image.mean((1, 2, 3)) + inputs.timestep + inputs.cond.labels
            values.append(jnp.where(hidden, own, seen))
        return jnp.concatenate(values)

    def init_projector(self, key, model, teachers):
        return {"mask": jax.random.normal(key, (model.width,))}


@dataclasses.dataclass(kw_only=True)
class FlowLike(Term):
    """Another measure of the velocity's error."""

    weight: float = 2.0
    role: ClassVar[Role] = "flow"

    def __call__(self, context: Context):
        pairs = zip(context.velocity(), context.points, strict=True)
        errors = [v - context.prediction.target(point) for v, point in pairs]
        return jnp.concatenate([jnp.abs(e).mean((1, 2, 3)) for e in errors])


@dataclasses.dataclass(kw_only=True)
class Looks(Term):
    """A perceptual term without a teacher."""

    weight: float = 0.5
    role: ClassVar[Role] = "perceptual"

    def __call__(self, context: Context):
        pairs = zip(context.clean(), context.points, strict=True)
        errors = [clean - point.clean for clean, point in pairs]
        return jnp.concatenate([(e**2).mean((1, 2, 3)) for e in errors])


@dataclasses.dataclass(kw_only=True)
class Centred(Prediction):
    """The network is given images without their mean colour, which the data tell."""

    mean: jax.Array | None = None

    def inputs(self, x_t, t, stage):
        return x_t - self.mean, 2 * stage.timestep(t)

    def velocity(self, out, x_t, t, stage):
        return out + self.mean

    def target(self, point):
        return point.end - point.start

    def clean(self, out, x_t, t, stage):
        return out

    def loss_weight(self, point):
        return 1 + point.t

    def constants(self, images):
        return {"mean": np.mean(next(iter(images)), (0, 1, 2), np.float32)}

    def constant_shapes(self, channels):
        return {"mean": jax.ShapeDtypeStruct((channels,), jnp.float32)}

    def bind(self, constants):
        return dataclasses.replace(self, mean=constants["mean"])

    def init(self, params, constants):
        return {"exit": {"kernel": params["exit"]["kernel"] * 0 + constants["mean"]}}


def objective(
    *terms, model=None, path=None, adaptive_weight=None, prediction=None
) -> Objective:
    model, path = model or Seer(), path or Straight()
    return Objective(
        model=model,
        network=network(model, EXACT),
        conditioner=ClassLabels(drop=0.5),
        stages=path.stages(),
        prediction=prediction or PredictVelocity(),
        time=Uniform(),
        terms=WeightedTerms(terms=terms, adaptive_weight=adaptive_weight),
    )


def batch(count=COUNT) -> dict:
    image = jax.random.uniform(jax.random.key(0), (COUNT, SIZE, SIZE, 3), minval=-1)
    labels = jnp.arange(COUNT, dtype=jnp.int32) % CLASSES
    return {"image": image[:count], "label": labels[:count]}


def context(this: Objective, count=COUNT) -> Context:
    frozen_params = this.load_frozen()
    params = this.init(jax.random.key(0))
    drawn = this.draw(batch(count), KEYS[:count], frozen_params)
    return this.context(params, drawn, frozen_params)


def test_a_denoisers_frozen_networks_are_arguments_of_the_step():
    this = objective(FlowMatching())
    assert this.load_frozen() == {"eye": {"gain": 2.0}}
    assert jax.tree.structure(this.frozen_shapes()) == jax.tree.structure(
        this.load_frozen()
    )
    this.check(SIZE, SIZE)
    params = this.init(jax.random.key(0))
    drawn = this.draw(batch(), KEYS, {})
    found = this.context(params, drawn, this.load_frozen())
    kernel = params["denoiser"]["exit"]["kernel"]
    np.testing.assert_allclose(
        found.output.pred[0], 2 * drawn.points[0].x_t @ kernel, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("path", [Straight(), Pyramid(num_stages=2)], ids=str)
def test_a_term_is_shown_what_the_network_was_given(path):
    this = objective(FlowMatching(), path=path)
    found = context(this)
    for inputs, point in zip(found.batch, found.points, strict=True):
        np.testing.assert_array_equal(inputs.image, point.x_t)
        np.testing.assert_array_equal(inputs.timestep, point.timestep)
    labels = np.concatenate([inputs.cond.labels for inputs in found.batch])
    assert 0 < (labels == CLASSES).sum() < COUNT  # as they are after dropping


@pytest.mark.parametrize("path", [Straight(), Pyramid(num_stages=2)], ids=str)
def test_a_term_draws_from_keys_of_its_own(path):
    """... which depend on the image alone, and not on other terms or the batch."""
    term = Masked()
    both = context(objective(FlowMatching(), term, path=path))
    alone = context(objective(term, path=path))
    data = lambda keys: [np.asarray(jax.random.key_data(part)) for part in keys]
    for one, other in zip(
        data(both.keys_of(term)), data(alone.keys_of(term)), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    fewer = data(context(objective(term, path=path), 4).keys_of(term))
    for few, all_of_them in zip(fewer, data(both.keys_of(term)), strict=True):
        np.testing.assert_array_equal(few, all_of_them[: len(few)])
    drawn = np.concatenate(data(both.keys_of(term)))
    others = np.concatenate([*data(both.keys_of(Looks())), jax.random.key_data(KEYS)])
    rows = {row.tobytes() for row in drawn}
    assert len(rows) == COUNT and not rows & {row.tobytes() for row in others}


def test_a_context_without_keys_says_who_wanted_them():
    found = context(objective(Masked()))._replace(keys=None)
    with pytest.raises(ValueError, match="Masked draws"):
        Masked()(found)


def test_a_terms_own_parameters_learn():
    this = objective(FlowMatching(), Masked())
    state = create_state(this.init(jax.random.key(0)), SETTINGS, this.carry())
    after, metrics = jax.jit(make_step(this, SETTINGS))(
        state, batch(), this.load_frozen()
    )
    before = state.params["projectors"]["Masked"]["mask"]
    assert (after.params["projectors"]["Masked"]["mask"] != before).all()
    assert np.isfinite(metrics["Masked"]) and "adaptive_weight" not in metrics


SETTINGS = StepSettings(
    optimizer=optax.sgd(0.1), learning_rate=optax.constant_schedule(0.1), seed=0
)


def test_a_predictions_constants_are_arguments_that_every_part_knows():
    this = objective(FlowMatching(), prediction=Centred())
    this.check(SIZE, SIZE)
    mesh = MeshShape().build(jax.devices()[:1])
    mean = 0.53125
    constants = this.prediction.constants([np.full((2, 4, 4, 3), mean, np.float32)])
    state = fresh_state(this, SETTINGS, mesh, constants)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(
        lambda a: a.shape, abstract_state(this, SETTINGS, mesh)
    )
    np.testing.assert_array_equal(state.params["denoiser"]["exit"]["kernel"], mean)
    frozen_params = this.load_frozen()
    step = make_step(this, SETTINGS)
    assert "0.531" not in str(jax.make_jaxpr(step)(state, batch(), frozen_params))
    after, metrics = jax.jit(step)(state, batch(), frozen_params)
    np.testing.assert_array_equal(after.carry[CONSTANTS]["mean"], constants["mean"])
    assert CONSTANTS not in metrics
    # The first step's loss by hand.
    key = jax.random.fold_in(jax.random.key(0), 0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(COUNT))
    drawn = this.draw(batch(), keys, frozen_params)
    (point,) = drawn.points
    found = this.bind(state.carry).context(state.params, drawn, frozen_params)
    np.testing.assert_allclose(found.batch[0].timestep, 2 * point.t, rtol=1e-6)
    out = 2 * (point.x_t - mean) @ jnp.full((3, 3), mean) + mean
    error = jnp.mean((out - (point.end - point.start)) ** 2, (1, 2, 3))
    expected = jnp.mean((1 + point.t) * error)
    np.testing.assert_allclose(metrics["FlowMatching"], expected, rtol=1e-4)


def test_most_predictions_have_no_constants_and_read_no_data():
    this = objective(FlowMatching())
    unread = iter(())
    assert this.prediction.constants(unread) == this.constant_shapes() == {}
    assert this.carry() == this.carry({}) == {} and this.bind({}) is this


def test_every_term_of_the_flow_counts_for_the_adaptive_weight():
    terms = FlowMatching(), FlowLike(), Looks()
    this = objective(*terms, adaptive_weight=AdaptiveWeight(start=0))
    frozen_params, params = this.load_frozen(), this.init(jax.random.key(0))
    drawn = this.draw(batch(), KEYS, frozen_params)
    short = this.output_gradients(params, drawn, frozen_params)
    for ours, chosen in zip(short, (terms[:2], terms[2:]), strict=True):
        loss = lambda p, chosen=chosen: objective(*chosen).loss(
            p, drawn, frozen_params, {}
        )
        full = jax.grad(lambda p, loss=loss: loss(p)[0])(params)
        np.testing.assert_allclose(ours, full["denoiser"]["exit"]["kernel"], rtol=1e-5)


def test_a_last_matrix_that_is_not_there_is_named_before_the_first_step():
    """Not at step 400,000, when the adaptive weight first moves."""
    terms = FlowMatching(), Looks()
    objective(*terms, model=Lost()).check(SIZE, SIZE)
    wrong = objective(*terms, model=Lost(), adaptive_weight=AdaptiveWeight())
    with pytest.raises(ValueError, match=r"Lost\.output_kernel=\('decoder', 'linear'"):
        wrong.check(SIZE, SIZE)
    half = type("Half", (Lost,), {"output_kernel": ("exit",)})()
    wrong = objective(*terms, model=half, adaptive_weight=AdaptiveWeight())
    with pytest.raises(ValueError, match=r"Half\.output_kernel=\('exit',\)"):
        wrong.check(SIZE, SIZE)
    objective(*terms, adaptive_weight=AdaptiveWeight()).check(SIZE, SIZE)


@pytest.mark.parametrize(
    ("terms", "missing"), [([Looks()], "flow"), ([FlowMatching()], "perceptual")]
)
def test_an_adaptive_weight_needs_both_groups(terms, missing):
    both = WeightedTerms(terms=terms, adaptive_weight=AdaptiveWeight())
    (problem,) = both.problems()
    assert f"no term is {missing}" in problem
