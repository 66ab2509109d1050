"""The family between clean and velocity prediction, and its basis."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax.cli import prepare
from pixelflow_jax.errors import ConfigError
from pixelflow_jax.flow.asymmetric import PredictAsymmetric, project
from pixelflow_jax.flow.basis import BASIS, Gram, read_basis
from pixelflow_jax.flow.path import Stage, Straight, pyramid
from pixelflow_jax.flow.prediction import PredictClean, PredictVelocity
from pixelflow_jax.losses.context import Context
from pixelflow_jax.losses.flow_matching import FlowMatching
from pixelflow_jax.models.interface import Output
from pixelflow_jax.sampling.presets import asymflow_heun50

PATCH, NUMBERS = 2, 12
TIMES = jnp.array([0.0, 0.3, 0.7, 0.94, 0.98])
DRAWS = jax.random.normal(jax.random.key(0), (3, len(TIMES), 4, 6, 3))
IMAGE, NOISE, OUT = DRAWS
LAST = dataclasses.replace(pyramid(2)[1], log2_downscale=0)  # from half-clear to clear
PLACES = {"straight": Stage(), "noisier": Stage(noise_scale=2.0), "last": LAST}


def asymmetric(rank: int, **fields) -> PredictAsymmetric:
    return PredictAsymmetric(rank=rank, patch=PATCH, **fields)


def bound(rank: int, **fields):
    prediction = asymmetric(rank, **fields)
    return prediction.bind(prediction.constants(iter([np.asarray(IMAGE)])))


@pytest.mark.parametrize("place", PLACES)
def test_rank_0_is_clean_prediction(place):
    """Velocity, clean image and, weighed, the loss; to the last bit of the velocity."""
    stage = PLACES[place]
    point = stage.draw(IMAGE, NOISE, TIMES)
    ours, theirs = bound(0, tau=0.05), PredictClean()
    args = OUT, point.x_t, point.t, stage
    np.testing.assert_array_equal(ours.velocity(*args), theirs.velocity(*args))
    sure = np.asarray(TIMES) < 0.9  # below, a clamped velocity does not reach the end
    np.testing.assert_allclose(ours.clean(*args)[sure], OUT[sure], atol=1e-5)
    losses = [
        FlowMatching()(Context((point,), Output((OUT,), ()), prediction, (stage,)))
        for prediction in (bound(0), theirs)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize("place", PLACES)
def test_full_rank_is_velocity_prediction(place):
    stage = PLACES[place]
    point = stage.draw(IMAGE, NOISE, TIMES)
    args = OUT, point.x_t, point.t, stage
    ours, theirs = bound(NUMBERS), PredictVelocity()
    np.testing.assert_array_equal(ours.velocity(*args), theirs.velocity(*args))
    np.testing.assert_allclose(ours.clean(*args), theirs.clean(*args), atol=1e-5)
    np.testing.assert_array_equal(ours.target(point), theirs.target(point))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_the_truth_has_the_true_velocity_and_image(rank, place):
    """The truth is x - P start, where the start is the noise on a straight path."""
    stage, prediction = PLACES[place], bound(rank)
    point = stage.draw(IMAGE, NOISE, TIMES)
    truth = IMAGE - prediction.inside(point.start)
    velocity = prediction.velocity(truth, point.x_t, TIMES, stage)
    np.testing.assert_allclose(velocity, prediction.target(point), atol=2e-4)
    clean = prediction.clean(truth, point.x_t, TIMES, stage)
    np.testing.assert_allclose(clean, IMAGE, atol=1e-5)
    again = prediction.inside(prediction.inside(OUT))
    np.testing.assert_allclose(again, prediction.inside(OUT), atol=1e-5)
    np.testing.assert_allclose(prediction.outside(again), 0, atol=1e-5)


def test_another_scale_predicts_another_scale():
    """A network for images half as large says x / s - P e of the scaled point."""
    prediction = bound(4, scale=0.5)
    point = Stage().draw(IMAGE, NOISE, TIMES)
    truth = IMAGE / 0.5 - prediction.inside(NOISE)
    velocity = prediction.velocity(truth, point.x_t, TIMES)
    np.testing.assert_allclose(velocity, IMAGE - NOISE, atol=5e-4)
    x, timestep = prediction.inputs(point.x_t, TIMES)
    k = 1 / (0.5 + 0.5 * (1 - TIMES))
    np.testing.assert_allclose(x, k[:, None, None, None] * point.x_t, rtol=1e-6)
    np.testing.assert_allclose(timestep, 1 - k * (1 - TIMES), atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.6, 2.5])
@pytest.mark.parametrize(
    ("patch", "channels", "rank"),
    [(1, 3, 2), (3, 1, 0), (3, 1, 4), (3, 1, 9), (2, 4, 15), (5, 2, 1)],
)
def test_the_published_formula_in_float64(patch, channels, rank, scale):
    """v = s k P o - (1 - s k) / S P x_t + (s (I - P) o - (I - P) x_t) / S."""
    rng, size = np.random.default_rng(rank), (2 * patch, 3 * patch, channels)
    numbers, tau = patch**2 * channels, 0.1
    basis = np.linalg.qr(rng.standard_normal((numbers, numbers)))[0][:, :rank]
    out, x_t = rng.standard_normal((2, 4, *size))
    t = np.array([0.0, 0.45, 0.93, 0.99])
    settings = PredictAsymmetric(rank=rank, patch=patch, scale=scale, tau=tau)
    wanted = settings.constant_shapes(channels)
    ours = settings.bind({name: jnp.asarray(basis, jnp.float32) for name in wanted})

    def inside(images):
        cut = images.reshape(4, 2, patch, 3, patch, channels).swapaxes(2, 3)
        flat = cut.reshape(-1, numbers) @ basis @ basis.T
        return flat.reshape(cut.shape).swapaxes(2, 3).reshape(images.shape)

    left = (1 - t)[:, None, None, None]
    clamped, k = np.maximum(left, tau), 1 / (scale + (1 - scale) * left)
    outside = lambda images: images - inside(images)
    velocity = scale * k * inside(out) - (1 - scale * k) / clamped * inside(x_t)
    velocity += (scale * outside(out) - outside(x_t)) / clamped
    given = (jnp.asarray(a, jnp.float32) for a in (out, x_t, t))
    found = ours.velocity(*given)
    np.testing.assert_allclose(found, velocity, atol=2e-5 * np.abs(velocity).max())


def test_the_preset_guides_from_its_closed_end_on():
    """The node at 0.12 belongs to the window, as in the official sampler."""
    sampling = asymflow_heun50()
    active = sampling.guidance.active(sampling.grid.times(0)[:-1])
    assert active.tolist() == [False] * 6 + [True] * 44


def test_times_are_told_as_asked():
    x_t = Stage().draw(IMAGE, NOISE, TIMES).x_t
    for told, wanted in (("data", TIMES), ("noise", 1 - TIMES)):
        image, timestep = bound(4, timestep=told).inputs(x_t, TIMES)
        assert image is x_t
        np.testing.assert_array_equal(timestep, wanted)


def test_samplers_clamp_earlier():
    ours = bound(0).config.for_sampling()
    assert (ours.tau, ours.rank) == (0.04, 0)


def test_stages_that_end_in_noise_are_refused_with_the_reason():
    prediction = asymmetric(4)
    assert (
        prediction.problems(Straight().stages()) == prediction.problems((LAST,)) == []
    )
    (problem,) = prediction.problems(pyramid(2))
    assert "end at the data" in problem and "PredictClean" in problem


def test_a_basis_is_the_same_however_images_come():
    images = np.asarray(DRAWS).reshape(-1, 4, 6, 3)
    whole, parts = asymmetric(3, images=9), (images[:4], images[4:8], images[8:])
    ours = whole.constants(iter(parts))[BASIS]
    np.testing.assert_allclose(ours, whole.constants(iter([images]))[BASIS], atol=1e-6)
    np.testing.assert_allclose(ours.T @ ours, np.eye(3), atol=1e-6)
    shapes = whole.constant_shapes(3)
    assert {BASIS: (ours.shape, ours.dtype)} == {
        name: (a.shape, a.dtype) for name, a in shapes.items()
    }
    assert asymmetric(0).constant_shapes(3) == asymmetric(12).constant_shapes(3) == {}
    with pytest.raises(ConfigError, match="rank=13 is larger"):
        asymmetric(13).constant_shapes(3)


def test_what_lies_in_the_subspace_is_found_patch_by_patch():
    gram = Gram(PATCH)
    flat = np.ones((5, 4, 6, 3), np.float32) * np.arange(1, 6)[:, None, None, None]
    gram.add(flat)  # every patch is grey
    basis = asymmetric(1)._chosen(gram.directions()[1])[BASIS]
    np.testing.assert_allclose(basis, NUMBERS**-0.5, atol=1e-6)
    cut = OUT.reshape(len(OUT), 2, 2, 3, 2, 3)
    means = jnp.broadcast_to(cut.mean((2, 4, 5), keepdims=True), cut.shape)
    np.testing.assert_allclose(
        project(OUT, basis, PATCH), means.reshape(OUT.shape), atol=1e-6
    )


def test_a_file_of_the_command_serves_any_rank(tmp_path, capsys):
    out = tmp_path / "basis.npz"
    flags = ["--emoji", str(out), "--size=16", "--patch=2", "--images=70"]
    assert prepare.main(["basis", *flags]) == 0
    assert "70 images, patches of 12 numbers" in capsys.readouterr().out
    for rank in (1, 8):
        basis = asymmetric(rank, basis=str(out)).constants(iter(()))[BASIS]
        assert basis.shape == (NUMBERS, rank)
        np.testing.assert_array_equal(basis, read_basis(str(out))[:, -rank:])
    with pytest.raises(ConfigError, match="ask for others"):
        PredictAsymmetric(patch=5, basis=str(out)).constants(iter(()))
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"nothing")
    for path in (broken, tmp_path / "absent.npz"):
        with pytest.raises(ConfigError, match="prepare basis"):
            asymmetric(2, basis=str(path)).constants(iter(()))
    few = ["--emoji", str(tmp_path / "few.npz"), "--size=4", "--patch=2", "--images=1"]
    assert prepare.main(["basis", *few]) == 0
    assert "note: 4 patches fill at most so many of 12" in capsys.readouterr().err
    (tmp_path / "folder.npz").mkdir()
    few[1] = str(tmp_path / "folder.npz")
    assert prepare.main(["basis", *few]) == 1
    assert "Cannot write" in capsys.readouterr().err
    few[1] = str(tmp_path / "few.npy")
    assert prepare.main(["basis", *few]) == 1
    assert "A basis is a .npz file" in capsys.readouterr().err
    assert prepare.main(["basis", "--emoji", str(out), "--size=15", "--patch=2"]) == 1
    assert "error: --size=15" in capsys.readouterr().err
