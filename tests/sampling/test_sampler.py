"""The sampler: one program whose images know nothing of their neighbours."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.flow.dopri5 import Dopri5
from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.path import Stage, Straight, downsample2, pyramid, upsample2
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.interface import Condition, Network, Output
from pixelflow_jax.sampling.fields import Net
from pixelflow_jax.sampling.sampler import Sampler, image_keys
from pixelflow_jax.sharding import MeshShape, batch_sharding, replicated
from tests.golden import record
from tests.golden.twins import Twins
from tests.jaxprs import names
from tests.xla_flags import OPTIMISED

SIZE = (8, 8, 3)
LABELS = np.array([0, 3, 1, 4, 2, 0, 4, 3])


def sampler(**changes) -> Sampler:
    settings = {
        "stages": Straight().stages(),
        "prediction": PredictVelocity(),
        "guidance": ClassifierFree(scale=2.0, low=0.1, high=0.8),
        "solver": Euler(),
        "grid": Grid(steps=4),
        **changes,
    }
    return Sampler(**settings)


def bare(apply, params=None) -> Net:
    """A network that is nothing but a function."""
    return Net(Network(init=None, apply=apply), {} if params is None else params)


def program(
    network,
    size=SIZE,
    record=False,
    guide=None,
    twins=False,
    compiler_options=None,
    **changes,
):
    """The jitted sampler of (params, keys, cond, null); `network` may be a function."""
    if not isinstance(network, Network):
        network = Network(init=None, apply=network)
    draw, options = sampler(**changes), {"record": record}
    draw, options = (
        (Twins(draw), options) if twins else (draw, {**options, "guide": guide})
    )

    def run(params, keys, cond, null):
        return draw(Net(network, params), keys, cond, null, size, **options)

    return jax.jit(run, compiler_options=compiler_options)


def conds(labels: np.ndarray) -> tuple[Condition, Condition]:
    labels = jnp.asarray(labels, jnp.int32)
    return Condition(labels=labels), Condition(labels=jnp.full_like(labels, 5))


@pytest.fixture(scope="module")
def model():
    return record.model(record.MODEL)


@pytest.fixture(scope="module")
def stochastic(model):
    """A stochastic sampler and its images for keys 0 to 7: every draw must be right."""
    net, params = model
    plain = Network(init=None, apply=net.apply)
    draw = program(plain, solver=Euler(step="sde"), compiler_options=OPTIMISED)
    return draw, draw(params, image_keys(7, range(8)), *conds(LABELS)).images


def test_an_image_does_not_depend_on_its_batch(model, stochastic):
    draw, images = stochastic
    assert images.shape == (8, *SIZE) and jnp.isfinite(images).all()
    chosen = np.array([6, 1, 3])
    some = draw(model[1], image_keys(7, chosen), *conds(LABELS[chosen])).images
    np.testing.assert_allclose(some, images[chosen], atol=1e-5)
    # ... and does depend on its key and its label.
    other = draw(model[1], image_keys(8, chosen), *conds(LABELS[chosen])).images
    label = draw(model[1], image_keys(7, chosen), *conds(np.array([2, 2, 0]))).images
    for changed in (other, label):
        assert (jnp.abs(changed - some).max((1, 2, 3)) > 1e-2).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [MeshShape(), MeshShape(data=2, fsdp=4)], ids=["data", "fsdp"]
)
def test_an_image_does_not_depend_on_the_devices(model, stochastic, shape):
    net, params = model
    images = stochastic[1]
    mesh = shape.build()
    assert mesh.size == 8
    with jax.set_mesh(mesh):
        split = batch_sharding(mesh)
        keys, cond, null = jax.device_put(
            (image_keys(7, range(8)), *conds(LABELS)), split
        )
        params = jax.device_put(params, replicated(mesh))
        plain = Network(init=None, apply=net.apply)
        # Only optimised programs keep the bound.
        draw = program(plain, solver=Euler(step="sde"), compiler_options=OPTIMISED)
        spread = draw(params, keys, cond, null)
    assert len(spread.images.sharding.device_set) == 8
    assert spread.images.addressable_shards[0].data.shape == (1, *SIZE)
    np.testing.assert_allclose(spread.images, images, atol=1e-5)


def labelled(params, batch, **options):
    """A network whose velocity is the label everywhere."""
    return Output(
        tuple(
            jnp.broadcast_to(1.0 * cond.labels[:, None, None, None], image.shape)
            for image, _, cond in batch
        ),
        (),
    )


@pytest.mark.parametrize("steps", [2, 12])
@pytest.mark.parametrize("solver", [Euler(), AdamsBashforth(order=2), Heun()])
def test_the_whole_sampler_is_one_program(solver, steps):
    """The network is traced as often for 2 steps as for 12: the steps are one scan."""
    calls = []

    def apply(*args, **options):
        calls.append(args)
        return labelled(*args)

    draw = program(apply, solver=solver, grid=Grid(steps=steps))
    args = (image_keys(0, range(2)), *conds(LABELS[:2]))
    draw({}, *args)
    assert len(calls) == 2  # guided and unguided
    draw({}, *args)
    assert len(calls) == 2


@pytest.mark.parametrize("twins", [False, True])
@pytest.mark.parametrize("solver", [Euler(), AdamsBashforth(order=2), Heun()])
def test_guidance_in_a_window_leaves_no_decision_to_the_program(solver, twins):
    draw = program(labelled, solver=solver, twins=twins, grid=Grid(steps=12))
    found = names(jax.make_jaxpr(draw)({}, image_keys(0, [0, 1]), *conds(LABELS[:2])))
    assert "cond" not in found and found.count("scan") == 3  # off, on, off


def test_guidance_reaches_the_images():
    """Velocities of 1 and, without a condition, 5, guided by 2: 5 + 2 (1 - 5)."""
    args = (image_keys(0, range(2)), *conds(np.array([1, 1])))
    moved = lambda guidance: program(labelled, guidance=guidance)({}, *args).images
    noise = program(
        lambda params, batch, **options: Output((jnp.zeros_like(batch[0].image),), ()),
    )({}, *args).images
    np.testing.assert_allclose(moved(ClassifierFree()) - noise, 1, atol=1e-5)
    np.testing.assert_allclose(moved(ClassifierFree(scale=2.0)) - noise, -3, atol=1e-5)


def test_both_branches_come_back_in_order():
    cond, null = conds(np.array([1, 2, 3]))
    branches = sampler().fields(0, bare(labelled), cond, null)
    x, t = jnp.zeros((3, 4, 4, 3)), jnp.float32(0.5)
    ours, theirs = branches.both(x, t, t)
    np.testing.assert_array_equal(ours[:, 0, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(theirs[:, 0, 0, 0], [5, 5, 5])
    np.testing.assert_array_equal(branches.cond(x, t, t), ours)


def test_the_network_is_told_the_stages_clock():
    timesteps = []

    def apply(params, batch, **options):
        timesteps.append(batch[0].timestep)
        return labelled(params, batch)

    stage = Stage(timestep_range=(100.0, 300.0))
    branches = sampler(stages=(stage,)).fields(0, bare(apply), *conds(LABELS[:2]))
    branches.cond(jnp.zeros((2, 4, 4, 3)), jnp.float32(0.25), jnp.float32(0.0))
    np.testing.assert_array_equal(timesteps[0], [150.0, 150.0])


def test_a_perfect_network_shows_its_image_at_every_step():
    """Predicting the clean image 0.3: every recorded state points at it."""

    def apply(params, batch, **options):
        return Output(tuple(jnp.full_like(x.image, 0.3) for x in batch), ())

    draw = program(apply, prediction=PredictClean(t_eps=0.0), record=True)
    out = draw({}, image_keys(0, range(2)), *conds(LABELS[:2]))
    assert out.clean.shape == (4, 2, *SIZE)
    np.testing.assert_allclose(out.clean, 0.3, atol=1e-5)
    np.testing.assert_allclose(out.images, 0.3, atol=1e-5)
    assert program(apply)({}, image_keys(0, range(2)), *conds(LABELS[:2])).clean is None


def test_keys_follow_seed_and_number():
    data = lambda keys: np.asarray(jax.random.key_data(keys))
    keys = data(image_keys(3, range(5)))
    assert len({key.tobytes() for key in keys}) == 5
    np.testing.assert_array_equal(data(image_keys(3, np.array([4, 2]))), keys[[4, 2]])
    assert not (data(image_keys(4, range(5))) == keys).all(1).any()


CASCADE = pyramid(3)


def cascade(apply, **changes):
    settings = {
        "size": (16, 32, 3),
        "stages": CASCADE,
        "grid": Grid(stage_steps=(1, 2, 3)),
    }
    return program(apply, **{**settings, **changes})


def still(params, batch, **options):
    """A network whose velocity is zero."""
    return Output(tuple(jnp.zeros_like(x.image) for x in batch), ())


def test_a_cascade_grows_from_stage_to_stage():
    sizes = []

    def apply(params, batch, **options):
        sizes.append(batch[0].image.shape)
        return labelled(params, batch)

    guidance = ClassifierFree(scale=3.0, ramp=(0.0, 0.5, 1.0))
    out = cascade(apply, guidance=guidance, record=True)(
        {}, image_keys(0, range(2)), *conds(LABELS[:2])
    )
    # The first stage is not guided; the others run both halves in one batch.
    assert sizes == [(2, 4, 8, 3), (4, 8, 16, 3), (4, 16, 32, 3)]
    assert [s.shape for s in out.stages] == [
        (2, 4, 8, 3),
        (2, 8, 16, 3),
        (2, 16, 32, 3),
    ]
    np.testing.assert_array_equal(out.stages[-1], out.images)
    assert out.clean.shape == (1 + 2 + 3, 2, 16, 32, 3)


def test_a_cascade_without_motion_is_its_noise():
    """Each jump keeps the share of the last stage and adds fresh noise of its own."""
    draw = cascade(still, guidance=ClassifierFree())
    keys = image_keys(0, range(64))
    many = conds(np.zeros(64, int))
    out = draw({}, keys, *many)
    for before, stage, x, y in zip(
        CASCADE, CASCADE[1:], out.stages, out.stages[1:], strict=False
    ):
        kept, fresh = stage.jump
        rest = np.asarray(y - kept * upsample2(x))
        assert rest.std() == pytest.approx(fresh, rel=0.02)
        np.testing.assert_allclose(downsample2(rest, 1), 0, atol=1e-5)
        assert before.end < 1
    some = draw({}, keys[jnp.array([5, 1])], *conds(np.zeros(2, int)))
    np.testing.assert_allclose(some.images, out.images[jnp.array([5, 1])], atol=1e-6)
    other = draw({}, image_keys(1, range(64)), *many)
    assert (jnp.abs(other.images - out.images).max((1, 2, 3)) > 0.1).all()


def test_stages_draw_apart():
    noises = [x.reshape(2, -1)[:, :96] for x in _fresh_noise()]
    for one, two in itertools.combinations(noises, 2):
        assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.2


def _fresh_noise() -> list[np.ndarray]:
    keys, both = image_keys(0, range(2)), conds(LABELS[:2])
    out = cascade(still, guidance=ClassifierFree())({}, keys, *both)
    first, *later = out.stages
    fresh = [first]
    for stage, x, y in zip(CASCADE[1:], out.stages, later, strict=False):
        fresh.append(y - stage.jump[0] * upsample2(x))
    return [np.asarray(x) for x in fresh]


@pytest.mark.parametrize(
    "solver", [Euler(), Heun(), AdamsBashforth(), Dopri5()], ids=str
)
def test_every_solver_follows_every_stage(solver):
    """A constant velocity moves each stage by itself, exactly, whatever the solver."""
    args = (image_keys(0, range(2)), *conds(np.array([1, 2])))
    moved = cascade(labelled, solver=solver, guidance=ClassifierFree())({}, *args)
    plain = cascade(still, solver=solver, guidance=ClassifierFree())({}, *args)
    shift = 0.0
    for stage, x, y in zip(CASCADE, moved.stages, plain.stages, strict=True):
        shift = stage.jump[0] * shift + 1
        wanted = shift * jnp.array([1.0, 2.0])[:, None, None, None]
        np.testing.assert_allclose(x - y, wanted * jnp.ones_like(x), atol=1e-4)


def test_twins_change_nothing_but_the_step_sizes():
    def curved(params, batch, **options):
        return Output(tuple(jnp.cos(3 * x.image) for x in batch), ())

    args = (image_keys(0, range(1)), *conds(np.array([1])))
    draw = lambda solver, twins: (
        cascade(curved, solver=solver, twins=twins, guidance=ClassifierFree())(
            {}, *args
        ).images
    )
    np.testing.assert_allclose(draw(Euler(), True), draw(Euler(), False), atol=1e-4)
    tight = Dopri5(control="batch", rtol=1e-5)
    alone, twin = draw(tight, False), draw(tight, True)
    np.testing.assert_allclose(twin, alone, atol=1e-3)
    assert not np.array_equal(twin, alone)


def test_the_clock_may_stop_short():
    timesteps = []

    def apply(params, batch, **options):
        timesteps.append(batch[0].timestep)
        return still(params, batch)

    stage = Stage(timestep_range=(100.0, 300.0))
    half = sampler(stages=(stage,), grid=Grid(timestep_scale=0.5))
    branches = half.fields(0, bare(apply), *conds(LABELS[:2]))
    branches.cond(jnp.zeros((2, 4, 4, 3)), jnp.float32(1.0), jnp.float32(0.0))
    np.testing.assert_array_equal(timesteps[0], [200.0, 200.0])


def test_a_weaker_model_guides():
    args = (image_keys(0, range(2)), *conds(np.array([1, 1])))
    weak = bare(
        lambda p, batch, **options: Output((jnp.full_like(batch[0].image, p),), ()),
        0.25,
    )
    guidance = AutoGuidance(scale=3.0)
    out = program(labelled, guidance=guidance, guide=weak)({}, *args).images
    plain = program(still, guidance=ClassifierFree())({}, *args).images
    np.testing.assert_allclose(out - plain, 0.25 + 3 * (1 - 0.25), atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"grid": Grid(stage_steps=(1, 2))}, "grid.stage_steps"),
        ({"guidance": ClassifierFree(scale=2.0, ramp=(0.0, 1.0))}, "guidance.ramp"),
    ],
)
def test_tables_that_do_not_fit_the_stages_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        cascade(still, **wrong)({}, image_keys(0, range(1)), *conds(LABELS[:1]))
