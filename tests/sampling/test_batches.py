"""Image i depends on (seed, i) and its label alone."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.data.images import to_uint8
from pixelflow_jax.flow.guidance import AutoGuidance, ClassifierFree
from pixelflow_jax.flow.solver import AdamsBashforth, Euler, Heun
from pixelflow_jax.flow.time import Grid
from pixelflow_jax.models.interface import network
from pixelflow_jax.nn.precision import Precision
from pixelflow_jax.nn.stack import StackConfig
from pixelflow_jax.sampling import fields
from pixelflow_jax.sampling.batches import Generator, Request
from pixelflow_jax.sharding import replicated
from tests.jaxprs import equations
from tests.marks import long
from tests.sampling.generators import drawing, on
from tests.training import tiny

LABELS = np.array([0, 1, 2, 0, 1, 2, 1])


@pytest.fixture(scope="module")
def expected(generator, weights):
    return generator(weights, LABELS, seed=1, record=True)


def test_shapes_and_that_labels_matter(generator, weights, expected):
    assert expected.images.shape == (7, 16, 16, 3)
    assert expected.clean.shape == (3, 7, 16, 16, 3)
    other = generator(weights, LABELS[::-1], seed=1).images
    same = LABELS == LABELS[::-1]
    changed = np.abs(other - expected.images).max((1, 2, 3)) > 1e-4
    np.testing.assert_array_equal(changed, ~same)


@pytest.mark.parametrize("per_device", [1, 3, 7, 64])
def test_any_batch_size(generator, weights, expected, per_device):
    request = Request({"label": LABELS}, seed=1)
    parts = list(generator.iterate(weights, request, per_device=per_device))
    assert [place for place, _ in parts] == list(range(0, len(LABELS), per_device))
    images = np.concatenate([part.images for _, part in parts])
    np.testing.assert_allclose(images, expected.images, atol=1e-5)


def test_a_cpu_draws_the_same_bytes_whatever_the_count_and_the_batch(
    generator, weights
):
    """In bfloat16, too, as the program is of one image."""
    half = dataclasses.replace(generator, network=network(generator.model, Precision()))
    whole = half(weights, LABELS, seed=1).images
    few = dataclasses.replace(half, batch_size=3)(weights, LABELS[:2], seed=1).images
    assert whole[:2].tobytes() == few.tobytes()


@pytest.mark.parametrize("start", [0, 2, 3, 6])
def test_an_iteration_begins_anywhere_in_the_same_rows_of_the_same_program(
    generator, weights, start
):
    request = Request({"label": LABELS}, seed=1)
    whole = [g.images for _, g in generator.iterate(weights, request, per_device=3)]
    parts = list(generator.iterate(weights, request, per_device=3, start=start))
    assert parts[0][0] == start
    images = np.concatenate([part.images for _, part in parts])
    assert images.tobytes() == np.concatenate(whole)[start:].tobytes()


@pytest.mark.parametrize(
    ("count", "devices", "expected"),
    [(1, 1, 1), (3, 1, 4), (17, 1, 20), (500, 1, 20), (16, 8, 2), (8, 8, 1)],
)
def test_programs_of_an_accelerator_have_few_sizes(count, devices, expected):
    device = types.SimpleNamespace(platform="gpu")
    mesh = types.SimpleNamespace(
        devices=np.full(devices, device), shape={"data": devices, "fsdp": 1}
    )
    ours: Any = types.SimpleNamespace(mesh=mesh, batch_size=20)
    assert Generator.per_device(ours, count) == expected


@pytest.mark.parametrize("devices", [2, 8])
def test_any_number_of_devices(generator, weights, expected, devices):
    drawn = on(generator, devices)(weights, LABELS, seed=1, record=True)
    np.testing.assert_array_equal(to_uint8(drawn.images), to_uint8(expected.images))
    np.testing.assert_allclose(drawn.images, expected.images, atol=1e-5)
    np.testing.assert_allclose(drawn.clean, expected.clean, atol=1e-5)


def test_any_place_in_the_order(generator, weights, expected):
    later = generator(weights, LABELS[3:], seed=1, first=3).images
    np.testing.assert_allclose(later, expected.images[3:], atol=1e-5)


def test_another_seed_is_another_image(generator, weights, expected):
    other = generator(weights, LABELS, seed=2).images
    assert (np.abs(other - expected.images).max((1, 2, 3)) > 0.1).all()


def test_the_last_clean_image_of_euler_is_the_result(expected):
    np.testing.assert_allclose(expected.clean[-1], expected.images, atol=1e-5)


def test_nothing_to_sample_is_refused(generator, weights):
    with pytest.raises(ValueError, match="at least one label"):
        generator(weights, [])


def test_checking_computes_nothing_and_finds_what_sampling_would(generator):
    generator.check()
    grid = dataclasses.replace(generator.sampler.grid, steps=0)
    broken = drawing(generator, grid=grid)
    with pytest.raises(ValueError, match="grid.steps"):
        broken.check()


def casts(generator, weights) -> tuple[set, set]:
    """Shapes of the matrices that are cast in a loop over the steps, and outside one.

    Matrices are told by their shapes, or by those of one layer of a stack.
    """
    leaves = jax.tree_util.tree_leaves_with_path(weights.params)
    kernels = {leaf.shape for path, leaf in leaves if path[-1].key == "kernel"}
    shapes = kernels | {shape[1:] for shape in kernels if len(shape) == 3}
    example = generator.conditioner.example(5)
    index, seed = (jax.ShapeDtypeStruct(s, np.uint32) for s in ((5,), ()))
    program = jax.make_jaxpr(generator.trace, static_argnums=4)(
        *(weights._replace(guide=weights), index, example, seed, False),
        walks=generator.walks,
    )
    shapes_by_loop = {True: set(), False: set()}
    for equation, looped in equations(program):
        if equation.primitive.name == "convert_element_type":
            given = equation.invars[0].aval
            types = given.dtype, equation.params["new_dtype"]
            if types == (jnp.float32, jnp.bfloat16) and given.shape in shapes:
                shapes_by_loop[looped].add(given.shape)
    return shapes_by_loop[True], shapes_by_loop[False]


@pytest.mark.parametrize("solver", [Euler(), Heun(), AdamsBashforth()], ids=str)
@pytest.mark.parametrize(
    "guidance", [ClassifierFree, AutoGuidance], ids=lambda cls: cls.__name__
)
def test_weights_are_cast_ahead_of_the_steps(generator, weights, solver, guidance):
    half = network(generator.model, Precision())
    guidance = guidance(scale=2.0, low=0.1)
    ours = drawing(generator, solver=solver, guidance=guidance)
    half = dataclasses.replace(ours, network=half, guide=half)
    looped, ahead = casts(half, weights)
    assert ahead and not looped
    # ... and would be found in the loop, were it the network that casts them.
    lazy = dataclasses.replace(half.network, cast_for_inference=lambda params: params)
    assert casts(dataclasses.replace(half, network=lazy, guide=lazy), weights)[0]


def test_casting_twice_is_casting_once(weights):
    prepare = network(tiny.model(), Precision()).cast_for_inference
    once = prepare(weights.params)
    types = {str(leaf.dtype) for leaf in jax.tree.leaves(once)}
    assert types == {"bfloat16", "float32"}
    tiny.assert_identical(prepare(once), once)
    for path, leaf in jax.tree_util.tree_leaves_with_path(once):
        is_matrix = any(getattr(part, "key", "") == "kernel" for part in path)
        assert (leaf.dtype == jnp.bfloat16) == is_matrix


def test_casting_ahead_changes_no_image(generator, weights):
    half = network(generator.model, Precision())
    lazy = dataclasses.replace(half, cast_for_inference=lambda params: params)
    ahead, late = (
        dataclasses.replace(generator, network=one)(weights, LABELS, seed=1).images
        for one in (half, lazy)
    )
    np.testing.assert_allclose(ahead, late, atol=1e-5)


@pytest.mark.parametrize(
    "solver", [Heun(), long(Euler()), long(AdamsBashforth())], ids=repr
)
def test_what_depends_on_time_alone_is_precomputed_of_the_steps(
    generator, weights, solver, monkeypatch
):
    """The same images as without; the loop holds fewer products by one a block."""
    written_out = tiny.model(stack=StackConfig(remat="none", scan=False))
    guidance = ClassifierFree(scale=2.0, low=0.3)
    ahead = dataclasses.replace(
        drawing(generator, solver=solver, guidance=guidance),
        network=network(written_out, Precision(compute="float32")),
    )
    plain = dataclasses.replace(ahead.network, precompute=None)
    late = dataclasses.replace(ahead, network=plain)
    images = [one(weights, LABELS, seed=1).images for one in (ahead, late)]
    np.testing.assert_allclose(*images, atol=2e-5)

    def products(one: Generator) -> int:
        index, seed = np.arange(2, dtype=np.uint32), np.uint32(0)
        labels = {"label": np.arange(2, dtype=np.int32)}
        jaxpr = jax.make_jaxpr(one.trace, static_argnums=4)
        traced = jaxpr(weights, index, labels, seed, False, walks=one.walks).jaxpr
        inside = (e for e, loops in equations(traced) if loops)
        return sum(e.primitive.name == "dot_general" for e in inside)

    runs = 2  # unguided, guided
    embeds = 2  # of the time
    spared = runs * (tiny.model().depth + embeds)
    assert products(late) - products(ahead) == spared
    monkeypatch.setattr(fields, "PRECOMPUTE_BYTES", 0)
    assert products(ahead) == products(late)


def compilations(caplog) -> list[str]:
    return [r.message for r in caplog.records if "XLA compilation" in r.message]


@pytest.mark.parametrize("devices", [1, 8])
def test_what_was_compiled_ahead_is_not_compiled_again(
    generator, weights, devices, caplog
):
    ours = on(generator, devices)
    with jax.log_compiles():
        ours.compile(weights, LABELS[:3], record=True)
        assert compilations(caplog)
        caplog.clear()
        drawn = ours(weights, LABELS[2:5], seed=3, first=2, record=True)
        assert not compilations(caplog)
        assert len(ours._programs) == 1
        ours(weights, LABELS[:4], record=True)  # another count, no other program
        assert not compilations(caplog)
    again = generator(weights, LABELS[2:5], seed=3, first=2, record=True)
    np.testing.assert_allclose(drawn.clean, again.clean, atol=1e-5)


def test_arrays_that_lie_elsewhere_have_a_program_of_their_own(generator, weights):
    ours = on(generator, 8)
    spread = jax.device_put(weights, replicated(ours.mesh))
    images = [ours(given, LABELS[:2]).images for given in (weights, spread, weights)]
    assert len(ours._programs) == 2
    for one in images[1:]:
        np.testing.assert_allclose(one, images[0], atol=1e-5)


def with_settings(generator, **changes):
    """What a pipeline does for other settings of the same model and size."""
    sampler = drawing(generator, **changes).sampler
    return generator.with_sampler(sampler, generator.batch_size)


@pytest.mark.parametrize(
    "solver",
    [
        *(Euler(step="sde"), Heun(reuse=True), AdamsBashforth(order=3)),
        *(long(Euler()), long(Heun())),
    ],
    ids=repr,
)
def test_steps_as_arguments_give_what_a_program_of_their_own_gives(
    generator, weights, solver
):
    for steps, shift, scale, low in ((3, 1.0, 2.0, 0.3), (5, 1.5, 3.0, 0.5)):
        ours = with_settings(
            generator,
            solver=solver,
            grid=Grid(steps=steps, shift=shift),
            guidance=ClassifierFree(scale=scale, low=low),
        )
        own = ours(weights, LABELS[:2], seed=1, record=True)
        given = ours(weights, LABELS[:2], seed=1)
        np.testing.assert_allclose(given.images, own.images, atol=2e-5)
        assert ours._programs is generator._programs


def test_other_steps_times_scales_and_windows_are_no_other_program(
    generator, weights, caplog
):
    ours = with_settings(generator)
    ours(weights, LABELS[:1])
    before = len(ours._programs)
    with jax.log_compiles():
        for steps, scale, low, high, shift in (
            (2, 1.5, 0.2, 1.0, 1.0),
            (40, 9.0, 0.1, 1.0, 3.0),
            (7, 4.0, 0.5, np.inf, 0.5),
        ):
            guidance = ClassifierFree(scale=scale, low=low, high=high)
            grid = Grid(steps=steps, shift=shift)
            one = with_settings(ours, grid=grid, guidance=guidance)
            assert one.program == ours.program
            one(weights, LABELS[:1])
        assert not compilations(caplog) and len(ours._programs) == before
    # What is another program: runs that are guided otherwise, a solver, no guidance.
    for changes in (
        {"guidance": ClassifierFree(scale=2.0)},
        {"guidance": ClassifierFree(scale=2.0, low=0.2, high=0.6)},
        {"guidance": ClassifierFree(scale=1.0)},
        {"guidance": ClassifierFree(scale=2.0, low=0.2, rescale=0.5)},
        {"solver": Heun()},
        {"grid": Grid(timestep_scale=0.999)},
    ):
        assert with_settings(ours, **changes).program != ours.program, changes
