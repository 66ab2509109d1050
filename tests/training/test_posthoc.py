"""Averages chosen after training: profiles, snapshots, and what is made of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelflow_jax import values
from pixelflow_jax.config_files import load_config
from pixelflow_jax.errors import CheckpointError, PipelineError
from pixelflow_jax.evaluation.online import OnlineMetric
from pixelflow_jax.pretrained.pipeline import Pipeline
from pixelflow_jax.tensors.paths import by_path
from pixelflow_jax.training import posthoc
from pixelflow_jax.training.ema import (
    average_called,
    gamma_of,
    sigma_rel_of,
    update_ema,
)
from pixelflow_jax.training.loop import train
from pixelflow_jax.training.posthoc import PostHocEMA, Profile
from tests.training import tiny

STEPS = 12


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_the_width_is_the_deviation_of_the_profile(sigma_rel):
    """Against moments of t^gamma on [0, 1], and the published pairs."""
    gamma = gamma_of(sigma_rel)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert np.sqrt(square - mean**2) == pytest.approx(sigma_rel, rel=1e-9)
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-9)


def test_the_published_exponents():
    """Karras et al. 2024, section 3.1."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.1) == pytest.approx(6.94, abs=0.005)


def weights_of_steps(sigma_rel: float, end: int) -> np.ndarray:
    """What the parameters after each of `end` steps weigh: the integral of t^gamma."""
    edges = (np.arange(end + 1) / end) ** (gamma_of(sigma_rel) + 1)
    return np.diff(edges)


def test_the_running_average_has_that_profile():
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    ema = {"posthoc:0.1": {"a": jnp.full(3, 1e6)}}  # how it began is forgotten
    for step, value in enumerate(values, 1):
        ema = update_ema(ema, {"a": jnp.asarray(value)}, step)
    expected = weights_of_steps(0.1, 50) @ values
    np.testing.assert_allclose(ema["posthoc:0.1"]["a"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ends", [(700, 1000), (1000, 700), (400, 400)])
def test_inner_products_against_quadrature(ends):
    one, other = Profile(ends[0], 0.05), Profile(ends[1], 0.12)
    t = (np.arange(200_000) + 0.5) / 200_000 * min(ends)
    density = lambda p: (
        (gamma_of(p.sigma_rel) + 1) / p.end * (t / p.end) ** gamma_of(p.sigma_rel)
    )
    expected = np.mean(density(one) * density(other)) * min(ends)
    found = posthoc._products([one], [other])[0, 0]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.08, 0.15])
def test_a_width_between_is_as_close_as_the_residual_says(sigma_rel):
    """On white noise, whose averages differ as their profiles do."""
    stored = [Profile(end, s) for end in range(50, 801, 50) for s in (0.05, 0.1)]
    wanted = Profile(800, sigma_rel)
    factors = posthoc.solve(stored, wanted)
    profiles = np.zeros((len(stored), 800))
    for row, profile in zip(profiles, stored, strict=True):
        row[: profile.end] = weights_of_steps(profile.sigma_rel, profile.end)
    exact = weights_of_steps(sigma_rel, 800)
    error = np.linalg.norm(factors @ profiles - exact) / np.linalg.norm(exact)
    assert error == pytest.approx(posthoc.residual(stored, wanted), rel=0.05)
    assert error < 0.04
    assert np.sum(factors) == pytest.approx(1, abs=2e-3)


def test_more_snapshots_come_closer():
    def far(count):
        ends = range(1000 // count, 1001, 1000 // count)
        stored = [Profile(end, s) for end in ends for s in (0.05, 0.1)]
        return posthoc.residual(stored, Profile(ends[-1], 0.07))

    assert far(4) > 3 * far(10) > 30 * far(50)


@pytest.mark.parametrize(
    ("step", "kept"),
    [(9, []), (30, [10, 20, 30]), (49, [10, 20, 30, 40]), (50, [20, 40])]
    + [(89, [20, 40, 60, 80]), (100, [40, 80])],
)
def test_there_are_never_more_than_that(step, kept):
    assert PostHocEMA(every=10, keep=4).kept(step) == kept


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.write_images(tmp_path_factory.mktemp("images"))


WIDTHS = PostHocEMA(sigma_rel=(0.08, 0.11, 0.15), every=1, dtype="float32")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    """A run that keeps three widths, and its last state."""
    workdir = tmp_path_factory.mktemp("posthoc")
    run = tiny.run(images, posthoc=WIDTHS, steps=STEPS, ema=(0.9,))
    return workdir, train(run, workdir)


def test_a_width_that_was_kept_is_exact(finished):
    workdir, state = finished
    for name in ("posthoc:0.08", "posthoc:0.150", "0.9"):
        pipeline = Pipeline.from_pretrained(workdir, ema=name)
        kept = state.ema[posthoc.canonical(name) or name]
        tiny.assert_identical(pipeline.params, kept)


def test_another_width_is_what_the_run_kept(finished):
    """From the two others, to a hundredth of the weights; these are not so close."""
    workdir, state = finished
    stored = posthoc.stored_averages(workdir, STEPS)
    others = {p: tensors for p, tensors in stored.items() if p.sigma_rel != 0.11}
    expected = by_path(state.ema["posthoc:0.11"])

    def distance(flat):
        squares = [
            np.sum((np.asarray(flat[k]) - np.asarray(v)) ** 2)
            for k, v in expected.items()
        ]
        return float(np.sqrt(np.sum(squares)))

    found = posthoc.reconstruct(others, Profile(STEPS, 0.11))
    assert distance(found) < 0.01 * distance(by_path(state.params["denoiser"]))
    for kept in ("posthoc:0.08", "posthoc:0.15"):
        assert distance(by_path(state.ema[kept])) > 5 * distance(found)
    again = posthoc.reconstruct(stored, Profile(STEPS, 0.11))
    assert distance(again) == 0


def test_one_that_no_run_kept(finished):
    """Between its neighbours, nearer to the one of nearer width."""
    workdir, state = finished
    pipeline = Pipeline.from_pretrained(workdir, ema="posthoc:0.12")
    assert "relative width 0.12" in pipeline.origin
    found = by_path(pipeline.params)
    far = {
        kept: sum(
            np.sum((found[k] - np.asarray(v)) ** 2)
            for k, v in by_path(state.ema[f"posthoc:{kept}"]).items()
        )
        for kept in (0.08, 0.11, 0.15)
    }
    assert 0 < far[0.11] < far[0.15] < far[0.08]


def test_a_run_that_was_cut_stores_the_same(images, finished, tmp_path):
    workdir, state = finished
    fields = {"ema": (0.9,), "posthoc": WIDTHS}
    train(tiny.run(images, steps=5, **fields), tmp_path / "cut")
    stale = tmp_path / "cut" / posthoc.FOLDER / "00000008.safetensors"
    stale.write_bytes(b"of a sitting that got further")
    resumed = train(tiny.run(images, steps=STEPS, **fields), tmp_path / "cut")
    tiny.assert_identical(resumed, state)
    for step in range(1, STEPS + 1):
        name = f"{posthoc.FOLDER}/{step:08d}.safetensors"
        one, other = tmp_path / "cut" / name, workdir / name
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("ema", "message"),
    [
        ("posthoc:0.5", r"must lie in \(0, 0.28\]"),
        ("posthoc:wide", "write posthoc:SIGMA_REL"),
        (
            "0.7",
            "0.9, posthoc:0.08, posthoc:0.11, posthoc:0.15, raw, posthoc:SIGMA_REL",
        ),
    ],
)
def test_names_that_are_none(finished, ema, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline.from_pretrained(finished[0], ema=ema)


def test_a_damaged_snapshot_is_named(finished, tmp_path):
    workdir, _ = finished
    folder = tmp_path / posthoc.FOLDER
    folder.mkdir()
    whole = (workdir / posthoc.FOLDER / "00000002.safetensors").read_bytes()
    (folder / "00000002.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError, match="00000002.safetensors.*delete it"):
        posthoc.stored_averages(tmp_path, 2)


def test_a_width_that_too_few_snapshots_are_far_from_is_warned_about(
    finished, tmp_path, caplog
):
    _, state = finished
    own = {f"posthoc:{width}": state.ema[f"posthoc:{width}"] for width in (0.08, 0.15)}
    posthoc.at_checkpoint(tmp_path, STEPS, "posthoc:0.1", own)
    assert not caplog.records
    posthoc.at_checkpoint(tmp_path, STEPS, "posthoc:0.03", own)
    assert "made of 2 stored averages, too few for that width" in caplog.text


def test_half_precision_costs_little(finished, tmp_path):
    """Snapshots of 16 bits: the same average to the rounding of its parts."""
    workdir, state = finished
    for dtype, tolerance in (("float16", 2e-3), ("bfloat16", 2e-2)):
        policy = dataclasses.replace(WIDTHS, dtype=dtype)
        snapshots = posthoc.Snapshots(tmp_path / dtype, policy)
        snapshots.write(STEPS, state.ema)
        stored = posthoc.stored_averages(tmp_path / dtype, STEPS)
        read = stored[Profile(STEPS, 0.08)]
        for path, array in by_path(state.ema["posthoc:0.08"]).items():
            assert read[path].dtype == jnp.dtype(dtype)
            close = np.asarray(read[path].read(), np.float32)
            np.testing.assert_allclose(close, array, rtol=tolerance, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma_rel": (0.3,)}, "sigma_rel[0]=0.3 must be a finite number above 0"),
        ({"sigma_rel": ()}, "at least one width"),
        ({"sigma_rel": (0.1, 0.1)}, "none twice"),
        ({"every": 0}, "every=0 must be"),
        ({"keep": 1}, "keep=1 must be"),
    ],
)
def test_fields_out_of_range(changes, message):
    policy = PostHocEMA(**changes)
    wrong = [*values.field_problems(policy, "posthoc"), *policy.problems()]
    assert message in "; ".join(wrong)


def test_a_name_says_which_average():
    assert average_called("0.999").decay == 0.999
    assert average_called("posthoc:0.07").sigma_rel == 0.07
    assert jax.tree.leaves(update_ema({}, {}, 1)) == []


def test_flags_switch_it_on_and_set_its_fields():
    changes = ["--config.posthoc=build", "--config.posthoc.sigma_rel=(0.06,0.12)"]
    changes += ["--config.online=build", "--config.online.metric=fd_lite0"]
    config = load_config("emoji:demo", [*changes, "--config.posthoc.every=7"])
    assert config.posthoc == PostHocEMA(sigma_rel=(0.06, 0.12), every=7)
    assert config.online == OnlineMetric(metric="fd_lite0")
    assert config.average_names == ("0.995", "posthoc:0.06", "posthoc:0.12")
