"""REPA, LPIPS and P-DINO on every model and path, with small random teachers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixelflow_jax.conditioning.labels import ClassLabels
from pixelflow_jax.flow.path import Pyramid, Stage, Straight
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.flow.time import Uniform
from pixelflow_jax.losses.adaptive_weight import AdaptiveWeight
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.losses.objective import Objective
from pixelflow_jax.losses.perceptual import Lpips, PDino, Repa
from pixelflow_jax.losses.points import draw_points
from pixelflow_jax.losses.weighted_terms import WeightedTerms
from pixelflow_jax.models.interface import Output, network
from pixelflow_jax.models.pixelflow import PixelFlow
from pixelflow_jax.models.pixelgen import PixelGen
from pixelflow_jax.models.pixnerd import NeuralField, PixNerd
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.teachers.dinov2 import DinoV2
from pixelflow_jax.teachers.dinov2_table import Geometry
from pixelflow_jax.teachers.suite import RequiredFeatures, Teachers, union
from pixelflow_jax.training.step import StepSettings, create_state, make_step
from tests.marks import long

EXACT = Precision(compute="float32", matmul="highest")
SMALL = {"num_classes": 3, "width": 32, "heads": 4, "depth": 2, "feature_layer": 1}
DINO = DinoV2(geometry=Geometry(width=24, depth=2, heads=2, grid=3), precision=EXACT)


@dataclasses.dataclass(kw_only=True)
class Averages:
    """A distance of four by four means, in LPIPS's place."""

    def distance(self, params, a, b):
        pool = lambda x: x.reshape(len(x), x.shape[1] // 4, 4, -1, 12).mean((2,))
        return jnp.mean((pool(a) - pool(b)) ** 2, (1, 2, 3)) + 0.0 * params["nothing"]


TEACHERS = Teachers(dino=DINO, lpips=Averages())


@functools.cache
def frozen() -> dict:
    """Random parameters of the DINOv2, near those of a trained one."""
    leaves, structure = jax.tree.flatten(DINO.shapes())
    rng = np.random.default_rng(0)
    drawn = [
        (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32) for leaf in leaves
    ]
    return {
        "dino": jax.tree.unflatten(structure, drawn),
        "lpips": {"nothing": np.zeros((), np.float32)},
    }


def objective(model, path, prediction, terms, **fields) -> Objective:
    return Objective(
        model=model,
        network=network(model, EXACT),
        stages=path.stages(),
        prediction=prediction,
        time=Uniform(),
        terms=WeightedTerms(terms=terms, teachers=TEACHERS, **fields),
        conditioner=ClassLabels(),
    )


SETTINGS = StepSettings(
    optimizer=optax.sgd(1e-2), learning_rate=optax.constant_schedule(1e-2), seed=0
)


def batch(count: int, size: int) -> dict:
    rng = np.random.default_rng(1)
    image = rng.uniform(-1, 1, (count, size, size, 3)).astype(np.float32)
    return {"image": jnp.asarray(image), "label": jnp.arange(count) % 3}


ALL = [FlowMatching(), Repa(grid="resize"), Lpips(), PDino(layers=(0, -1))]
COMBINATIONS = {
    "pixelflow cascade": (PixelFlow(**SMALL), Pyramid(num_stages=2), PredictVelocity()),
    "pixnerd": (
        PixNerd(**SMALL, patch=8, decoder=NeuralField(width=8, depth=1)),
        Straight(),
        PredictVelocity(),
    ),
    "jit cascade": (
        PixelGen(**SMALL, patch=8, image_size=32, context_length=2, context_start=1),
        Pyramid(num_stages=2),
        PredictClean(),
    ),
}


@pytest.mark.parametrize(
    "name", [name if name == "jit cascade" else long(name) for name in COMBINATIONS]
)
def test_terms_train_with_every_model_and_path(name):
    """Two steps with all terms: every parameter group moves, nothing is infinite."""
    model, path, prediction = COMBINATIONS[name]
    this = objective(model, path, prediction, ALL)
    settings = dataclasses.replace(SETTINGS, ema=(0.9,))
    state = create_state(this.init(jax.random.key(0)), settings, this.carry())
    step = jax.jit(make_step(this, settings))
    data = batch(4, 32)
    after = state
    for _ in range(2):
        after, metrics = step(after, data, frozen())
    assert set(metrics) >= {"FlowMatching", "Repa", "Lpips", "PDino", "grad_norm"}
    assert all(np.isfinite(value) for value in metrics.values())
    assert 0 < metrics["Repa"] < 2 and 0 < metrics["PDino"] < 2
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after.params, state.params)
    assert moved["projectors"]["Repa"]["linear2"]["kernel"]
    assert moved["denoiser"]["decoder"]["linear"]["kernel"]


def context(terms, out, points, stages, **fields) -> Context:
    required = union(term.required_features() for term in terms)
    images = batch(4, 32)["image"]
    seen = TEACHERS.extract_targets(
        required, frozen(), images, tuple(p.clean for p in points)
    )
    return Context(
        points=points,
        output=out,
        prediction=PredictClean(),
        stages=stages,
        teachers=TEACHERS,
        frozen_params=frozen(),
        targets=seen,
        **fields,
    )


@pytest.mark.parametrize("path", [Straight(), Pyramid(num_stages=2)], ids=str)
def test_every_perceptual_term_is_zero_at_the_truth_and_only_there(path):
    stages = path.stages()
    keys = jax.random.split(jax.random.key(0), 4)
    points = draw_points(keys, batch(4, 32)["image"], stages, Uniform())
    true = Output(tuple(point.clean for point in points), ())
    wrong = Output(tuple(-point.clean for point in points), ())
    for term in (Lpips(), PDino(layers=(0, 1)), PDino(gate="paper", threshold=0.1)):
        at_truth = term(context([term], true, points, stages))
        assert at_truth.shape == (4,)
        np.testing.assert_allclose(at_truth, 0, atol=1e-5)
        assert (term(context([term], wrong, points, stages)) > 1e-3).any()


def at_times(times):
    t = jnp.asarray(times, jnp.float32)
    image = batch(len(times), 32)["image"]
    return (Stage().draw(image, jnp.zeros_like(image), t),)


@pytest.mark.parametrize("term", [Lpips, functools.partial(PDino, gate="paper")])
def test_the_gate_leaves_noisy_images_out(term):
    points = at_times([0.1, 0.3, 0.6, 0.2])
    out = Output((-points[0].clean,), ())
    plain = np.asarray(term()(context([term()], out, points, (Stage(),))))
    gated = term(threshold=0.3)
    values = gated(context([gated], out, points, (Stage(),)))
    np.testing.assert_allclose(np.mean(values), plain[[1, 2]].mean(), rtol=1e-5)
    closed = term(threshold=0.9)
    np.testing.assert_array_equal(closed(context([closed], out, points, (Stage(),))), 0)


def test_the_official_gate_acts_only_when_all_are_noisy():
    points = at_times([0.1, 0.3, 0.6, 0.2])

    def value(pred, threshold):
        term = PDino(threshold=threshold)
        return jnp.mean(term(context([term], Output((pred,), ()), points, (Stage(),))))

    wrong = -points[0].clean
    assert value(wrong, 0.3) == value(wrong, 0.0) != 1
    assert value(wrong, 0.9) == 1
    assert not jnp.any(jax.grad(value)(wrong, 0.9))
    assert jnp.any(jax.grad(value)(wrong, 0.3))


def test_repa_resamples_other_grids_and_refuses_to_guess():
    points = at_times([0.5, 0.5])
    head = Repa(hidden=8).init_projector(jax.random.key(0), PixNerd(width=16), TEACHERS)
    tokens = jax.random.normal(jax.random.key(1), (2, 64, 16))  # 8 x 8 for 2 x 2

    def value(tokens, grid):
        term = Repa(grid=grid)
        fields = {"projectors": {"Repa": head}}
        images = batch(2, 32)["image"]
        seen = TEACHERS.extract_targets(
            term.required_features(), frozen(), images, (images,)
        )
        made = context([], Output((), (tokens,)), points, (Stage(),), **fields)
        return term(made._replace(targets=seen))

    smooth = jnp.broadcast_to(tokens[:, :1], tokens.shape)
    np.testing.assert_allclose(
        value(smooth, "resize"), value(smooth, "truncate"), atol=1e-5
    )
    assert jnp.abs(value(tokens, "resize") - value(tokens, "truncate")).max() > 1e-3
    np.testing.assert_array_equal(
        value(tokens, "truncate"), value(tokens[:, :4], "truncate")
    )
    with pytest.raises(ValueError, match='grid="resize"'):
        value(tokens[:, :1], "truncate")


def test_real_images_are_looked_at_once():
    """One forward pass of DINOv2 serves REPA and P-DINO on a path of one stage."""
    calls = []

    @dataclasses.dataclass
    class Counting:
        def features(self, params, images, layers):
            calls.append((images.shape, layers))
            return {layer: images for layer in layers}

    suite = Teachers(dino=Counting())
    images = batch(4, 32)["image"]
    required = union(
        [
            Repa().required_features(),
            PDino(layers=(3, -1)).required_features(),
            Lpips().required_features(),
        ]
    )
    assert required == RequiredFeatures(full=(-1,), staged=(-1, 3), lpips=True)
    seen = suite.extract_targets(required, {"dino": None}, images, (images,))
    assert calls == [((4, 32, 32, 3), (-1, 3))] and set(seen.full) == {-1, 3}
    calls.clear()
    # A stand-in sees small images as they are: the networks know what they can take.
    small = images[:, :20, :24]
    suite.extract_targets(required, {"dino": None}, images, (small[:2], images[:2]))
    assert [shape for shape, _ in calls] == [
        (4, 32, 32, 3),
        (2, 20, 24, 3),
        (2, 32, 32, 3),
    ]
    calls.clear()
    required = Lpips().required_features()
    assert not suite.extract_targets(required, {}, images, (images,)).full
    assert not calls


@pytest.fixture(scope="module")
def balanced() -> Objective:
    """P-DINO and LPIPS against the flow on a tiny PixNerd; the weight moves at 2, 4."""
    model, path, prediction = COMBINATIONS["pixnerd"]
    balance = AdaptiveWeight(start=2, every=2, ratio=0.5)
    return objective(model, path, prediction, ALL, adaptive_weight=balance)


@pytest.fixture(scope="module")
def step(balanced):
    """A training step of it, compiled once."""
    return jax.jit(make_step(balanced, SETTINGS))


def beginning(this: Objective):
    params = this.init(jax.random.key(0))
    # The last matrix is zero at first, and with it the gradients behind it.
    params["denoiser"] = jax.tree.map(lambda a: a + 0.02, params["denoiser"])
    return create_state(params, SETTINGS, this.carry())


def test_gradients_of_the_last_matrix_are_those_of_the_losses(balanced):
    state, data = beginning(balanced), batch(4, 32)
    keys = jax.random.split(jax.random.key(1), 4)

    @jax.jit
    def both(params):
        drawn = balanced.draw(data, keys, frozen())
        short = balanced.output_gradients(params, drawn, frozen())
        full = []
        for chosen in (ALL[:1], ALL[2:]):
            terms = WeightedTerms(terms=chosen, teachers=TEACHERS)
            this = dataclasses.replace(balanced, terms=terms)
            loss = lambda p, this=this: this.loss(p, drawn, frozen(), {})[0]
            full.append(
                jax.grad(loss)(params)["denoiser"]["decoder"]["linear"]["kernel"]
            )
        return short, full

    short, full = both(state.params)
    for ours, theirs in zip(short, full, strict=True):
        assert jnp.abs(theirs).max() > 1e-6
        np.testing.assert_allclose(
            ours, theirs, atol=1e-6 * jnp.abs(theirs).max() + 1e-9
        )


def test_the_weight_moves_on_schedule_and_is_kept(balanced, step):
    state, data = beginning(balanced), batch(4, 32)
    weights = [float(state.carry["adaptive_weight"])]
    for _ in range(5):
        before = state
        state, metrics = step(state, data, frozen())
        weights.append(float(state.carry["adaptive_weight"]))
        assert float(metrics["adaptive_weight"]) == weights[-1]
        if int(before.step) == 2:
            moved = before
    assert weights[:3] == [1, 1, 1] and weights[3] != 1
    assert weights[4] == weights[3] != weights[5]
    # The loss of a step uses the weight that the step has just moved.
    terms = {"FlowMatching": 1.0, "Repa": 0.5}
    percept = {"Lpips": 0.1, "PDino": 0.01}
    state, metrics = step(moved, data, frozen())
    total = sum(w * float(metrics[name]) for name, w in terms.items())
    scale = 0.5 * float(metrics["adaptive_weight"])
    total += scale * sum(w * float(metrics[name]) for name, w in percept.items())
    assert total == pytest.approx(float(metrics["loss"]), rel=1e-5)


def test_a_program_that_knows_its_step_does_what_one_that_asks_does(balanced, step):
    state, data = beginning(balanced), batch(4, 32)
    for number in (1, 2):
        state = state.replace(step=jnp.asarray(number, jnp.int32))
        moves = balanced.terms.weight_is_due(number)
        assert moves == (number == 2)
        knows = jax.jit(make_step(balanced, SETTINGS, moves))
        traced = knows.trace(state, data, frozen())
        assert ("cond" in str(traced.jaxpr)) is False
        ours, theirs = knows(state, data, frozen()), step(state, data, frozen())
        assert float(ours[0].carry["adaptive_weight"]) == pytest.approx(
            float(theirs[0].carry["adaptive_weight"]), rel=1e-5
        )
        assert float(ours[1]["loss"]) == pytest.approx(
            float(theirs[1]["loss"]), rel=1e-5
        )


def test_the_weight_does_not_depend_on_slices(balanced, step):
    state, data = beginning(balanced), batch(4, 32)
    state = state.replace(step=jnp.int32(2))
    whole, _ = step(state, data, frozen())
    split = dataclasses.replace(SETTINGS, accumulate=2)
    parts, _ = jax.jit(make_step(balanced, split))(state, data, frozen())
    np.testing.assert_allclose(
        whole.carry["adaptive_weight"], parts.carry["adaptive_weight"], rtol=1e-5
    )


def test_teachers_are_arguments_and_learn_nothing(balanced):
    """No array of the teachers is in the program, and no gradient reaches them."""
    state, data = beginning(balanced), batch(4, 32)
    step = make_step(balanced, SETTINGS)
    traced = jax.make_jaxpr(step)(state, data, frozen())
    constants = {np.asarray(c).tobytes() for c in traced.consts}
    assert constants  # such as tables of positions
    for leaf in jax.tree.leaves(frozen()["dino"]):
        assert np.asarray(leaf).tobytes() not in constants

    def loss(frozen_params):
        drawn = balanced.draw(
            data, jax.random.split(jax.random.key(1), 4), frozen_params
        )
        return balanced.loss(state.params, drawn, frozen_params, balanced.carry())[0]

    grads = jax.jit(jax.grad(loss))(frozen())
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads))


def test_bounded_ratio_and_running_weight():
    balance = AdaptiveWeight()
    one = jnp.ones((2, 2))
    weight, ratio = balance.update(jnp.float32(1.0), one, 0.0 * one)
    assert ratio == 100 and float(weight) == pytest.approx(0.8 + 0.2 * 100)
    weight, ratio = balance.update(jnp.float32(3.0), 4 * one, 2 * one)
    assert float(ratio) == pytest.approx(2.0, rel=1e-3)
    assert float(weight) == pytest.approx(0.8 * 3 + 0.2 * float(ratio))
    due = [
        step for step in (0, 399_950, 400_000, 400_001, 400_050) if balance.is_due(step)
    ]
    assert due == [400_000, 400_050]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (Repa(weight=-1.0), "Repa.weight"),
        (Repa(grid="stretch"), "Repa.grid"),
        (Lpips(threshold=1.5), "Lpips.threshold"),
        (Lpips(patch=0), "Lpips.patch"),
        (PDino(gate="none"), "PDino.gate"),
        (PDino(layers=()), "PDino.layers"),
        (AdaptiveWeight(every=0), "every"),
        (AdaptiveWeight(limit=0.0), "limit"),
    ],
)
def test_wrong_fields_are_named(wrong, named):
    (problem,) = wrong.problems()
    assert named in problem
