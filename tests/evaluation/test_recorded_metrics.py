"""Metrics against what the official evaluators said of the same arrays."""

import dataclasses

import numpy as np
import pytest

from pixelflow_jax.evaluation import kernel_distance, manifold
from pixelflow_jax.evaluation.inception_score import (
    adm_inception_score,
    consecutive_inception_score,
    jit_inception_score,
)
from pixelflow_jax.evaluation.kernel_distance import radial
from pixelflow_jax.evaluation.manifold import Blocks, precision_recall, radii
from pixelflow_jax.evaluation.statistics import frechet_distance, gaussian_of
from tests.teachers.inception_weights import Recording


@dataclasses.dataclass
class Arrays:
    """The arrays that the evaluators were given."""

    recording: Recording

    def __post_init__(self):
        read = lambda name: self.recording[f"in/{name}"]
        self.sample, self.real = read("features_sample"), read("features_reference")
        self.spatial = read("spatial_sample"), read("spatial_reference")
        self.logits = read("logits_f16").astype(np.float32)

    def near(self, value: float, name: str, rel: float = 1e-6, abs: float = 0.0):
        expected = self.recording.scalar(name)
        assert value == pytest.approx(expected, rel=rel, abs=abs), name


@pytest.fixture(scope="module")
def arrays(golden):
    return Arrays(Recording(golden("eval_metrics.safetensors")))


def test_frechet_distances(arrays):
    sample, real = gaussian_of(arrays.sample), gaussian_of(arrays.real)
    mu, sigma = (
        arrays.recording[f"out/fid/{n}"] for n in ("mu_sample", "sigma_sample_rows0to3")
    )
    np.testing.assert_allclose(sample.mean, mu, rtol=1e-6)
    np.testing.assert_allclose(sample.covariance[:4], sigma, rtol=1e-5, atol=1e-9)
    fid = frechet_distance(sample, real)
    for name in ("fid_adm", "fid_torch_fidelity"):  # their means are float32
        arrays.near(fid, name)
    for name in ("fid_adm_float64", "fid_symmetric_float64"):
        arrays.near(fid, name, rel=1e-9)
    assert frechet_distance(sample, sample) == pytest.approx(0, abs=1e-10)
    sfid = frechet_distance(*map(gaussian_of, arrays.spatial))
    for name in ("sfid_adm", "sfid_torch_fidelity", "sfid_symmetric_float64"):
        arrays.near(sfid, name)


def test_inception_scores(arrays):
    for split in arrays.recording.config["is_splits"]:
        score = adm_inception_score(arrays.logits, split).mean
        arrays.near(score, f"is_adm_split{split}")
        arrays.near(score, f"is_adm_split{split}_tf")
    arrays.near(adm_inception_score(arrays.logits).mean, "is_adm_default5000")
    for splits in (10, 7):
        score = jit_inception_score(arrays.logits, splits)
        arrays.near(score.mean, f"isc_tf_mean_splits{splits}", rel=1e-12)
        arrays.near(score.deviation, f"isc_tf_std_splits{splits}", rel=1e-9)
    score = consecutive_inception_score(arrays.logits)
    arrays.near(score.mean, "isc_tf_mean_noshuffle", rel=1e-12)
    arrays.near(score.deviation, "isc_tf_std_noshuffle", rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("default_kernel", {}),
        ("13subsets", {"subsets": 13}),
        ("rbf", {"kernel": radial(3.0)}),
    ],
)
def test_kernel_distances(arrays, name, options):
    options = {"subset_size": arrays.recording.config["kid_subset_size"], **options}
    found = kernel_distance.kernel_distance(arrays.sample, arrays.real, **options)
    arrays.near(found.mean, f"kid_{name}_mean", rel=1e-4, abs=1e-7)
    arrays.near(found.deviation, f"kid_{name}_std", rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall_whatever_the_blocks(arrays, k):
    for blocks in (manifold.DEFAULT, Blocks(128, 96)):
        found = precision_recall(arrays.sample, arrays.real, k, blocks=blocks)
        for value, name in zip(found, ("precision", "recall"), strict=True):
            arrays.near(value, f"pr_adm_blocks_k{k}_{name}", abs=2 / 300)
            for part in ("", "part_"):
                # They come as float32.
                arrays.near(value, f"prc_tf_k{k}_{part}{name}", rel=1e-7)


@pytest.mark.parametrize("scale", ["unit", "large"])
def test_precision_and_recall_in_float32_and_near_float16(arrays, scale):
    factor = arrays.recording.config["large_scale"] if scale == "large" else 1.0
    sets = [rows * np.float32(factor) for rows in (arrays.sample, arrays.real)]
    found = precision_recall(*sets)
    for value, name in zip(found, ("precision", "recall"), strict=True):
        arrays.near(value, f"pr_adm_{scale}_float32_{name}", rel=1e-12)
        for other in ("tf", "numpy_float16"):
            arrays.near(value, f"pr_adm_{scale}_{other}_{name}", rel=0, abs=2 / 300)
    for rows, name in zip(sets, ("sample", "reference"), strict=True):
        expected = arrays.recording[f"out/pr/{scale}_float32/radii_{name}"]
        np.testing.assert_allclose(radii(rows, 3), expected, rtol=1e-4)


def test_wide_balls_may_be_clamped(arrays):
    widths = manifold.clamped(radii(arrays.real, 3), 50)
    share = manifold.inside_balls(arrays.sample, arrays.real, widths).balls > 0
    arrays.near(share.mean(), "manifold_clamp50_fraction", abs=2 / 300)


# What a wrong evaluator would say; a test above must tell it from the right one.
MUTATIONS = {
    "pr_adm_unit_float32_recall": lambda a: precision_recall(a.sample, a.real, 2)[1],
    "is_adm_split100": lambda a: (
        adm_inception_score(
            a.logits[np.random.RandomState(2020).permutation(len(a.logits))], 100
        ).mean
    ),
    "isc_tf_mean_splits10": lambda a: consecutive_inception_score(a.logits).mean,
    "fid_adm": lambda a: frechet_distance(
        gaussian_of(a.sample[:, ::-1]), gaussian_of(a.real)
    ),
    "kid_default_kernel_mean": lambda a: (
        kernel_distance.kernel_distance(a.real, a.sample, subset_size=120).mean
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_rule_is_told_from_the_right_one(arrays, name):
    with pytest.raises(AssertionError):
        arrays.near(MUTATIONS[name](arrays), name, rel=1e-4)
